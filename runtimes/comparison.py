"""Outputs compared elementwise under a named tolerance, and the relative RMS error.

    excess       = max |a - e| / (atol + rtol |e|)          a comparison passes where excess <= 1
    relative RMS = sqrt(mean((a - e)^2)) / sqrt(mean(e^2))

`e` is expected, `a` actual; both are compared in float64.  NaN, infinities, empty outputs, and shapes, dtypes or
names that differ fail with a reason and infinite errors: nothing that could not be compared passes.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from tsexport.types import Array, Comparison, Tolerance

TOLERANCES: Mapping[str, Tolerance] = MappingProxyType(
    {
        tolerance.name: tolerance
        for tolerance in (
            Tolerance("repeat", 0.0, 0.0, "the same session and feeds twice: the same bits"),
            Tolerance(
                "fp32-same-math", 2e-6, 1e-5, "the same kernels in another order: about 16 units of fp32 rounding"
            ),
            Tolerance(
                "fp32-export",
                3e-5,
                1e-4,
                "fused and reordered fp32 kernels; eight convolutions of up to 128 channels put eager itself 1.3e-5 "
                "from float64 and two runtimes as far from eager; PatchTST stays within 4e-6",
            ),
            Tolerance("golden", 1e-4, 1e-3, "fp32 on another machine, whose vector width orders every sum otherwise"),
        )
    }
)
"""The named tolerances.  Their atol is meant for outputs of RMS about 1; see `compare_outputs(scaled=True)`."""


def compare_outputs(
    expected: Mapping[str, Array], actual: Mapping[str, Array], tolerance: Tolerance, *, scaled: bool = False
) -> tuple[Comparison, ...]:
    """Return one comparison for each expected output, then one for each that was not expected.

    Args:
        expected: the reference's outputs by name.
        actual: the outputs under test by name.
        tolerance: the named tolerance; a user's own --atol and --rtol go here as they are.
        scaled: take atol in units of each output's RMS, so that outputs in pascal and outputs that are log returns are
            held to the same relative accuracy.  The comparison records the tolerance that was applied.
    """
    comparisons = []
    for name, values in expected.items():
        applied = scale_tolerance(tolerance, values) if scaled else tolerance
        if name in actual:
            comparisons.append(_compare(name, values, actual[name], applied))
        else:
            given = ", ".join(actual) or "nothing"
            comparisons.append(_failed(name, applied, f"the output is missing; given: {given}"))
    wanted = ", ".join(expected) or "nothing"
    comparisons += [
        _failed(name, tolerance, f"the output is not expected; expected: {wanted}")
        for name in actual
        if name not in expected
    ]
    return tuple(comparisons)


def relative_rms(expected: Array, actual: Array) -> float:
    """Return sqrt(mean((a - e)^2)) / sqrt(mean(e^2)), for real arrays of one shape.

    0 where both are all zero.  Infinite where only `expected` is all zero, where either holds NaN or infinities, and
    where the shapes differ or are empty.
    """
    if expected.shape != actual.shape or expected.size == 0:
        return math.inf
    e, a = expected.astype(np.float64), actual.astype(np.float64)
    if not (np.isfinite(e).all() and np.isfinite(a).all()):
        return math.inf
    error, reference = _rms(_difference(expected, actual)), _rms(e)
    if error == 0.0:
        return 0.0
    return error / reference if reference > 0.0 else math.inf


def scale_tolerance(tolerance: Tolerance, expected: Array) -> Tolerance:
    """Return the tolerance with its atol in units of an output's RMS (unscaled where that is not finite)."""
    rms = _rms(expected.astype(np.float64))
    return replace(tolerance, atol=tolerance.atol * rms) if math.isfinite(rms) else tolerance


def _compare(name: str, expected: Array, actual: Array, tolerance: Tolerance) -> Comparison:
    reason = _incomparable(expected, actual)
    if reason:
        return _failed(name, tolerance, reason)
    difference = _difference(expected, actual)
    allowed = tolerance.atol + tolerance.rtol * np.abs(expected.astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        excesses = np.where(difference == 0.0, 0.0, difference / allowed)  # 0 / 0 is no excess
    excess = float(excesses.max())
    passed = excess <= 1.0
    return Comparison(
        output=name,
        max_abs_error=float(difference.max()),
        relative_rms=relative_rms(expected, actual),
        excess=excess,
        tolerance=tolerance,
        passed=passed,
        reason="" if passed else _worst_element(expected, actual, int(excesses.argmax()), tolerance),
    )


def _incomparable(expected: Array, actual: Array) -> str:
    """Return why two arrays cannot be compared, or ""."""
    if actual.dtype != expected.dtype:
        return f"dtype {actual.dtype}, expected {expected.dtype}"
    if actual.shape != expected.shape:
        return f"shape {actual.shape}, expected {expected.shape}"
    if expected.size == 0:
        return f"shape {expected.shape} has no elements to compare"
    for which, array in (("expected", expected), ("actual", actual)):
        bad = int(np.size(array) - np.count_nonzero(np.isfinite(array)))
        if bad:
            return f"{bad} of {array.size} {which} values are NaN or infinite"
    return ""


def _difference(expected: Array, actual: Array) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):  # an infinite difference of two large values fails, as it should
        difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    if expected.dtype.kind in "iub":  # large integers that differ may be equal in float64
        difference = np.maximum(difference, (actual != expected).astype(np.float64))
    return np.asarray(difference, dtype=np.float64)


def _rms(values: NDArray[np.float64]) -> float:
    """Return sqrt(mean(v^2)), divided by the largest value first so that squares neither overflow nor vanish."""
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    return largest * float(np.sqrt(np.mean(np.square(values / largest))))


def _worst_element(expected: Array, actual: Array, flat_index: int, tolerance: Tolerance) -> str:
    index = tuple(int(i) for i in np.unravel_index(flat_index, expected.shape))
    return (
        f"at {list(index)} {actual[index]:.9g}, expected {expected[index]:.9g} within "
        f"atol {tolerance.atol:.3g} + rtol {tolerance.rtol:.3g} ({tolerance.name})"
    )


def _failed(name: str, tolerance: Tolerance, reason: str) -> Comparison:
    return Comparison(name, math.inf, math.inf, math.inf, tolerance, passed=False, reason=reason)
