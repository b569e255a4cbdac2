"""Which fp32 artifacts go on after a judgement, and what is said of the others."""

from collections.abc import Mapping

from tsexport.errors import AccuracyError
from tsexport.stages.measuring import Placed


def keep_held(
    misses: Mapping[Placed, str], none_held: str, next_step: str
) -> tuple[tuple[Placed, ...], tuple[str, ...]]:
    """Return the artifacts that miss nothing ("" is their miss), and why the others are left out.

    Raises:
        AccuracyError: none is left; `none_held` says so, and every miss is named.
    """
    held = tuple(one for one, miss in misses.items() if not miss)
    left_out = tuple(f"{one.label} is left out: {miss}" for one, miss in misses.items() if miss)
    if not held:
        raise AccuracyError(f"{none_held}: " + "; ".join(left_out), next_step=next_step)
    return held, left_out
