"""SHA256SUMS: which files a bundle holds, and that they are the ones that were written.

Two lists, both in the format of `sha256sum -c`.  `SHA256SUMS` covers everything that does not depend on measuring;
`measurements/SHA256SUMS` covers `measurements/` and `report.html`.  Together they cover every file but themselves, so a
file that stands in neither was added.  `SHA256SUMS.sig` stands in neither: it is a signature of the first.
"""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tsexport.bundles.manifest import relative_path
from tsexport.codec import read_plain
from tsexport.errors import BundleError
from tsexport.types import file_sha256

SUMS = "SHA256SUMS"
SIGNATURE = f"{SUMS}.sig"
"""A signature of SHA256SUMS, where the bundle is signed; see `tsexport.bundles.signatures`."""
MEASUREMENTS = "measurements"
REPORT = "report.html"
MEASUREMENT_SUMS = f"{MEASUREMENTS}/{SUMS}"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_MAX_SUMS_BYTES = 16 * 2**20
_SHOWN = 5


def seal(root: Path) -> None:
    """Write both lists of a bundle's folder, anew.

    Raises:
        BundleError: the folder holds a link, something that is no plain file, or a name that a list cannot hold.
    """
    seal_measurements(root)
    names = [name for name in _files(root) if not _depends_on_measuring(name) and name not in (SUMS, SIGNATURE)]
    _write(root / SUMS, {name: name for name in names}, root)


def seal_measurements(root: Path) -> None:
    """Write the list of `measurements/` and `report.html` anew, for who adds a measurement to a finished bundle.

    Raises:
        BundleError: as `seal`.
    """
    (root / MEASUREMENTS).mkdir(exist_ok=True)
    names = [name for name in _files(root) if _depends_on_measuring(name) and name != MEASUREMENT_SUMS]
    shown = {name: "../" + name if name == REPORT else name.removeprefix(f"{MEASUREMENTS}/") for name in names}
    _write(root / MEASUREMENT_SUMS, shown, root)


def check_sums(root: Path) -> int:
    """Return how many files were checked: every file is listed, every listed file is there and unchanged.

    Raises:
        BundleError: changed, missing or added files, links, paths that leave the bundle, or a list that cannot be read.
    """
    present = set(_files(root))
    listed = read_sums(root) | _read_measurement_sums(root)
    problems = [f"missing: {name}" for name in sorted(listed.keys() - present)]
    problems += [f"added: {name}" for name in sorted(present - listed.keys() - {SUMS, MEASUREMENT_SUMS, SIGNATURE})]
    for name in sorted(listed.keys() & present):
        if _digest(root, name) != listed[name]:
            problems.append(f"changed: {name}")
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise BundleError(
            f"the bundle {root.name} is not as it was written: {'; '.join(problems[:_SHOWN])}{more}",
            next_step="do not use it; fetch it again or build it again",
        )
    return len(listed)


def check_files(root: Path, names: tuple[str, ...]) -> None:
    """Check only the named files against `SHA256SUMS`; for loading, where hashing the whole bundle would cost time.

    Raises:
        BundleError: one of them is not listed, missing, a link, cannot be read, or was changed.
    """
    listed = read_sums(root)
    for name in names:
        if name not in listed:
            raise BundleError(f"{name} does not stand in {SUMS} of the bundle {root.name}")
        _require_plain_file(root, name)
        if _digest(root, name) != listed[name]:
            raise BundleError(
                f"{name} of the bundle {root.name} is not the file that was written: its SHA-256 differs from {SUMS}",
                next_step="do not use it; fetch it again or build it again",
            )


def read_sums(root: Path) -> dict[str, str]:
    """Return SHA256SUMS as relative path -> SHA-256.

    Raises:
        BundleError: the list is missing or malformed, or a path leaves the bundle.
    """
    found: dict[str, str] = {}
    for digest, name in _lines(root / SUMS, SUMS):
        relative_path(name, what=SUMS)
        if _depends_on_measuring(name):
            raise BundleError(f"{SUMS} lists {name}, which belongs to {MEASUREMENT_SUMS}")
        found[name] = digest
    return found


def _read_measurement_sums(root: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for digest, name in _lines(root / MEASUREMENT_SUMS, MEASUREMENT_SUMS):
        if name != f"../{REPORT}":
            relative_path(name, what=MEASUREMENT_SUMS)
        found[REPORT if name.startswith("../") else f"{MEASUREMENTS}/{name}"] = digest
    return found


def _lines(path: Path, what: str) -> Iterator[tuple[str, str]]:
    try:
        text = read_plain(path, what=what, most_bytes=_MAX_SUMS_BYTES).decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{what} cannot be read: {error}") from None
    seen = set()
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in seen:
            raise BundleError(f"{what} line {number} is not '<sha256>  <path>' with a path of its own: {line[:80]!r}")
        seen.add(match[2])
        yield match[1], match[2]


def _files(root: Path) -> Iterator[str]:
    """Yield every file under the folder, relative and sorted within its folder; refuse what is no plain file."""
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as entries:
                found = sorted((entry.name, entry.stat(follow_symlinks=False).st_mode) for entry in entries)
        except OSError as error:
            raise _unreadable(root, folder, error) from None
        for own_name, mode in found:
            name = f"{folder}/{own_name}" if folder else own_name
            if stat.S_ISDIR(mode):
                folders.append(name)
            elif stat.S_ISREG(mode):
                yield name
            else:
                kind = "a link" if stat.S_ISLNK(mode) else "no plain file"
                raise BundleError(f"{name} of the bundle {root.name} is {kind}; bundles hold plain files only")


def _require_plain_file(root: Path, name: str) -> None:
    path = PurePosixPath(name)
    try:
        for part in (path, *path.parents):
            if str(part) != "." and (root / part).is_symlink():
                raise BundleError(f"{part} of the bundle {root.name} is a link; bundles hold plain files only")
        there = (root / name).is_file()
    except OSError as error:
        raise _unreadable(root, name, error) from None
    if not there:
        raise BundleError(f"the bundle {root.name} has no {name}", next_step="fetch it again or build it again")


def _digest(root: Path, name: str) -> str:
    try:
        return file_sha256(root / name)
    except OSError as error:
        raise _unreadable(root, name, error) from None


def _unreadable(root: Path, name: str, error: OSError) -> BundleError:
    return BundleError(
        f"{name or 'the folder'} of the bundle {root.name} cannot be read: {error.strerror}",
        next_step="see who may read it: `ls -l` shows owner and permissions",
    )


def _depends_on_measuring(name: str) -> bool:
    return name == REPORT or name.startswith(f"{MEASUREMENTS}/")


def _write(path: Path, shown: dict[str, str], root: Path) -> None:
    """Write a list, sorted; `shown` maps each file to the path under which the list names it."""
    for name in shown:
        relative_path(name, what="a file name in the bundle")
    lines = [f"{file_sha256(root / name)}  {label}\n" for name, label in sorted(shown.items())]
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.replace(path)
