"""Two plots as inline SVG: latency distributions, and accuracy against latency.

They are drawn here rather than by a plotting library, since a page with an inlined library weighs 1 to 5 MB and these
weigh 10 to 50 KB.  Colours come from the page's CSS classes, so that they follow light, dark and print.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from tsexport.bench.statistics import percentile

WIDTH = 860
_LEFT, _RIGHT, _ROW, _AXIS = 10, 92, 62, 40
_SHOWN_SAMPLES = 120
_Scale = Callable[[float], float]
"""Data to pixels."""


@dataclass(frozen=True)
class LatencySeries:
    """Latencies of single calls of one artifact on one runtime."""

    label: str
    samples_ms: tuple[float, ...]
    highlighted: bool


@dataclass(frozen=True)
class TradeoffPoint:
    """One candidate or artifact: median latency, and error in percent.  `kind` is a CSS class: "selected", "eligible",
    "rejected" or "reference" (fp32)."""

    label: str
    latency_ms: float
    error_percent: float
    kind: str


def latency_plot(series: Sequence[LatencySeries], title: str) -> str:
    """Return a row for each series: quartile box, median, 5 to 95 % whiskers, the samples, and p50 and p90 as numbers.

    The axis begins at zero and ends a little above the largest 99 % quantile; how many samples lie beyond is written at
    the row's end.  Quantiles are nearest-rank, as everywhere in tsexport.
    """
    end = 1.05 * max(_quantile(one.samples_ms, 0.99) for one in series)
    ticks = nice_ticks(0.0, end)
    end = max(end, ticks[-1])
    height = _ROW * len(series) + _AXIS

    def x(value_ms: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * min(value_ms, end) / end

    parts = [_vertical_axis_lines(ticks, x, height - _AXIS + 6), _text(WIDTH - _RIGHT, height - 4, "ms a call", "end")]
    for number, one in enumerate(series):
        parts.append(_latency_row(one, _ROW * number + 36, x, end))
    return _svg(parts, height, title)


def tradeoff_plot(points: Sequence[TradeoffPoint], budget_percent: float, error_name: str, title: str) -> str:
    """Return a scatter of error against median latency, with the budget as a line; left and low is better."""
    height, bottom, top, left = 380, 330, 14, 62
    largest = 1.12 * max(point.latency_ms for point in points)
    x_ticks = nice_ticks(0.0, largest)
    x_end = max(largest, x_ticks[-1])
    errors = [point.error_percent for point in points]
    low, high = min(0.0, *errors, 0.0), max(budget_percent, *errors)
    # A candidate that is far off must not press all others onto the axis: beyond five budgets it is drawn at the rim.
    rim = max(5 * budget_percent, 1e-9)
    y_ticks = nice_ticks(low - 0.05 * (min(high, rim) - low) if low < 0 else 0.0, 1.1 * min(high, rim))
    y_start, y_end = min(low, y_ticks[0]), max(1.1 * min(high, rim), y_ticks[-1])

    def x(value: float) -> float:
        return left + (WIDTH - left - 20) * value / x_end

    def y(value: float) -> float:
        return bottom - (bottom - top) * (min(value, y_end) - y_start) / (y_end - y_start)

    parts = [
        _vertical_axis_lines(x_ticks, x, bottom),
        _text(WIDTH - 20, height - 6, "median ms a call, batch 1", "end"),
    ]
    for tick in y_ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - 20}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(_text(left - 6, y(tick) + 4, f"{tick:g} %", "end", "tick"))
    at = y(budget_percent)
    parts.append(f'<line class="budget" x1="{left}" x2="{WIDTH - 20}" y1="{at:.1f}" y2="{at:.1f}"/>')
    parts.append(_text(WIDTH - 24, at - 5, f"budget: {budget_percent:g} % {error_name}", "end", "budget-label"))
    parts += _points(points, x, y, y_end)
    return _svg(parts, height, title)


def nice_ticks(start: float, end: float, count: int = 6) -> list[float]:
    """Return about `count` round numbers (1, 2 or 5 times a power of ten) from `start` to `end`."""
    span = end - start
    if not span > 0:
        return [start]
    step = 10.0 ** math.floor(math.log10(span / count))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= count)
    first, last = math.ceil(start / step - 1e-9), math.floor(end / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _quantile(samples: Sequence[float], q: float) -> float:
    return float(np.quantile(np.asarray(samples), q, method="inverted_cdf"))


def _latency_row(one: LatencySeries, y: float, x: _Scale, end: float) -> str:
    low, quarter, median, three_quarters, high = (_quantile(one.samples_ms, q) for q in (0.05, 0.25, 0.5, 0.75, 0.95))
    kind = "series highlighted" if one.highlighted else "series"
    parts = [f'<g class="{kind}">', _text(_LEFT, y - 18, one.label, "start", "label")]
    shown = np.sort(np.asarray(one.samples_ms))
    if len(shown) > _SHOWN_SAMPLES:  # evenly over the sorted samples: the shape stays, the page stays small
        shown = shown[np.linspace(0, len(shown) - 1, _SHOWN_SAMPLES).round().astype(int)]
    parts += [
        f'<circle class="sample" cx="{x(value):.1f}" cy="{y + 14:.1f}" r="1.6"/>' for value in shown if value <= end
    ]
    parts.append(f'<line class="whisker" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
    width = max(1.0, x(three_quarters) - x(quarter))
    parts.append(
        f'<rect class="box" x="{x(quarter):.1f}" y="{y - 9:.1f}" width="{width:.1f}" height="18" rx="2"><title>'
        f"{escape(one.label)}: {len(one.samples_ms)} samples, median {median:.4g} ms, "
        f"half of them {quarter:.4g} to {three_quarters:.4g} ms, 90 % {low:.4g} to {high:.4g} ms</title></rect>"
    )
    parts.append(f'<line class="median" x1="{x(median):.1f}" x2="{x(median):.1f}" y1="{y - 9:.1f}" y2="{y + 9:.1f}"/>')
    notes = [
        f"{name} {'n/a' if value is None else f'{value:.3g} ms'}"
        for name, value in (("p50", percentile(one.samples_ms, 0.5)), ("p90", percentile(one.samples_ms, 0.9)))
    ]
    if beyond := sum(value > end for value in one.samples_ms):
        notes.append(f"{beyond} beyond")
    for line, note in enumerate(notes):
        parts.append(_text(WIDTH - _RIGHT + 8, y - 5 + 13 * line, note, "start", "value" if line < 2 else "tick"))
    return "".join([*parts, "</g>"])


def _points(points: Sequence[TradeoffPoint], x: _Scale, y: _Scale, y_end: float) -> list[str]:
    """Return the points with their labels, each label moved up until it is clear of those already placed."""
    parts: list[str] = []
    placed: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda point: (point.kind != "selected", point.latency_ms)):
        px, py = x(point.latency_ms), y(point.error_percent)
        off = f" ({point.error_percent:.3g} %)" if point.error_percent > y_end else ""
        text = point.label + off
        width = 6.4 * len(text)
        to_the_left = px + 10 + width > WIDTH
        start = px - 10 - width if to_the_left else px + 10
        level = py + 4
        while any(abs(level - other) < 13 and start < right and left < start + width for left, right, other in placed):
            level -= 13
        placed.append((start, start + width, level))
        title = f"<title>{escape(point.label)}: {point.latency_ms:.4g} ms, {point.error_percent:.4g} %</title>"
        if point.kind == "reference":
            mark = f'<rect x="{px - 5:.1f}" y="{py - 5:.1f}" width="10" height="10">{title}</rect>'
        else:
            mark = f'<circle cx="{px:.1f}" cy="{py:.1f}" r="6">{title}</circle>'
        label = _text(px - 10 if to_the_left else px + 10, level, text, "end" if to_the_left else "start", "label")
        parts.append(f'<g class="point {point.kind}">{mark}{label}</g>')
    return parts


def _vertical_axis_lines(ticks: Sequence[float], x: _Scale, bottom: float) -> str:
    return "".join(
        f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="0" y2="{bottom:.1f}"/>'
        + _text(x(tick), bottom + 16, f"{tick:g}", "middle", "tick")
        for tick in ticks
    )


def _text(x: float, y: float, text: str, anchor: str, kind: str = "axis") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], height: float, title: str) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )
