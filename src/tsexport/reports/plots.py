"""What every plot of the report is made of: axes, ticks, text, and the frame of an inline SVG.

Plots are drawn here rather than by a plotting library, since a page with an inlined library weighs 1 to 5 MB and these
weigh 2 to 20 KB each.  Each is drawn twice, WIDTH and NARROW wide, and the page's CSS shows the one that fits: a plot
that is shrunk to a phone cannot be read, and one that is scrolled hides its numbers.  Colours come from the page's CSS
classes, so that they follow light, dark and print; nothing has a style of its own, which the page's security policy
would refuse.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 720
NARROW = 400
LABEL_CHARACTER = 7.2
"""Pixels of a character of a label, at most: what is longer is clipped."""
LOG_FROM = 8.0
"""An axis whose ends are this many times apart is logarithmic."""
TICK_DIGITS = 12
"""Decimal places of a tick; what lies closer together than a few of them gets no ticks between."""
_TITLE = re.compile("<title>[^<]*</title>")
SMALLEST_SPAN = 10.0 ** (1 - TICK_DIGITS)


@dataclass(frozen=True)
class Axis:
    """Data from `start` to `end` onto pixels from `first` to `last`; what lies beyond is put onto the rim.

    `ticks` are the data values that get a line and a number.  A logarithmic axis takes values above 0.
    """

    start: float
    end: float
    first: float
    last: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        value = min(max(value, self.start), self.end)
        if self.logarithmic:
            share = math.log(value / self.start) / math.log(self.end / self.start)
        else:
            share = (value - self.start) / (self.end - self.start)
        return self.first + (self.last - self.first) * share


def axis_from_zero(largest: float, first: float, last: float) -> Axis:
    """Return a linear axis from 0 to a round number's tick or a little above the largest value."""
    ticks = nice_ticks(0.0, largest)
    return Axis(0.0, max(largest, ticks[-1]), first, last, tuple(ticks))


def latency_axis(smallest: float, largest: float, first: float, last: float) -> Axis:
    """Return an axis for values above 0: from zero, or logarithmic where they are LOG_FROM times apart."""
    if largest < LOG_FROM * smallest:
        return axis_from_zero(largest, first, last)
    return Axis(smallest, largest, first, last, tuple(log_ticks(smallest, largest)), logarithmic=True)


def nice_ticks(start: float, end: float, count: int = 6) -> list[float]:
    """Return about `count` round numbers (1, 2 or 5 times a power of ten) from `start` to `end`."""
    span = end - start
    if not span > SMALLEST_SPAN:
        return [start]
    step = 10.0 ** math.floor(math.log10(span / count))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= count)
    first, last = math.ceil(start / step - 1e-9), math.floor(end / step + 1e-9)
    return [round(index * step, TICK_DIGITS) for index in range(first, last + 1)]


def log_ticks(start: float, end: float, count: int = 7) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten from `start` to `end`; where those are too many, fewer of them."""
    powers = range(math.floor(math.log10(start)), math.ceil(math.log10(end)) + 1)
    found: list[float] = []
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [round(factor * 10.0**power, TICK_DIGITS) for power in powers for factor in factors]
        found = [tick for tick in ticks if start * (1 - 1e-9) <= tick <= end * (1 + 1e-9)]
        if len(found) <= count:
            return found
    return found[:: -(-len(found) // count)]


def vertical_grid(axis: Axis, top: float, bottom: float) -> str:
    """Return a line and a number below it for each tick of a horizontal axis."""
    return "".join(
        f'<line class="grid" x1="{axis(tick):.1f}" x2="{axis(tick):.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'
        + text_at(axis(tick), bottom + 16, f"{tick:g}", "middle", "tick")
        for tick in axis.ticks
    )


def horizontal_grid(axis: Axis, left: float, right: float, unit: str) -> str:
    """Return a line and a number to the left of it for each tick of a vertical axis."""
    return "".join(
        f'<line class="grid" x1="{left}" x2="{right}" y1="{axis(tick):.1f}" y2="{axis(tick):.1f}"/>'
        + text_at(left - 6, axis(tick) + 4, f"{tick:g}{unit}", "end", "tick")
        for tick in axis.ticks
    )


def text_at(x: float, y: float, text: str, anchor: str, kind: str = "axis") -> str:
    """Return a line of text; `anchor` is "start", "middle" or "end", `kind` a CSS class."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def clipped(text: str, characters: int) -> str:
    """Return text of at most so many characters, its middle left out: names differ at both ends."""
    if len(text) <= characters:
        return text
    kept = characters - 1
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


def at_both_widths(draw: Callable[[int], str]) -> str:
    """Return a plot WIDTH wide and the same NARROW wide, of which the page shows one.

    The narrow one has no titles of points: they are shown under a pointer, which a phone does not have.
    """
    return draw(WIDTH) + _TITLE.sub("", draw(NARROW))


def svg(parts: Sequence[str], height: float, title: str, width: int = WIDTH) -> str:
    """Return the plot; `title` is what a screen reader says of it."""
    kind = "plot" if width == WIDTH else "plot narrow"
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(title, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )
