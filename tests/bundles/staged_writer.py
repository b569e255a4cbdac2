"""A build that stops where it is told, to be killed there: staged_writer.py DESTINATION POINT.

Prints "at POINT" and waits.  POINT is "writing", "sealed" (before the rename), "exchanged" (old and new have changed
places, the old one is not removed yet) or "between" (between the two renames of a file system without an exchange).
"""

import sys
import time
from pathlib import Path

from tsexport import staging


def stop(point):
    print(f"at {point}", flush=True)
    time.sleep(60)


def main(destination, point):
    if point == "sealed":
        publish = staging._publish
        staging._publish = lambda *paths: (stop(point), publish(*paths))
    if point == "exchanged":
        sync = staging._sync
        staging._sync = lambda path: (stop(point) if path == destination.parent else None, sync(path))
    if point == "between":
        staging._exchange = lambda one, other: False
        rename = Path.rename
        Path.rename = lambda path, to: (stop(point) if path.suffix == ".building" else None, rename(path, to))
    with staging.staged_bundle(destination, force=True) as folder:
        (folder / "manifest.json").write_text("new")
        if point == "writing":
            stop(point)
        (folder / "weights").write_bytes(b"new" * 1000)


main(Path(sys.argv[1]), sys.argv[2])
