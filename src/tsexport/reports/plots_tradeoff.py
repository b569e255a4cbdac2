"""Accuracy against latency, with the Pareto front: of one bundle's candidates, or of those of many bundles.

A point is on the front where no other of its group is both as fast and as accurate, and better in one of the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tsexport.reports.plots import (
    WIDTH,
    Axis,
    clipped,
    horizontal_grid,
    latency_axis,
    nice_ticks,
    svg,
    text_at,
    vertical_grid,
)

_HEIGHT, _BOTTOM, _TOP, _LEFT, _RIGHT = 400, 350, 16, 62, 20
_RIM = 3.0
"""A candidate far off must not press all others onto the axis: beyond so many budgets it is drawn at the rim."""
_FAR_BELOW = 2.5
_LABEL_CHARACTERS = 34
_CHARACTER = 6.4
"""Pixels of a character of a label, roughly: enough to keep labels apart."""
_LINE, _GAP = 13.0, 8.0


@dataclass(frozen=True)
class TradeoffPoint:
    """One candidate or artifact: median latency, and error in percent.

    `kind` is a CSS class: "selected", "eligible", "rejected" or "reference" (fp32).  Points of one `group` have one
    front together.
    """

    label: str
    latency_ms: float
    error_percent: float
    kind: str
    group: str = ""


def pareto_front(points: Sequence[TradeoffPoint]) -> tuple[TradeoffPoint, ...]:
    """Return the points that no other is at least as good as in both, and better in one; the fastest first."""
    front: list[TradeoffPoint] = []
    for point in sorted(points, key=lambda one: (one.latency_ms, one.error_percent)):
        if not front or point.error_percent < front[-1].error_percent:
            front.append(point)
        elif (point.latency_ms, point.error_percent) == (front[-1].latency_ms, front[-1].error_percent):
            front.append(point)  # the same place: neither is better
    return tuple(front)


def tradeoff_plot(
    points: Sequence[TradeoffPoint],
    budget_percent: float,
    budget_name: str,
    title: str,
    width: int = WIDTH,
    *,
    every_label: bool = True,
) -> str:
    """Return a scatter of error against median latency, with the budget as a line; left and low is better.

    Args:
        points: at least one; latencies above 0.
        budget_percent: where the line of the budget is; points below it are within.
        budget_name: what is written beside the line.
        every_label: label every point, or only those that are selected and those of few.
    """
    latencies = [point.latency_ms for point in points]
    right = width - _RIGHT
    x = latency_axis(0.85 * min(latencies), 1.15 * max(latencies), _LEFT, right)
    y = _error_axis([point.error_percent for point in points], budget_percent)
    unit = "median ms a call, batch 1" + (", logarithmic" if x.logarithmic else "")
    parts = [
        vertical_grid(x, 0, _BOTTOM),
        text_at(right, _HEIGHT - 6, unit, "end"),
        horizontal_grid(y, _LEFT, right, " %"),
        _budget_line(y, budget_percent, budget_name, right),
    ]
    groups: dict[str, list[TradeoffPoint]] = {}
    for point in points:
        groups.setdefault(point.group, []).append(point)
    fronts = {group: pareto_front(members) for group, members in groups.items()}
    parts += [_front_line(front, x, y) for front in fronts.values() if len(front) > 1]
    on_front = {id(point) for front in fronts.values() for point in front}
    parts += _points(points, on_front, x, y, every_label)
    return svg(parts, _HEIGHT, title, width)


def _budget_line(y: Axis, budget_percent: float, name: str, right: float) -> str:
    """Return the line of the budget, or a word at the top where all errors are far below it."""
    if budget_percent > y.end:
        return text_at(right - 4, _TOP + 2, f"↑ {name}", "end", "budget-label")
    at = y(budget_percent)
    line = f'<line class="budget" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
    return line + text_at(right - 4, at - 5, name, "end", "budget-label")


def _error_axis(errors: Sequence[float], budget_percent: float) -> Axis:
    """Return the vertical axis: from zero or the smallest error, to what is shown of the largest.

    The budget is within it unless all errors are so far below that they would be pressed onto the axis.
    """
    rim = max(_RIM * budget_percent, 1e-9)
    low, high = min(0.0, *errors, 0.0), min(max(0.0, *errors), rim)
    if max(high, -low) * _FAR_BELOW >= budget_percent or high <= low:
        high = max(high, budget_percent)
    # What is far better than the source must not press the rest together either.
    low = max(low, -rim)
    ticks = nice_ticks(low - 0.05 * (high - low) if low < 0 else 0.0, 1.1 * high)
    return Axis(min(low, ticks[0]), max(1.1 * high, ticks[-1]), _BOTTOM, _TOP, tuple(ticks))


def _front_line(front: Sequence[TradeoffPoint], x: Axis, y: Axis) -> str:
    """Return the front as steps: what lies right of it and above is worse than a point of it."""
    path = f"M{x(front[0].latency_ms):.1f} {y(front[0].error_percent):.1f}"
    for point in front[1:]:
        path += f"H{x(point.latency_ms):.1f}V{y(point.error_percent):.1f}"
    return f'<path class="front" d="{path}"/>'


def _points(points: Sequence[TradeoffPoint], on_front: set[int], x: Axis, y: Axis, every_label: bool) -> list[str]:
    """Return the points with their labels, the selected ones on top of the others."""
    labelled = _Labels([(x(point.latency_ms), y(point.error_percent)) for point in points], x.last + _RIGHT)
    parts: list[str] = []
    order = {"selected": 0, "reference": 2}
    for point in sorted(points, key=lambda one: (order.get(one.kind, 1), id(one) not in on_front, one.latency_ms)):
        px, py = x(point.latency_ms), y(point.error_percent)
        beyond = point.error_percent > y.end or point.error_percent < y.start
        kind = f"point {point.kind}" + (" on-front" if id(point) in on_front else "")
        title = (
            f"<title>{escape(point.label)}: {point.latency_ms:.4g} ms, {point.error_percent:.4g} %, {point.kind}"
            f"{', on the front' if id(point) in on_front else ''}</title>"
        )
        if point.kind == "reference":
            mark = f'<rect x="{px - 4.5:.1f}" y="{py - 4.5:.1f}" width="9" height="9">{title}</rect>'
        else:
            mark = f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{5.5 if every_label else 4}">{title}</circle>'
        label = ""
        if every_label or point.kind == "selected":
            off = f" ({point.error_percent:.3g} %)" if beyond else ""
            label = labelled.place(px, py, clipped(point.label, _LABEL_CHARACTERS) + off)
        parts.append(f'<g class="{kind}">{mark}{label}</g>')
    return parts[::-1]


class _Labels:
    """Where labels may stand: clear of those that were placed, and, as far as there is room, of the points."""

    def __init__(self, points: Sequence[tuple[float, float]], end: float) -> None:
        self._points, self._end = points, end
        self._placed: list[tuple[float, float, float]] = []

    def place(self, px: float, py: float, text: str) -> str:
        """Return a label beside a point: at its height or near it, on its right or left; nothing where all is full."""
        width = _CHARACTER * len(text)
        places = [
            (px - 9 - width if to_the_left else px + 9, py + 4 + _LINE * step, to_the_left)
            for step in (0, -1, 1, -2, 2, -3, 3)
            for to_the_left in (False, True)
        ]
        free = [place for place in places if self._is_free(place[0], width, place[1])]
        if not free:
            return ""
        start, level, to_the_left = next((one for one in free if not self._hides(one[0], width, one[1])), free[0])
        self._placed.append((start, start + width, level))
        edge, anchor = (px - 9, "end") if to_the_left else (px + 9, "start")
        return text_at(edge, level, text, anchor, "label")

    def _is_free(self, start: float, width: float, level: float) -> bool:
        within = start >= _LEFT and start + width <= self._end and _TOP <= level <= _BOTTOM
        return within and all(
            abs(level - at) >= _LINE or start >= right + _GAP or left >= start + width + _GAP
            for left, right, at in self._placed
        )

    def _hides(self, start: float, width: float, level: float) -> bool:
        """Return whether a label would lie on a point; its letters reach from 9 above its base line to 3 below."""
        return any(start - 4 < x < start + width + 4 and level - 12 < y < level + 6 for x, y in self._points)
