"""The constants of `bench.memory_model.RULES`, fitted on measured peaks; and what they would be without one model.

    measured = simulated + constants . counts + miss

Least squares without negative constants, each miss divided by 25 % of the peak, or 5 MB where that is more, so that
large peaks do not outweigh small ones.  Misses beyond that count by their size, not its square (soft L1): one peak that
the C library's luck decided should not move the constants of all models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from tsexport.bench.memory_model import Rules

MB = 1_000_000
LARGE_BYTES = 20 * MB
LARGE_SHARE = 0.25
SMALL_BYTES = 5 * MB
STEP_BYTES = 1000
"""Constants are rounded to this."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """One measured peak, what the simulation gives for it, and how often each constant counts."""

    name: str
    weights_bytes: int
    measured_bytes: int
    simulated_bytes: int
    counts: tuple[float, ...]

    @property
    def unit_bytes(self) -> float:
        """What its miss is counted in."""
        return max(LARGE_SHARE * self.measured_bytes, SMALL_BYTES)


def allowed_bytes(weights_bytes: int, measured_bytes: int) -> float:
    """Return how far an estimate may be off, in bytes."""
    return LARGE_SHARE * measured_bytes if weights_bytes >= LARGE_BYTES else SMALL_BYTES


def fit(samples: Sequence[Sample]) -> Rules:
    """Return the constants that fit the samples of one runtime best."""
    scale = np.array([1 / one.unit_bytes for one in samples])
    counts = np.array([one.counts for one in samples], dtype=float)
    missing = np.array([one.measured_bytes - one.simulated_bytes for one in samples], dtype=float)
    if not samples:
        raise ValueError("there is no sample to fit constants on")
    units = counts * scale[:, None] * MB

    def misses(constants: FloatArray) -> FloatArray:
        found: FloatArray = units @ constants - missing * scale
        return found

    found = least_squares(misses, np.ones(units.shape[1]), bounds=(0, np.inf), loss="soft_l1").x
    counted = units.any(axis=0)
    return Rules(*(float(round(value * MB / STEP_BYTES) * STEP_BYTES) for value in found * counted))


def held_out(samples: Sequence[Sample]) -> dict[str, Rules]:
    """Return, for each model, the constants that fit the others best."""
    return {
        name: fit([one for one in samples if one.name != name]) for name in dict.fromkeys(one.name for one in samples)
    }
