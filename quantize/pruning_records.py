"""What structured pruning removed and what it left, for the report and to do it again.

A `Removal` is all that is needed to remove the same channels from the same model: removals are applied in order, and
the channels of each are counted in what the ones before it left.
"""

from dataclasses import dataclass
from typing import Literal

from tsexport.types import Accuracy

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


@dataclass(frozen=True)
class Refitted:
    """One layer of a refit: the relative RMS difference of its answers from the whole model's, before and after, on the
    rows it was fitted to; `reason` says why it was not fitted, "" where it was."""

    layer: str
    before: float
    after: float
    reason: str = ""


@dataclass(frozen=True)
class Change:
    """A number of the whole model and of the pruned one; None where it is not known."""

    before: int | None
    after: int | None

    @property
    def share_removed(self) -> float | None:
        """Return (before - after) / before."""
        return None if self.before is None or self.after is None else (self.before - self.after) / max(self.before, 1)


@dataclass(frozen=True)
class PruningRecord:
    """What pruning did to a model, for the manifest.

    channels, heads: summed over the groups that lost some.  flops: of one sample, convolutions and matrix products,
    a multiplication and an addition counting as two.  size_bytes: of the fp32 ONNX files.  accuracy: of the pruned
    torch model against the whole one, on windows that calibration did not see; `unrefitted` is the same before the
    refit.  removals, left, refits: layer by layer.
    """

    fraction: float
    channels: Change
    heads: Change
    parameters: Change
    flops: Change
    size_bytes: Change
    accuracy: Accuracy
    unrefitted: Accuracy
    removals: tuple[Removal, ...]
    left: tuple[Left, ...]
    refits: tuple[Refitted, ...]

    @property
    def recovered(self) -> float:
        """Return which share of the output error that pruning caused the refit took back."""
        caused = self.unrefitted.output_error
        return (caused - self.accuracy.output_error) / caused if caused else 0.0
