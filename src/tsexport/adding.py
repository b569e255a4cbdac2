"""Records that are added to a finished bundle: into `measurements/`, with the report and their own list of digests.

No other file of the bundle changes, so a signature holds as before.  What is new is made beside the old and renamed
over it, the list of digests last; whoever adds holds the bundle's lock meanwhile.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tsexport.bundles import Bundle, open_bundle
from tsexport.checksums import MEASUREMENT_SUMS, MEASUREMENTS, REPORT, check_sums, seal_measurements
from tsexport.errors import UsageError
from tsexport.manifest import MANIFEST, SELECTION
from tsexport.reporting import render_report
from tsexport.staging import locked

_HIDDEN = ".attaching-"


def require_folder(bundle: Bundle) -> None:
    """Raise where nothing can be added.

    Raises:
        UsageError: the bundle is an archive.
    """
    if bundle.source != bundle.path:
        raise UsageError(
            f"{bundle.source} is an archive, which nothing can be attached to",
            next_step="unpack it, attach to the folder, and pack it again",
        )


@contextlib.contextmanager
def open_for_adding(root: Path) -> Iterator[None]:
    """Hold a bundle's folder for one that adds, free of what a killed one left, its digests checked.

    Raises:
        BundleError: the bundle is damaged.
    """
    with locked(root):  # two at once would each list the digests without the other's
        for path in root.glob(f"{_HIDDEN}*"):
            shutil.rmtree(path, ignore_errors=True)
        check_sums(root)
        yield


def add_records(root: Path, write: Callable[[Path], tuple[Path, ...]]) -> tuple[str, ...]:
    """Add records to a bundle that is held by `open_for_adding`; return their paths within it.

    Args:
        write: writes the records into the folder `measurements/` that it is given, and returns their paths.

    Raises:
        BundleError: the report cannot be made of the bundle.
        UsageError: the bundle cannot be written to.
    """
    try:
        shadow = Path(tempfile.mkdtemp(prefix=_HIDDEN, dir=root))
        try:
            for name in (MANIFEST, SELECTION):
                shutil.copyfile(root / name, shadow / name)
            shutil.copytree(root / MEASUREMENTS, shadow / MEASUREMENTS)
            added = tuple(path.relative_to(shadow).as_posix() for path in write(shadow / MEASUREMENTS))
            (shadow / REPORT).write_text(render_report([open_bundle(shadow)]), encoding="utf-8")
            seal_measurements(shadow)
            for name in (*added, REPORT, MEASUREMENT_SUMS):
                (root / name).parent.mkdir(exist_ok=True)
                (shadow / name).chmod(0o644)
                (shadow / name).replace(root / name)
        finally:
            shutil.rmtree(shadow, ignore_errors=True)
    except OSError as error:
        raise UsageError(
            f"the bundle {root.name} cannot be written to: {error.strerror}",
            next_step="free some space, or attach to a copy that can be written to",
        ) from error
    return added
