"""Latency distributions: a box for each series, its samples below it, its percentiles beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from tsexport.bench.rows import milliseconds
from tsexport.bench.statistics import percentile
from tsexport.reports.plots import (
    LABEL_CHARACTER,
    NARROW,
    WIDTH,
    Axis,
    clipped,
    latency_axis,
    svg,
    text_at,
    vertical_grid,
)

_LEFT, _RIGHT, _ROW, _AXIS = 10, 118, 66, 42
_SHOWN_SAMPLES = 120


@dataclass(frozen=True)
class LatencySeries:
    """Latencies of single calls of one artifact on one runtime."""

    label: str
    samples_ms: tuple[float, ...]
    highlighted: bool


def latency_plot(series: Sequence[LatencySeries], title: str, width: int = WIDTH) -> str:
    """Return a row for each series: quartile box, median, 5 to 95 % whiskers, the samples, and its percentiles.

    The axis ends a little above the largest 99 % quantile; how many samples lie beyond is written at the row's end.  It
    begins at zero, or is logarithmic where it spans much.  Quantiles are nearest-rank, as everywhere in tsexport; a
    percentile with too few samples is "n/a".
    """
    end = 1.05 * max(_quantile(one.samples_ms, 0.99) for one in series)
    start = 0.9 * min(_quantile(one.samples_ms, 0.01) for one in series)
    right = width - _RIGHT
    axis = latency_axis(start, end, _LEFT, right)
    height = _ROW * len(series) + _AXIS
    unit = "ms a call, logarithmic" if axis.logarithmic else "ms a call"
    parts = [vertical_grid(axis, 0, height - _AXIS + 6), text_at(right, height - 4, unit, "end")]
    parts += [_row(one, _ROW * number + 34, axis) for number, one in enumerate(series)]
    return svg(parts, height, title, width)


def _quantile(samples: Sequence[float], q: float) -> float:
    return float(np.quantile(np.asarray(samples), q, method="inverted_cdf"))


def _row(one: LatencySeries, y: float, x: Axis) -> str:
    low, quarter, median, three_quarters, high = (_quantile(one.samples_ms, q) for q in (0.05, 0.25, 0.5, 0.75, 0.95))
    kind = "series highlighted" if one.highlighted else "series"
    label = clipped(one.label, int((x.last - _LEFT) / LABEL_CHARACTER))
    parts = [f'<g class="{kind}">', text_at(_LEFT, y - 16, label, "start", "label")]
    parts.append(_samples(one.samples_ms, y + 16, x))
    parts.append(f'<line class="whisker" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
    width = max(1.0, x(three_quarters) - x(quarter))
    parts.append(
        f'<rect class="box" x="{x(quarter):.1f}" y="{y - 8:.1f}" width="{width:.1f}" height="16" rx="2"><title>'
        f"{escape(one.label)}: {len(one.samples_ms)} samples, median {median:.4g} ms, "
        f"half of them {quarter:.4g} to {three_quarters:.4g} ms, 90 % {low:.4g} to {high:.4g} ms</title></rect>"
    )
    parts.append(f'<line class="median" x1="{x(median):.1f}" x2="{x(median):.1f}" y1="{y - 8:.1f}" y2="{y + 8:.1f}"/>')
    beyond = sum(value > x.end for value in one.samples_ms)
    notes = [f"{name} {milliseconds(percentile(one.samples_ms, q))}" for name, q in _PERCENTILES]
    notes.append(f"{len(one.samples_ms)} calls" + (f", {beyond} beyond" if beyond else ""))
    for line, note in enumerate(notes):
        parts.append(text_at(x.last + 8, y - 16 + 13 * line, note, "start", "value" if line < 3 else "tick"))
    return "".join([*parts, "</g>"])


_PERCENTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


def _samples(samples_ms: Sequence[float], y: float, x: Axis) -> str:
    """Return the samples as dots of one path; of many, some that are evenly spread over the sorted ones."""
    shown = np.sort(np.asarray(samples_ms))
    most = _SHOWN_SAMPLES if x.last > NARROW else _SHOWN_SAMPLES // 2
    if len(shown) > most:
        shown = shown[np.linspace(0, len(shown) - 1, most).round().astype(int)]
    dots = "".join(f"M{x(value):.1f} {y:.0f}h0" for value in shown if value <= x.end)
    return f'<path class="sample" d="{dots}"/>'
