"""Run by tests of the cache in processes of their own: make one entry, slowly or half.

usage: stage_maker.py ROOT HOW, HOW being "slow" (a second) or "half" (writes a file, says so, and waits to be killed)
"""

import sys
import time
from pathlib import Path

from tsexport.cache import Cache
from tsexport.samples import DataRecord


def produce(folder: Path) -> DataRecord:
    (folder / "data.bin").write_bytes(b"x" * 100_000)
    if sys.argv[2] == "half":
        print("half", flush=True)
        time.sleep(60)
    time.sleep(1)
    return DataRecord("made", "0" * 64, 1, "0")


made = Cache(Path(sys.argv[1])).stage("probe", {"n": 1}, DataRecord, produce)
print(made.reused, (made.folder / "data.bin").stat().st_size)
