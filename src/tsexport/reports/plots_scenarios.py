"""Scenarios as plots: throughput over batch sizes, and latency from the scheduled arrival over rates.

A plot shows what a record holds, point by point; the lines between points only lead the eye.
"""

from collections.abc import Callable, Sequence
from html import escape

from tsexport.bench.rows import milliseconds, per_second
from tsexport.bench.scenario_records import BatchPoint, Offline, Server, ServerRun
from tsexport.bench.scenario_rows import run_status
from tsexport.reports.plots import (
    WIDTH,
    Axis,
    axis_from_zero,
    horizontal_grid,
    latency_axis,
    svg,
    text_at,
    vertical_grid,
)

_HEIGHT, _TOP, _BOTTOM, _LEFT, _RIGHT = 320, 34, 270, 62, 44
_OFFLINE_RIGHT, _TITLE_LEFT = 16, 20
_THOUSANDS_FROM = 10_000.0
_LINE = 13.0
RIM = 5.0
"""Latencies beyond so many times Server's bound are drawn at the rim: at too high a rate they grow without end."""
_SMALLEST_MS = 1e-6
_QUANTILES: tuple[tuple[str, Callable[[ServerRun], float | None]], ...] = (
    ("p50", lambda run: run.p50_ms),
    ("p90", lambda run: run.p90_ms),
    ("p99", lambda run: run.p99_ms),
)


def offline_plot(found: Offline, title: str, width: int = WIDTH) -> str:
    """Return samples a second at each batch size, the best one marked; above each the p90 of a call."""
    right = width - _OFFLINE_RIGHT
    scale, unit = _scale([point.samples_per_s for point in found.points])
    y = axis_from_zero(max(point.samples_per_s for point in found.points) / scale, _BOTTOM, _TOP)
    step = (right - _LEFT) / len(found.points)
    places = [(_LEFT + step * (i + 0.5), y(point.samples_per_s / scale)) for i, point in enumerate(found.points)]
    parts = [
        horizontal_grid(y, _LEFT, right, ""),
        text_at(_TITLE_LEFT, 12, f"{unit}samples/s; above each point the p90 of a call, in ms", "start"),
        text_at(right, _HEIGHT - 10, "batch", "end"),
        _path(places, "curve"),
    ]
    for (px, py), point in zip(places, found.points, strict=True):
        parts.append(text_at(px, _BOTTOM + 18, str(point.batch), "middle", "label"))
        parts.append(_point(px, py, point, best=point.batch == found.best_batch))
    return svg(parts, _HEIGHT, title, width)


def _point(px: float, py: float, point: BatchPoint, *, best: bool) -> str:
    p90 = milliseconds(point.p90_ms)
    said = f"batch {point.batch}: {per_second(point.samples_per_s)}, p90 of a call {p90}, {point.calls} calls"
    label = text_at(px, py - 10, p90.removesuffix(" ms"), "middle", "value")
    return (
        f'<g class="dot{" best" if best else ""}"><circle cx="{px:.1f}" cy="{py:.1f}" r="5">'
        f"<title>{escape(said)}</title></circle>{label}</g>"
    )


def server_plot(found: Server, title: str, width: int = WIDTH) -> str:
    """Return p50, p90 and p99 of each rate's latencies from the scheduled arrival, and the bound as a line."""
    right = width - _RIGHT
    runs = sorted(found.runs, key=lambda run: run.qps)
    scale, unit = _scale([run.qps for run in runs])
    x = latency_axis(0.9 * runs[0].qps / scale, 1.05 * runs[-1].qps / scale, _LEFT, right)
    y = _bounded_axis(runs, found.p99_bound_ms)
    at = y(found.p99_bound_ms)
    parts = [
        vertical_grid(x, _TOP, _BOTTOM),
        horizontal_grid(y, _LEFT, right, ""),
        text_at(_TITLE_LEFT, 12, f"ms from the scheduled arrival{', logarithmic' if y.logarithmic else ''}", "start"),
        text_at(right, _HEIGHT - 10, f"{unit}queries/s", "end"),
        f'<line class="budget" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>',
        text_at(_LEFT + 4, at - 5, f"p99 allowed: {found.p99_bound_ms:g} ms", "start", "budget-label"),
    ]
    ends: list[tuple[float, str]] = []
    for name, quantile in _QUANTILES:
        places = [(x(run.qps / scale), y(ms), run, ms) for run in runs if (ms := quantile(run)) is not None]
        parts.append(_path([(px, py) for px, py, *_ in places], f"curve {name}"))
        parts += [_mark(name, px, py, run, ms) for px, py, run, ms in places]
        ends += [(py, name) for _, py, *_ in places[-1:]]
    parts += _end_labels(ends, right + 8)
    return svg(parts, _HEIGHT, title, width)


def _mark(name: str, px: float, py: float, run: ServerRun, ms: float) -> str:
    said = f"{per_second(run.qps)}: {name} {milliseconds(ms)}, {run_status(run)}"
    return (
        f'<g class="dot {name} {"valid" if run.valid else "invalid"}"><circle cx="{px:.1f}" cy="{py:.1f}" r="4">'
        f"<title>{escape(said)}</title></circle></g>"
    )


def _bounded_axis(runs: Sequence[ServerRun], bound_ms: float) -> Axis:
    """Return the axis of latencies: the bound is always on it, and nothing beyond RIM times the bound."""
    found = [max(ms, _SMALLEST_MS) for run in runs for _, quantile in _QUANTILES if (ms := quantile(run)) is not None]
    bound_ms = max(bound_ms, _SMALLEST_MS)
    largest = min(max([*found, bound_ms]), RIM * bound_ms)
    return latency_axis(0.8 * min([*found, bound_ms]), 1.1 * largest, _BOTTOM, _TOP)


def _end_labels(ends: Sequence[tuple[float, str]], at: float) -> list[str]:
    """Return the names of lines beside their last points, apart from each other."""
    parts: list[str] = []
    level = float("inf")
    for py, name in sorted(ends, reverse=True):
        level = min(py + 4, level - _LINE)
        parts.append(text_at(at, level, name, "start", "value"))
    return parts


def _scale(values: Sequence[float]) -> tuple[float, str]:
    """Return (1000, "thousand ") where the largest value has five digits or more: ticks are to stay short."""
    return (1000.0, "thousand ") if max(values) >= _THOUSANDS_FROM else (1.0, "")


def _path(places: Sequence[tuple[float, float]], kind: str) -> str:
    line = "L".join(f"{px:.1f} {py:.1f}" for px, py in places)
    return f'<path class="{kind}" d="M{line}"/>' if len(places) > 1 else ""
