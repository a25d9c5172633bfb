"""How sure a mean over queries is, and whether two runs differ by more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.errors import SettingsError

RESAMPLES = 10_000
LEVEL = 0.05
"""A smaller p is hardly chance."""
_EQUAL = 0.001
# Random numbers drawn at once: bounds memory for datasets of many queries.
_BLOCK = 2_000_000


def bootstrap_interval(values: Sequence[float], *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Confidence interval of the mean: percentiles of the means of ``RESAMPLES`` resamples with replacement.

    (Efron, 1979; the queries are the sample.) Equal seeds give equal intervals.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise ValueError("an interval of no values")
    random = np.random.default_rng(seed)
    means = np.concatenate(
        [
            sample[random.integers(0, sample.size, size=(rows, sample.size))].mean(axis=1)
            for rows in _blocks(sample.size)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_p(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> float:
    """Two-sided p of the paired randomisation test on the difference of means, over ``RESAMPLES`` random sign flips.

    The test that Smucker, Allan and Carterette (2007) recommend for comparing retrieval runs: it assumes no
    distribution. Under the null hypothesis each query's two values could as well be swapped. With (b + 1) / (m + 1)
    it is never 0 (Phipson and Smyth, 2010).

    Raises:
        SettingsError: the runs are not over the same number of queries.
    """
    if len(first) != len(second):
        raise SettingsError(f"a paired test needs the same queries in both runs: {len(first)} and {len(second)}")
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    # Queries with equal values say nothing either way, and leaving them out changes no sum.
    differences = differences[differences != 0]
    if differences.size == 0:
        return 1.0
    random = np.random.default_rng(seed)
    # A sum equal to the observed one up to rounding is as extreme as it.
    observed = abs(float(differences.sum())) - 1e-9
    extreme = 0
    for rows in _blocks(differences.size):
        signs = random.integers(0, 2, size=(rows, differences.size), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ differences) >= observed).sum())
    return (extreme + 1) / (RESAMPLES + 1)


def difference(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """Of the means, with its 95 % interval and p of :func:`paired_p`; positive if the second's is higher.

    Raises:
        SettingsError: the runs are not over the same number of queries.
    """
    p = paired_p(first, second)
    differences = [b - a for a, b in zip(first, second, strict=True)]
    low, high = bootstrap_interval(differences)
    found = {"difference": float(np.mean(differences)), "low": low, "high": high, "p": p}
    return {name: round(value, 5) for name, value in found.items()}


def nearest_as_good(values: Mapping[float, Sequence[float]], usual: float) -> float:
    """Of weights with a value for each query the one with the best mean, or the nearest to ``usual`` that is as good.

    As good is what lies within 0.001 of the best, or may do so by chance (p >= 0.05): few queries, or easy ones, say
    nothing for a weight that leaves one side hardly any say.
    """
    best = max(values.values(), key=np.mean)
    return next(
        weight
        for weight in sorted(values, key=lambda weight: (abs(weight - usual), weight))
        if np.mean(best) - np.mean(values[weight]) <= _EQUAL or paired_p(values[weight], best) >= LEVEL
    )


def p_value(p: float, name: str = "p") -> str:
    """As it is shown: "p = 0.012", or without a name "0.012"; never 0, which it is not."""
    if p < 0.001:
        return f"{name} < 0.001".lstrip()
    return f"{name} = {p:.3f}" if name else f"{p:.3f}"


def _blocks(width: int) -> list[int]:
    rows = max(1, _BLOCK // width)
    return [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
