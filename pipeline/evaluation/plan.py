"""Which runs an evaluation consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import get_args

from pipeline.build import cascades
from pipeline.errors import SettingsError
from pipeline.settings import Settings
from pipeline.types import SearchMode

RECALL_DEPTH = 100
"""Candidates of a run without a reranker, at least: a deeper list costs nothing there, and recall@100 needs it."""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One way to answer queries. ``None`` for alpha is the reranker's default."""

    search: SearchMode
    reranker: str
    top_n: int
    alpha: float | None = None
    threshold: float | None = None
    cascade: bool = False
    """Whether the reranker reads the best third only, after another's first step."""

    @property
    def label(self) -> str:
        """Short name, such as "hybrid + embedded, top 50, alpha 0.5"."""
        if self.reranker == "none":
            return self.search
        parts = [f"{self.search} + {self.reranker}", f"top {self.top_n}"]
        if self.cascade:
            parts.append("cascade")
        if self.alpha is not None:
            parts.append(f"alpha {self.alpha:g}")
        if self.threshold is not None:
            parts.append(f"threshold {self.threshold:g}")
        return ", ".join(parts)


def cross(
    settings: Settings,
    *,
    searches: Sequence[str] = (),
    rerankers: Sequence[str] = (),
    top_ns: Sequence[int] = (),
    alphas: Sequence[float] = (),
    thresholds: Sequence[float] = (),
) -> list[RunSpec]:
    """Every combination of the given values, in the order given; what is left out comes from the settings.

    Without rerankers given, ``none`` and the one of the settings are compared. A run without a reranker has no alpha
    and no threshold, and appears once.

    Raises:
        SettingsError: a value is not allowed.
    """
    modes = [_search_mode(name) for name in searches or [settings.search]]
    names = list(rerankers) or ["none", settings.reranker]
    depths = list(top_ns) or [settings.top_n]
    for top_n in depths:
        if not 1 <= top_n <= 1000:
            raise SettingsError(f"--top-n must be between 1 and 1000, not {top_n}")
    weights: Sequence[float | None] = alphas or [settings.alpha]
    cuts: Sequence[float | None] = thresholds or [settings.threshold]
    for option, values in (("--alpha", alphas), ("--threshold", thresholds)):
        for value in values:
            if not 0.0 <= value <= 1.0:
                raise SettingsError(f"{option} must be between 0 and 1, not {value:g}")
    in_two_steps = {name: cascades(settings.with_reranker(name)) for name in names}
    runs = [
        RunSpec(mode, name, max(RECALL_DEPTH, *depths))
        if name == "none"
        else RunSpec(mode, name, top_n, alpha, threshold, in_two_steps[name])
        for mode, name, top_n, alpha, threshold in product(modes, names, depths, weights, cuts)
    ]
    return list(dict.fromkeys(runs))


def _search_mode(name: str) -> SearchMode:
    for mode in get_args(SearchMode):
        if name == mode:
            return mode  # type: ignore[no-any-return]
    raise SettingsError(f"--search {name!r}: there are {', '.join(get_args(SearchMode))}")
