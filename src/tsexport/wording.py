"""Figures and records in words, as reports, READMEs and the terminal show them."""

import json
from collections.abc import Mapping


def size_text(size_bytes: int) -> str:
    """Return a size with three digits, in units of 1000 bytes."""
    for factor, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.3g} {unit}"
    return f"{size_bytes} B"


def percent_text(value: float | None) -> str:
    """Return a fraction as percent with three digits; "n/a" for None, a bound for what is not 0 and far below."""
    if value is None:
        return "n/a"
    return "< 0.001 %" if 0 < abs(value) < 1e-5 else f"{100 * value:.3g} %"


def change_text(degradation: float) -> str:
    """Return a degradation in words: "0.8 % worse", "0.1 % better"."""
    return f"{percent_text(abs(degradation))} {'worse' if degradation >= 0 else 'better'}"


def figure_text(value: float | None) -> str:
    """Return a metric's value with six digits, "n/a" for None."""
    return "n/a" if value is None else f"{value:.6g}"


def count_text(count: int | str, one: str, many: str = "") -> str:
    """Return "1 layer", "2 layers"; `many` where the plural is more than an s."""
    return f"{count} {one if int(count) == 1 else many or f'{one}s'}"


def compact_json(value: object) -> str:
    """Return a recipe or a configuration on one line: "weights: u8, reduce_range: true"."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {compact_json(item)}" for key, item in value.items())
    if isinstance(value, tuple | list):
        return "[" + ", ".join(compact_json(item) for item in value) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def markdown_cell(value: object) -> str:
    """Return text that stays within its cell of a Markdown table."""
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
