"""Datasets in BEIR's layout, as files."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path


def save_dataset(
    folder: Path, texts: Mapping[str, str], queries: Mapping[str, str], relevant: Mapping[str, str]
) -> None:
    """Texts and queries by their ids, and of each query the one text that is relevant."""
    (folder / "qrels").mkdir(parents=True)
    for name, lines in (("corpus", texts), ("queries", queries)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"_id": id_, "title": "", "text": text}) + "\n" for id_, text in lines.items())
    with (folder / "qrels" / "test.tsv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter="\t")
        rows.writerow(["query-id", "corpus-id", "score"])
        rows.writerows([query, text, 1] for query, text in relevant.items())
