"""What the process that asks holds in memory: now, and at most; from Linux's own counts, or what other systems tell.

The kernel's exact count is that of `smaps_rollup`: the one that `ps` shows lags by some pages a thread.  The most is
the high-water mark of this process image; getrusage would not do on Linux, where the mark survives exec and a child
would inherit its parent's.
"""

import sys
from pathlib import Path

EXACT = Path("/proc/self/smaps_rollup")
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """Return what this process holds now; exact on Linux 4.14 and later."""
    if EXACT.exists():
        return _kilobytes(EXACT, "Rss:")
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """Return the most that this process ever held, on Linux since the last `reset_peak`."""
    if _STATUS.exists():
        return _kilobytes(_STATUS, "VmHWM:")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak() -> None:
    """Set the high-water mark back to what this process holds now; Linux alone can."""
    _CLEAR.write_text("5")


def _kilobytes(path: Path, key: str) -> int:
    line = next(line for line in path.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
