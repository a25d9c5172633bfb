"""Whether a collection was made as a program would make it: its vectors are of one model, and its texts of one cut."""

from __future__ import annotations

from pipeline.errors import FingerprintError
from pipeline.interfaces import Store
from pipeline.types import Fingerprint


def refuse_other(store: Store, wanted: Fingerprint, *, ignore: frozenset[str] = frozenset()) -> bool:
    """Whether there is a collection, which then is as wanted, but for the fields in ``ignore``.

    Raises:
        FingerprintError: they do not; says in what they differ and what can be done.
    """
    stored = store.fingerprint()
    differences = [] if stored is None else stored.differences(wanted, ignore=ignore)
    if not differences:
        return stored is not None
    listed = "; ".join(f"{name}: stored {theirs!r}, asked for {ours!r}" for name, theirs, ours in differences)
    if "bm25" in {name for name, *_ in differences}:
        advice = "This version of the package makes BM25 vectors otherwise, which no setting changes: rag reindex"
    else:
        advice = (
            "Set the old values again, or make the collection anew with these ones: rag reindex, from the stored "
            "texts, or RAG_COLLECTION=<new name> rag ingest <paths>"
        )
    raise FingerprintError(f"{store.name} was made differently ({listed}). {advice}")


def make_ready(store: Store, fingerprint: Fingerprint) -> None:
    """Makes the collection if it is missing, and looks whose it is: another program may have been faster.

    Raises:
        FingerprintError: that one makes it otherwise.
    """
    store.ensure_ready(fingerprint)
    refuse_other(store, fingerprint)
