"""The files of a folder of kept results: which are recordings, which are baselines, and which are neither and why."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tsexport.bench.kept_records import BASELINE, Baseline, KeptRecord, read_baseline, read_kept
from tsexport.bench.scenario_records import FOLDER
from tsexport.errors import BundleError, UsageError, did_you_mean

LAYOUT = "<bundle>/<machine>/<time>-<commit>-<digest>.json"
_SHOWN = 3


@dataclass(frozen=True)
class Recording:
    """A record with the name of its file."""

    file: str
    kept: KeptRecord

    @property
    def place(self) -> tuple[str, str]:
        """The bundle and the machine, by which recordings are compared."""
        return self.kept.bundle, self.kept.record.machine.machine_id


@dataclass(frozen=True)
class SkippedFile:
    """A file that is no recording, by its path within the folder, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Recordings:
    """What a folder holds: recordings oldest first, baselines by (bundle, machine), and what was skipped."""

    recordings: tuple[Recording, ...]
    baselines: tuple[Baseline, ...]
    skipped: tuple[SkippedFile, ...]

    def baseline_of(self, place: tuple[str, str]) -> Baseline | None:
        """Return the baseline of (bundle, machine)."""
        return next((one for one in self.baselines if (one.bundle, one.machine_id) == place), None)


def read_recordings(folder: Path, *, bundle: str | None = None, machine: str | None = None) -> Recordings:
    """Return the recordings of a folder.

    Args:
        folder: what `tsexport bench --record` was given.
        bundle: this bundle's alone.
        machine: those of the machine whose id begins so alone.

    Raises:
        UsageError: no folder, no recording in it, or none of that bundle or machine.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", next_step="name the folder that `tsexport bench --record` was given")
    try:
        found = _read_all(folder)
    except OSError as error:
        raise UsageError(f"{folder} cannot be read: {error.strerror}") from error
    if not found.recordings:
        raise UsageError(
            f"{folder} holds no recordings, which lie as {LAYOUT}{_some(found.skipped)}",
            next_step="make one with `tsexport bench BUNDLE --record DIR`",
        )
    return _narrowed(found, bundle, machine)


def _some(skipped: tuple[SkippedFile, ...]) -> str:
    if not skipped:
        return ""
    more = f", and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
    return "; skipped: " + "; ".join(f"{one.path} ({one.reason})" for one in skipped[:_SHOWN]) + more


def _narrowed(found: Recordings, bundle: str | None, machine: str | None) -> Recordings:
    bundles = sorted({one.kept.bundle for one in found.recordings})
    if bundle is not None and bundle not in bundles:
        raise UsageError(
            f"there is no recording of bundle {bundle!r}{did_you_mean(bundle, bundles)}; there are {', '.join(bundles)}"
        )
    kept = [one for one in found.recordings if bundle in (None, one.kept.bundle)]
    machines = sorted({one.place[1] for one in kept})
    if machine is not None and (not machine or not any(one.startswith(machine) for one in machines)):
        raise UsageError(
            f"there is no recording of machine {machine!r}{did_you_mean(machine, machines)}; "
            f"there are {', '.join(machines)}"
        )
    kept = [one for one in kept if machine is None or one.place[1].startswith(machine)]
    places = {one.place for one in kept}
    baselines = tuple(one for one in found.baselines if (one.bundle, one.machine_id) in places)
    return Recordings(tuple(kept), baselines, found.skipped)


def _read_all(folder: Path) -> Recordings:
    recordings: list[Recording] = []
    baselines: list[Baseline] = []
    skipped: list[SkippedFile] = []
    for path in _files(folder):
        where = path.relative_to(folder)
        if where.parts[1:-1] == (FOLDER,):  # `bench --scenario --record` keeps its results in the same place
            continue
        try:
            if len(where.parts) != 3 or path.suffix != ".json" or not path.is_file():
                raise BundleError(f"no recording: those lie as {LAYOUT}")
            if path.name == BASELINE:
                baselines.append(_baseline(path))
            else:
                recordings.append(Recording(path.name, _kept(path)))
        except BundleError as error:
            skipped.append(SkippedFile(where.as_posix(), error.message))
    recordings.sort(key=lambda one: (one.kept.recorded_at, one.file))
    return Recordings(tuple(recordings), tuple(baselines), tuple(skipped))


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder by name; what begins with a dot is half-written, or another tool's."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        else:
            yield path


def _kept(path: Path) -> KeptRecord:
    kept = read_kept(path)
    _check_place(path, kept.bundle, kept.record.machine.machine_id)
    for one in kept.record.measurements:
        if not one.samples_ms or min(one.samples_ms) <= 0:
            raise BundleError(f"{one.artifact} on {one.runtime} at batch {one.batch} has no valid samples")
    return kept


def _baseline(path: Path) -> Baseline:
    baseline = read_baseline(path)
    _check_place(path, baseline.bundle, baseline.machine_id)
    if any(one.median_ms <= 0 for one in baseline.entries):
        raise BundleError("a latency of the baseline is not above 0")
    return baseline


def _check_place(path: Path, bundle: str, machine: str) -> None:
    if (bundle, machine) != path.parts[-3:-1]:
        raise BundleError(f"it says that it is of {bundle} on machine {machine}, and lies elsewhere")
