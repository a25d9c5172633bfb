"""Small charts as inline SVG. Colours and fonts come from the page's style sheet, so they follow light and dark.

All are drawn on 440 units of width, about what a phone has, so that text keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 14, 46
COLOURS = 8
"""How many series the style sheet has colours for (``--s1`` to ``--s8``)."""


@dataclass(frozen=True, slots=True)
class Point:
    """A run in the plane: ``x`` > 0."""

    label: str
    title: str
    x: float
    y: float
    low: float
    high: float
    colour: int


@dataclass(frozen=True, slots=True)
class Line:
    """A series of (x, y)."""

    title: str
    points: Sequence[tuple[float, float]]
    colour: int
    dashed: bool = False


def scatter(points: Sequence[Point], *, x_label: str, y_label: str, name: str) -> str:
    """Points with their intervals over a logarithmic x, and the Pareto front: nothing is both left of and above it."""
    height = 300
    x, x_ticks = _log_scale([point.x for point in points])
    y, y_ticks = _linear_scale([v for p in points for v in (p.low, p.high)], height)
    parts = [_grid(height, x, x_ticks, y, y_ticks, x_label, y_label)]
    front = pareto(points)
    if len(front) > 1:
        path = f"M{x(front[0].x):.1f} {y(front[0].y):.1f}"
        path += "".join(f"H{x(point.x):.1f}V{y(point.y):.1f}" for point in front[1:])
        parts.append(f'<path class="front" d="{path}"/>')
    for point in points:
        cx, ends = f"{x(point.x):.1f}", f'y1="{y(point.low):.1f}" y2="{y(point.high):.1f}"'
        parts.append(f'<line class="whisker c{point.colour}" x1="{cx}" x2="{cx}" {ends}/>')
    # Dots and names lie on top of all lines.
    for point in points:
        cx, cy = f"{x(point.x):.1f}", f"{y(point.y):.1f}"
        parts.append(
            f'<g class="c{point.colour}"><title>{escape(point.title)}</title>'
            f'<circle class="dot" cx="{cx}" cy="{cy}" r="6"/>'
            f'<text class="name" x="{cx}" y="{cy}" dx="9" dy="-5">{escape(point.label)}</text></g>'
        )
    return _svg(height, name, parts)


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both: smaller x and larger y. By x."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def lines(series: Sequence[Line], *, x_label: str, y_label: str, name: str) -> str:
    """Lines over a logarithmic x."""
    height = 300
    x, x_ticks = _log_scale([px for line in series for px, _ in line.points], pad=0.0)
    y, y_ticks = _linear_scale([py for line in series for _, py in line.points], height)
    parts = [_grid(height, x, x_ticks, y, y_ticks, x_label, y_label)]
    for line in series:
        path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in line.points)
        dash = " dashed" if line.dashed else ""
        parts.append(
            f'<g class="c{line.colour}"><title>{escape(line.title)}</title>'
            f'<polyline class="line{dash}" points="{path}"/></g>'
        )
    return _svg(height, name, parts)


def unit_lines(series: Sequence[Line], *, x_label: str, y_label: str, name: str, diagonal: bool = False) -> str:
    """Lines in the unit square, each point with a dot; ``diagonal`` draws where x equals y."""
    height = 300

    def x(value: float) -> float:
        return _LEFT + value * (WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return height - _BOTTOM - value * (height - _TOP - _BOTTOM)

    ticks = {place / 4: f"{place / 4:g}" for place in range(5)}
    parts = [_grid(height, x, ticks, y, ticks, x_label, y_label)]
    if diagonal:
        parts.append(f'<path class="front" d="M{x(0):.1f} {y(0):.1f}L{x(1):.1f} {y(1):.1f}"/>')
    for line in series:
        path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in line.points)
        dots = "".join(f'<circle class="dot" cx="{x(px):.1f}" cy="{y(py):.1f}" r="4"/>' for px, py in line.points)
        dash = " dashed" if line.dashed else ""
        parts.append(
            f'<g class="c{line.colour}"><title>{escape(line.title)}</title>'
            f'<polyline class="line{dash}" points="{path}"/>{dots if diagonal else ""}</g>'
        )
    return _svg(height, name, parts)


def interval(value: float, low: float, high: float, *, bounds: tuple[float, float], colour: int, name: str) -> str:
    """A mean with its interval on a scale that all rows of a table share."""
    span = bounds[1] - bounds[0]

    def x(v: float) -> float:
        return 6 + 108 * ((v - bounds[0]) / span if span else 0.5)

    return (
        f'<svg class="strip c{colour}" viewBox="0 0 120 16" role="img" aria-label="{escape(name)}">'
        f'<line class="base" x1="6" x2="114" y1="8" y2="8"/>'
        f'<line class="span" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="8" y2="8"/>'
        f'<circle class="dot" cx="{x(value):.1f}" cy="8" r="4"/></svg>'
    )


def changes(values: Sequence[float], *, name: str) -> str:
    """One thin bar a changed query, from the biggest gain to the biggest loss; at least one value."""
    ordered = sorted(values, reverse=True)
    step = (WIDTH - 8) / max(1, len(ordered))
    unit = 54 / max(1e-9, *(abs(value) for value in ordered))
    middle = 6 + max(0.0, ordered[0]) * unit
    height = middle + 6 + max(0.0, -ordered[-1]) * unit
    bars = []
    for place, value in enumerate(ordered):
        length = abs(value) * unit
        kind, top = ("gain", middle - length) if value > 0 else ("loss", middle)
        bars.append(
            f'<rect class="{kind}" x="{4 + place * step:.2f}" width="{max(0.6, min(step * 0.8, 9)):.2f}" '
            f'y="{top:.1f}" height="{length:.1f}"/>'
        )
    axis = f'<line class="axis" x1="4" x2="{WIDTH - 4}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
    return _svg(height, name, [*bars, axis])


def histogram(relevant: Sequence[float], irrelevant: Sequence[float], *, name: str, bins: int = 20) -> str:
    """Shares of scores in [0, 1]: those of relevant texts above the line, of irrelevant ones below it."""
    above, below = _shares(relevant, bins), _shares(irrelevant, bins)
    # One unit for both halves, and no more room than each needs.
    unit = 170 / max(1e-9, max(above) + max(below))
    middle = 6 + max(above) * unit
    step = (WIDTH - 16) / bins
    parts = []
    for place in range(bins):
        x = 8 + place * step
        for share, kind, what in ((above[place], "relevant", "relevant"), (below[place], "irrelevant", "irrelevant")):
            length = share * unit
            y = middle - length if kind == "relevant" else middle
            parts.append(
                f'<rect class="{kind}" x="{x + 0.75:.2f}" y="{y:.1f}" width="{step - 1.5:.2f}" height="{length:.1f}">'
                f"<title>{share:.1%} of the {what} between {place / bins:g} and {(place + 1) / bins:g}</title></rect>"
            )
    parts.append(f'<line class="axis" x1="8" x2="{WIDTH - 8}" y1="{middle:.1f}" y2="{middle:.1f}"/>')
    bottom = 6 + 170 + 20
    for tick, anchor in ((0.0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1.0, "end")):
        parts.append(
            f'<text class="tick" x="{8 + tick * (WIDTH - 16):.1f}" y="{bottom}" text-anchor="{anchor}">{tick:g}</text>'
        )
    parts.append(
        f'<text class="label" x="{WIDTH / 2}" y="{bottom + 24}" text-anchor="middle">rerank probability</text>'
    )
    return _svg(bottom + 32, name, parts)


def _shares(values: Sequence[float], bins: int) -> list[float]:
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int(value * bins))] += 1
    return [count / len(values) if values else 0.0 for count in counts]


def _svg(height: float, name: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:.4g}" role="img" aria-label="{escape(name)}">'
        f"{''.join(parts)}</svg>"
    )


Scale = Callable[[float], float]


def _log_scale(values: Sequence[float], pad: float = 0.08) -> tuple[Scale, Mapping[float, str]]:
    low, high = math.log10(min(values)), math.log10(max(values))
    if high - low < 0.3:
        low, high = low - 0.15, high + 0.15
    room = (high - low) * pad
    low, high = low - room, high + room

    def scale(value: float) -> float:
        return _LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    span = high - low
    steps = (1, 1.5, 2, 3, 5, 7) if span < 0.9 else (1, 2, 5) if span < 2.4 else (1,)
    ticks = [m * 10.0**e for e in range(math.floor(low) - 1, math.ceil(high) + 1) for m in steps]
    return scale, {tick: f"{tick:,.10g}" for tick in ticks if low - 1e-9 <= math.log10(tick) <= high + 1e-9}


def _linear_scale(values: Sequence[float], height: int) -> tuple[Scale, Mapping[float, str]]:
    low, high = min(values), max(values)
    if high - low < 0.02:
        low, high = low - 0.01, high + 0.01
    step = next(s for s in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25) if (high - low) / s <= 5 or s == 0.25)
    # Metrics end at 1, and room above it would promise more.
    low, high = max(0.0, math.floor(low / step) * step), min(1.0, math.ceil(high / step) * step)

    def scale(value: float) -> float:
        return height - _BOTTOM - (value - low) / (high - low) * (height - _TOP - _BOTTOM)

    digits = 3 if step < 0.01 else 2
    count = round((high - low) / step)
    return scale, {low + i * step: f"{low + i * step:.{digits}f}" for i in range(count + 1)}


def _grid(
    height: int,
    x: Scale,
    x_ticks: Mapping[float, str],
    y: Scale,
    y_ticks: Mapping[float, str],
    x_label: str,
    y_label: str,
) -> str:
    base = height - _BOTTOM
    parts = [
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{text}</text>'
        for tick, text in y_ticks.items()
    ]
    parts += [
        f'<text class="tick" x="{x(tick):.1f}" y="{base + 18}" text-anchor="middle">{text}</text>'
        for tick, text in x_ticks.items()
    ]
    middle, across = (base + _TOP) / 2, (WIDTH + _LEFT - _RIGHT) / 2
    turned = f'transform="rotate(-90 12 {middle})" x="12" y="{middle}"'
    parts += [
        f'<text class="label" x="{across}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text class="label" {turned} text-anchor="middle">{escape(y_label)}</text>',
    ]
    return "".join(parts)
