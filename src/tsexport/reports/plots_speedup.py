"""Speed-ups of many bundles, each with its 95 % interval, on one axis."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tsexport.reports.plots import LABEL_CHARACTER, WIDTH, clipped, latency_axis, svg, text_at, vertical_grid

_LEFT, _RIGHT, _ROW, _AXIS = 10, 150, 36, 42
_SMALLEST = 0.01
"""An interval that reaches down to nothing is cut at this share of its value."""


@dataclass(frozen=True)
class SpeedupBar:
    """A speed-up and its interval; `high` is None where there were too few rounds for one."""

    label: str
    text: str
    value: float
    low: float
    high: float | None


def speedup_plot(bars: Sequence[SpeedupBar], title: str, width: int = WIDTH) -> str:
    """Return a row for each bar: a point, its interval, and its numbers; the line at 1 is as fast as fp32."""
    highs = [bar.value if bar.high is None else bar.high for bar in bars]
    lows = [bar.value if bar.high is None else max(bar.low, _SMALLEST * bar.value) for bar in bars]
    right = width - _RIGHT
    axis = latency_axis(0.95 * min(1.0, *lows), 1.05 * max(1.0, *highs), _LEFT, right)
    height = _ROW * len(bars) + _AXIS
    bottom = height - _AXIS + 6
    parts = [
        vertical_grid(axis, 0, bottom),
        text_at(right, height - 4, "times as fast as fp32", "end"),
        f'<line class="unity" x1="{axis(1.0):.1f}" x2="{axis(1.0):.1f}" y1="0" y2="{bottom:.1f}"/>',
    ]
    for number, bar in enumerate(bars):
        y = _ROW * number + 26.0
        kind = "faster" if bar.high is not None and bar.low > 1 else "slower" if (bar.high or 1) < 1 else "even"
        label = text_at(_LEFT, y - 12, clipped(bar.label, int((width - 2 * _LEFT) / LABEL_CHARACTER)), "start", "label")
        parts.append(f'<g class="speedup {kind}">{label}')
        if bar.high is not None:
            parts.append(
                f'<line class="interval" x1="{axis(bar.low):.1f}" x2="{axis(bar.high):.1f}" y1="{y}" y2="{y}"/>'
            )
        parts.append(
            f'<circle cx="{axis(bar.value):.1f}" cy="{y}" r="5"><title>{escape(bar.label)}: {escape(bar.text)}</title>'
            f"</circle>{text_at(right + 14, y + 4, bar.text, 'start', 'value')}</g>"
        )
    return svg(parts, height, title, width)
