"""What structured pruning removed and what it left, for the report and to do it again.

A `Removal` is all that is needed to remove the same channels from the same model: removals are applied in order, and
the channels of each are counted in what the ones before it left.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["channels", "heads"]


@dataclass(frozen=True)
class Removal:
    """Channels of one layer, or heads of one attention, that were removed with all that depends on them.

    `layer` is the module's name; `before` and `after` count its channels or heads; `coupled` names the other layers
    that lost the same outputs, `readers` those that lost inputs.
    """

    layer: str
    kind: Kind
    removed: tuple[int, ...]
    before: int
    after: int
    coupled: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Left:
    """A layer that was left as it is, and why."""

    layer: str
    reason: str
