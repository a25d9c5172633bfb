"""``python -m pipeline.training.late.unseen DATA --output FOLDER``: a dataset of what training has not seen.

Of the datasets of which only a sample of the passages was used, so many of the others, with questions that are answered
there: the technical ones in English and Chinese. A passage is one example of a tldr page, or one part of a page of
TiDB's documentation: other passages of the same page may have been trained on.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from random import Random

from pipeline.evaluation.dataset import read_dataset
from pipeline.training.late.questions import SEED, SHARES, shuffled

DATASETS = ("tldr-en", "tldr-zh", "tidb-docs-zh")
PASSAGES, QUESTIONS = 3000, 200
"""Of each dataset, at most."""


def write_unseen(folder: Path, output: Path) -> dict[str, int]:
    """Writes them in BEIR's layout, all datasets in one; returns how many questions each has."""
    (output / "qrels").mkdir(parents=True)
    counts = {}
    with (
        (output / "corpus.jsonl").open("w", encoding="utf-8") as corpus,
        (output / "queries.jsonl").open("w", encoding="utf-8") as queries,
        (output / "qrels" / "test.tsv").open("w", encoding="utf-8", newline="") as qrels,
    ):
        judgements = csv.writer(qrels, delimiter="\t")
        judgements.writerow(["query-id", "corpus-id", "score"])
        for name in DATASETS:
            dataset = read_dataset(folder / name)
            documents = {document.id: document for document in dataset.documents()}
            random = Random(f"{SEED} {name}")
            unseen = shuffled(documents, random)[SHARES[name].passages :][:PASSAGES]
            for id_ in unseen:
                document = documents[id_]
                line = {"_id": f"{name}-{id_}", "title": document.title, "text": document.text}
                corpus.write(json.dumps(line, ensure_ascii=False) + "\n")
            kept = set(unseen)
            answered = [id_ for id_, grades in dataset.qrels.items() if grades and grades.keys() <= kept]
            chosen = shuffled(answered, random)[:QUESTIONS]
            for id_ in chosen:
                line = {"_id": f"{name}-{id_}", "text": dataset.queries[id_]}
                queries.write(json.dumps(line, ensure_ascii=False) + "\n")
                for document_id, grade in dataset.qrels[id_].items():
                    judgements.writerow([f"{name}-{id_}", f"{name}-{document_id}", grade])
            counts[name] = len(chosen)
    return counts


def main() -> None:
    """Prints how many questions there are."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.training.late.unseen", description=__doc__)
    parser.add_argument("data", type=Path, help="folder of datasets in BEIR's layout: " + ", ".join(DATASETS))
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    print(write_unseen(arguments.data, arguments.output))


if __name__ == "__main__":
    main()
