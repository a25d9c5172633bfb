from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.calibration import Calibration, calibration_file, load_calibration, save_calibration
from pipeline.errors import SettingsError
from pipeline.scoring import sigmoid
from pipeline.types import RerankScore

PLATT = Calibration("m@1", "platt", ((2.0, -1.0),), "d", 10, 500, 10, 0.4, 0.9, "2026-01-01")
ISOTONIC = replace(PLATT, method="isotonic", points=((-2.0, 0.1), (0.0, 0.2), (1.0, 0.8)))


def test_platt_is_a_logistic_curve_over_the_logit() -> None:
    """Of a raw logit as of the logit of a raw probability."""
    assert sigmoid(2 * 0.7 - 1) == PLATT.probability(0.7, "logit")
    assert sigmoid(2 * 0.7 - 1) == pytest.approx(PLATT.probability(sigmoid(0.7), "probability"))


@pytest.mark.parametrize(("x", "p"), [(-9, 0.1), (-2, 0.1), (-1, 0.15), (0, 0.2), (0.5, 0.5), (1, 0.8), (9, 0.8)])
def test_isotonic_is_a_rising_line_flat_at_its_ends(x: float, p: float) -> None:
    """Between the corners it is linear."""
    assert p == pytest.approx(ISOTONIC.probability(x, "logit"))


@given(st.floats(-50, 50), st.floats(-50, 50))
def test_both_keep_the_order(x: float, y: float) -> None:
    """A higher raw score never has a lower probability."""
    for calibration in (PLATT, ISOTONIC):
        low, high = sorted((x, y))
        assert calibration.probability(low, "logit") <= calibration.probability(high, "logit") <= 1.0


def test_raw_scores_and_windows_stay() -> None:
    """Only the probability is mapped."""
    (score,) = PLATT.apply([RerankScore(0.5, sigmoid(0.5), (1, 2))], "logit")
    assert RerankScore(0.5, 0.5, (1, 2)) == score


def test_it_is_kept_under_the_rerankers_name_model_and_revision(tmp_path: Path) -> None:
    """Another revision has none."""
    path = save_calibration(tmp_path / "c", PLATT)
    assert PLATT == load_calibration(tmp_path / "c", "m@1")
    assert load_calibration(tmp_path / "c", "m@2") is None
    assert [path] == list((tmp_path / "c").iterdir())


def test_names_with_odd_characters_make_file_names(tmp_path: Path) -> None:
    """A model may be named by a path or in Chinese; names that look alike stay apart."""
    one, other = (calibration_file(tmp_path, name) for name in ("bge /a/b:模型@1", "bge /a-b:模型@1"))
    assert one.parent == other.parent == tmp_path
    assert one != other


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"points": [[1, 2], [3, 4]], "method": "platt"}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    """Silently going without would change what a threshold means."""
    path = calibration_file(tmp_path, "m@1")
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match=r"is no calibration.*rag calibrate"):
        load_calibration(tmp_path, "m@1")
