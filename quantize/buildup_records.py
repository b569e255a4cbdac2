"""What errors that build up came to: K steps fed with their own output, and quantiles held against each other."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RolloutRecord:
    """K steps of an artifact against K steps of the source model, from the same windows.

    `errors[k]` is the relative RMS error of the output at step k + 1; the last one is held to `allowed`.  `feedback`
    says how an output becomes the next input.
    """

    artifact: str
    runtime: str
    steps: int
    windows: int
    feedback: str
    errors: tuple[float, ...]
    allowed: float


@dataclass(frozen=True)
class QuantileRecord:
    """The order and the coverage of an artifact's quantiles, beside the source model's.

    levels: as the model's configuration names them.  crossed: share of neighbouring pairs in the wrong order, of the
    artifact and of the source; new: share that crosses in the artifact and not in the source, held to `allowed`.
    coverage: share of labels at or below each level, for the artifact and for the source; () without labels.
    """

    artifact: str
    runtime: str
    levels: tuple[float, ...]
    windows: int
    crossed: float
    source_crossed: float
    new: float
    allowed: float
    coverage: tuple[float, ...] = ()
    source_coverage: tuple[float, ...] = ()
