"""``python -m pipeline.evaluation.manual_pages FOLDER --output DATASET``: manual pages as a set that nobody trained on.

The line that says what a page is about ("ls - list directory contents") becomes a query, which is to find the page
without the section that has the line. Needs ``man`` (man-db).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

SEED = 1
QUERIES = 300
"""At most; drawn from the lines that one page alone has."""
_ABOUT = re.compile(r"\s(?:--?|–|—)\s+(.+)")
_SECTION = re.compile(r"^(?=\S)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Page:
    """A manual page: its name (``ls.1``), what its first section says that it is about, and all after that section."""

    name: str
    about: str
    text: str


def read_page(name: str, rendered: str) -> Page | None:
    """A page from what ``man`` writes of it; None where nothing says what it is about, or nothing else is there."""
    # The headings of sections stand at the margin, and so do the lines at the top and at the bottom.
    parts = [part for part in _SECTION.split(rendered) if part.strip()][1:-1]
    if not parts:
        return None
    about = _ABOUT.search(" ".join(parts[0].split()))
    text = "".join(parts[1:]).strip()
    return Page(name, about[1].strip(), text) if about and text else None


def read_pages(folder: Path) -> Iterator[Page]:
    """The pages below a folder, such as ``/usr/share/man``; those that only name another one are left out."""
    environment = os.environ | {"LC_ALL": "C.UTF-8", "MANWIDTH": "1000"}
    for path in sorted(folder.rglob("man[1-9]*/*.gz")):
        with gzip.open(path) as file:
            is_link = path.is_symlink() or file.read(4) == b".so "
        if is_link:
            continue
        shown = subprocess.run(
            ["man", "--local-file", str(path)], capture_output=True, check=False, env=environment
        ).stdout.decode("utf-8", "replace")
        page = read_page(path.name.removesuffix(".gz"), shown)
        if page is not None:
            yield page


def write_dataset(pages: Sequence[Page], output: Path) -> int:
    """Writes corpus, queries and judgements in BEIR's layout; returns how many queries there are."""
    (output / "qrels").mkdir(parents=True)
    same = Counter(page.about for page in pages)
    asked = [page for page in pages if same[page.about] == 1]
    asked = sorted(Random(SEED).sample(asked, min(QUERIES, len(asked))), key=lambda page: page.name)
    with (output / "corpus.jsonl").open("w", encoding="utf-8") as corpus:
        for page in pages:
            corpus.write(
                json.dumps({"_id": page.name, "title": page.name, "text": page.text}, ensure_ascii=False) + "\n"
            )
    with (
        (output / "queries.jsonl").open("w", encoding="utf-8") as queries,
        (output / "qrels" / "test.tsv").open("w", encoding="utf-8", newline="") as qrels,
    ):
        judgements = csv.writer(qrels, delimiter="\t")
        judgements.writerow(["query-id", "corpus-id", "score"])
        for page in asked:
            queries.write(json.dumps({"_id": page.name, "text": page.about}, ensure_ascii=False) + "\n")
            judgements.writerow([page.name, page.name, 1])
    return len(asked)


def main() -> None:
    """Prints how many queries and pages there are."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.evaluation.manual_pages", description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder of manual pages, such as /usr/share/man")
    parser.add_argument("--output", type=Path, required=True, help="the dataset's folder, which is made")
    arguments = parser.parse_args()
    if shutil.which("man") is None:
        parser.error("there is no man here; on Debian it is in the package man-db")
    pages = list({page.name: page for page in read_pages(arguments.folder)}.values())
    print(f"{write_dataset(pages, arguments.output)} queries on {len(pages)} pages")


if __name__ == "__main__":
    main()
