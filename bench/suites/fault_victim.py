"""Run the command line so that it ends itself at one of its changes to files: what a kill at that point is.

usage: fault_victim.py PLAN ARGUMENT...

PLAN is a JSON file: `under` maps names to folders, `place` is one of the names or null, `at` which of the changes
under it ends the process, before it is done, and `signal` by which signal.  With `place` null nothing is ended, and at
the end the number of changes under each folder is written to `counts`.

Changes are what Python's audit events tell of: opening for writing, making, renaming, linking, removing, changing
modes.  What libraries in C write without Python is not seen, and is ended at moments instead (see faults.py).
"""

import json
import os
import sys
from pathlib import Path

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.chmod", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_EXCHANGE = "renameat2"


def _path_of(event: str, arguments: tuple[object, ...]) -> str | None:
    """Return the path that an event changes; "" for an exchange of two folders, None where it changes nothing."""
    if event == "ctypes.dlsym":
        return "" if arguments[1] == _EXCHANGE else None
    if event == "open":
        path, mode, flags = arguments
        writes = (isinstance(flags, int) and flags & _WRITING) or (isinstance(mode, str) and set(mode) & set("wxa+"))
        return str(path) if writes and isinstance(path, str | os.PathLike) else None
    if event not in _CHANGES:
        return None
    path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
    folder = arguments[-1]
    if not path.startswith("/") and isinstance(folder, int) and folder >= 0:
        return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)  # noqa: PTH118, PTH115  # no more events
    return os.path.abspath(path)  # noqa: PTH100


class Watch:
    """Counts the changes under each folder, and ends the process at the one that is due."""

    def __init__(self, under: dict[str, str], place: str | None, at: int, number: int) -> None:
        self._under, self._place, self._at, self._signal = under, place, at, number
        self.counts = dict.fromkeys(under, 0)
        self._busy = False

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self._busy or (event not in _CHANGES and event not in ("open", "ctypes.dlsym")):
            return
        self._busy = True
        try:
            self._count(_path_of(event, arguments))
        finally:
            self._busy = False

    def _count(self, path: str | None) -> None:
        if path is None:
            return
        for name, folder in self._under.items():
            if (path == "" and name == "output") or path.startswith(folder + "/"):
                self.counts[name] += 1
                if name == self._place and self.counts[name] == self._at:
                    print(f"\nvictim: {path or _EXCHANGE}", file=sys.stderr, flush=True)
                    os.kill(os.getpid(), self._signal)
                return


def main() -> None:
    """Watch, and run the command line."""
    from tsexport.cli import main as command_line

    plan = json.loads(Path(sys.argv[1]).read_text())
    watch = Watch(plan["under"], plan["place"], plan["at"], plan["signal"])
    sys.argv = ["tsexport", *sys.argv[2:]]
    sys.addaudithook(watch)
    try:
        command_line()
    finally:
        if plan["place"] is None:
            counted = dict(watch.counts)
            Path(plan["counts"]).write_text(json.dumps(counted))


if __name__ == "__main__":
    main()
