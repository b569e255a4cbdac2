"""Records that are added to a finished bundle: into `measurements/`, with the report and their own list of digests.

No other file of the bundle changes, so a signature holds as before.  All of it changes in one step: the bundle's folder
changes places with a copy of it that has the records.
"""

from collections.abc import Callable
from pathlib import Path

from tsexport.bundles.bundle import Bundle, open_bundle
from tsexport.bundles.checksums import MEASUREMENTS, REPORT, seal_measurements
from tsexport.bundles.staging import edited_bundle
from tsexport.bundles.structure import check_structure
from tsexport.codec import write_whole
from tsexport.errors import UsageError
from tsexport.reports.writing import render_report


def require_unpacked(bundle: Bundle) -> None:
    """Raise where nothing can be added.

    Raises:
        UsageError: the bundle is an archive.
    """
    if bundle.source != bundle.path:
        raise UsageError(
            f"{bundle.source} is an archive, which nothing can be attached to",
            next_step="unpack it, attach to the folder, and pack it again",
        )


def add_records(root: Path, write: Callable[[Path], tuple[Path, ...]]) -> tuple[str, ...]:
    """Add records to a bundle; return their paths within it.  Two at once wait for each other.

    Args:
        root: the bundle's folder, with no link in its path.
        write: writes the records into the folder `measurements/` that it is given, each as a file of its own, and
            returns their paths; it finds what was added before.

    Raises:
        BundleError: the bundle is damaged, or the report cannot be made of it.
        UsageError: the bundle cannot be written to.
    """
    try:
        with edited_bundle(root) as copy:
            check_structure(open_bundle(root))
            added = tuple(path.relative_to(copy).as_posix() for path in write(copy / MEASUREMENTS))
            seal_measurements(copy)  # the report is rendered from the bundle as a reader will find it
            write_whole(copy / REPORT, render_report([open_bundle(copy)]))
            seal_measurements(copy)
    except OSError as error:
        raise UsageError(
            f"the bundle {root.name} cannot be written to: {error.strerror}",
            next_step="free some space, or attach to a copy in a folder that can be written to",
        ) from error
    return added
