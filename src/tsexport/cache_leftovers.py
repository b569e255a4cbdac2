"""The hidden names beside a cache entry, and the removal of what killed processes left under them.

What belongs to a key whose lock nobody holds is a leftover.  What was made without a lock goes by its age, and so do
the folders of older versions.
"""

import contextlib
import os
import re
import secrets
import shutil
import time
from pathlib import Path

from tsexport.locks import holding

LEFTOVER_SECONDS = 86_400.0
"""Age at which a folder that was made without a lock is a leftover."""
_LOCK, _UNLOCKED = ".lock", ".unlocked"
_HIDDEN = re.compile(r"\.(?P<key>[0-9a-f]{64})(?:\.lock|-[0-9a-f]{8}(?P<unlocked>\.unlocked)?)")
_OLDER_HIDDEN = re.compile(r"\.[0-9a-f]{8}-\w{8}")


def lock_of(place: Path) -> Path:
    """Return where the lock of an entry's key lies."""
    return place.with_name(f".{place.name}{_LOCK}")


def aside_of(place: Path, is_locked: bool) -> Path:
    """Return a new name beside an entry, which says whose leftover it will be."""
    return place.with_name(f".{place.name}-{secrets.token_hex(4)}{'' if is_locked else _UNLOCKED}")


def remove(path: Path) -> None:
    """Remove a file or folder, whatever permissions are left of it."""
    if path.is_symlink() or not path.is_dir():
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.chmod(0o700)  # where it is still there, a folder may not be entered
        for folder, inside, _ in os.walk(path):
            for one in (Path(folder, name) for name in inside):
                if not one.is_symlink():
                    one.chmod(0o700)
        shutil.rmtree(path, ignore_errors=True)


def remove_leftovers(folder: Path, mine: str | None) -> None:
    """Remove what killed processes left in a stage's folder; `mine` is the key whose lock is held here."""
    keys: set[str] = set()
    for path in folder.glob(".*"):
        match = _HIDDEN.fullmatch(path.name)
        if match is not None and not match["unlocked"]:
            keys.add(match["key"])
        elif (match is not None or _OLDER_HIDDEN.fullmatch(path.name)) and _is_old(path):
            remove(path)
    for key in keys:
        if key == mine:
            _remove_made(folder, key)
            continue
        with holding(lock_of(folder / key)) as state:
            if state == "held":
                _remove_made(folder, key)


def _remove_made(folder: Path, key: str) -> None:
    for path in folder.glob(f".{key}-*"):
        if not path.name.endswith(_UNLOCKED):
            remove(path)


def _is_old(path: Path) -> bool:
    """Return whether a day lies between now and the last change, either way: a clock may have been set back."""
    with contextlib.suppress(OSError):
        return abs(time.time() - path.stat().st_mtime) > LEFTOVER_SECONDS
    return False
