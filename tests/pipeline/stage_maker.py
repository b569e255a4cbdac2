"""Run by tests of the cache in processes of their own: make one entry.

usage: stage_maker.py ROOT HOW, HOW being "slow" (a second), "told" (writes a file, says "half", and goes on when it is
told to by a line) or "failing" (the same, but it raises).  Prints whether the entry was reused, and its size.
"""

import sys
import time
from pathlib import Path

from tsexport.cache import Cache
from tsexport.errors import ExportError
from tsexport.stages.samples import DataRecord

HOW = sys.argv[2]


def produce(folder: Path) -> DataRecord:
    (folder / "data.bin").write_bytes(b"x" * 100_000)
    if HOW == "slow":
        time.sleep(1)
    else:
        print("half", flush=True)
        sys.stdin.readline()
    if HOW == "failing":
        raise ExportError("it cannot be made")
    return DataRecord("made", "0" * 64, 1, "0")


def say(line: str) -> None:
    print(line, flush=True)


made = Cache(Path(sys.argv[1]), say).stage("probe", {"n": 1}, DataRecord, produce)
print(made.reused, (made.folder / "data.bin").stat().st_size)
