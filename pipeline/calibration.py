"""From a reranker's raw scores to probabilities of relevance: the fitted map, and the file it is kept in.

A reranker's own probability is whatever its training made of it: 0.5 of one is not 0.5 of another. A calibration,
fitted on labelled queries (``rag calibrate``), maps raw scores to the share of candidates with such a score that were
relevant. Then thresholds mean the same for every calibrated reranker.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import SettingsError
from pipeline.files import write_atomically
from pipeline.scoring import logit, sigmoid
from pipeline.types import RerankScore, ScoreScale

Method = Literal["platt", "isotonic"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """A monotone map from logits to probabilities, and what it was fitted on.

    ``points`` are, for ``platt`` (Platt, "Probabilistic Outputs for Support Vector Machines", 1999), the slope and
    the intercept of the logistic curve; for ``isotonic`` (Zadrozny and Elkan, KDD 2002) the (logit, probability)
    corners of a rising line, flat beyond its ends.
    """

    reranker: str
    """Name, model and revision whose scores it maps."""
    method: Method
    points: tuple[tuple[float, float], ...]
    dataset: str
    queries: int
    pairs: int
    relevant: int
    """How many of the pairs are relevant."""
    threshold: float | None
    """Lowest probability from which on ``precision`` was reached among the hits; None if it never was."""
    precision: float
    """The wanted share of relevant ones among the hits over the threshold."""
    created: str
    """When, in ISO 8601."""

    def probability(self, raw: float, scale: ScoreScale) -> float:
        """Probability of relevance of a raw score."""
        x = raw if scale == "logit" else logit(raw)
        if self.method == "platt":
            ((slope, intercept),) = self.points
            return sigmoid(slope * x + intercept)
        at = bisect_right(self.points, x, key=lambda point: point[0])
        if at == 0:
            return self.points[0][1]
        if at == len(self.points):
            return self.points[-1][1]
        (x0, p0), (x1, p1) = self.points[at - 1], self.points[at]
        return p0 + (p1 - p0) * (x - x0) / (x1 - x0)

    def apply(self, scores: Sequence[RerankScore | None], scale: ScoreScale) -> list[RerankScore | None]:
        """The scores with their raw values and the calibrated probabilities; what has no score stays without."""
        return [score and replace(score, probability=self.probability(score.raw, scale)) for score in scores]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the file."""
        return asdict(self)


def calibration_file(folder: Path, reranker: str) -> Path:
    """Where the calibration of a reranker (name, model and revision) is kept."""
    digest = hashlib.blake2b(reranker.encode("utf-8", "backslashreplace"), digest_size=6).hexdigest()
    return folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', reranker)[:60].strip('-')}-{digest}.json"


def save_calibration(folder: Path, calibration: Calibration) -> Path:
    """Writes the file, whole or not at all, and returns its path."""
    path = calibration_file(folder, calibration.reranker)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(calibration.to_dict(), ensure_ascii=False, indent=1) + "\n")
    return path


def load_calibration(folder: Path, reranker: str) -> Calibration | None:
    """The calibration of this reranker; None if it has none.

    Raises:
        SettingsError: the file is damaged.
    """
    path = calibration_file(folder, reranker)
    try:
        return read_calibration(path)
    except FileNotFoundError:
        return None


def all_calibrations(folder: Path) -> list[Calibration]:
    """Those that are kept in the folder, by name.

    Raises:
        SettingsError: a file is damaged, or the folder cannot be read.
    """
    try:
        files = list(folder.glob("*.json"))
    except OSError as error:
        raise SettingsError(f"cannot read {folder} ({error.strerror}): check RAG_DATA_DIR") from error
    return sorted(map(read_calibration, files), key=lambda one: one.reranker)


def read_calibration(path: Path) -> Calibration:
    """The calibration in a file.

    Raises:
        SettingsError: the file is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        points = tuple((float(x), float(y)) for x, y in value.pop("points"))
        if (
            not points
            or value["method"] not in {"platt", "isotonic"}
            or (value["method"] == "platt") != (len(points) == 1)
        ):
            raise ValueError("the points do not fit the method")
        return Calibration(points=points, **value)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SettingsError(f"{path} is no calibration ({error}): remove it, or run rag calibrate again") from error
