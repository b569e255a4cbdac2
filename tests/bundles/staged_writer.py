"""A build that stops where it is told, to be killed there: staged_writer.py DESTINATION POINT [edit].

Prints "at POINT" and waits.  POINT is "writing", "sealed" (before the rename), "exchanged" (old and new have changed
places, the old one is not removed yet) or "between" (between the two renames of a file system without an exchange).
With "edit" the bundle that stands there is changed in place of a new one.
"""

import sys
import time
from pathlib import Path

from tsexport.bundles import staging
from tsexport.bundles.checksums import seal


def stop(point):
    print(f"at {point}", flush=True)
    time.sleep(600)


def main(destination, point, *edit):
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
    with staging.edited_bundle(destination) if edit else staging.staged_bundle(destination, force=True) as folder:
        if edit:
            (folder / "manifest.json").unlink()  # the link: what it leads to is the old bundle's
            (folder / "weights").unlink()
        (folder / "manifest.json").write_text("new")
        if point == "writing":
            stop(point)
        (folder / "weights").write_bytes(b"new" * 1000)
        if edit:
            seal(folder)


main(Path(sys.argv[1]), *sys.argv[2:])
