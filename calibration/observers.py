"""Observers: from what was seen of a tensor to the range that 8 bits cover, and to scale and zero point."""

from tsexport.calibration.histograms import Counts
from tsexport.calibration.table import Observer


def range_of(seen: Counts, observer: Observer) -> tuple[float, float]:
    """Return (low, high) of one channel, low <= high; (-amax, amax) where the observer is symmetric."""
    low, high = seen.minimum, seen.maximum
    if observer.symmetric:
        amax = max(abs(low), abs(high))
        return -amax, amax
    return low, high
