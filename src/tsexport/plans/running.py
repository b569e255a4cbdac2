"""Many builds at once, from the plan to the last row: `tsexport build --plan`.

What is there already stays, what cannot be built says why, and the rest goes to an executor.  A build that fails ends
no other one.  The file `running-<id>` beside the bundles is there as long as the plan runs: building processes, on
whatever machine, end without it.
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsexport.bundles.staging import check_folder, remove_leftovers
from tsexport.errors import UsageError, did_you_mean
from tsexport.plans.checking import CheckedBuild, check_plan
from tsexport.plans.local import build_here, jobs_here
from tsexport.plans.progress import PlanProgress
from tsexport.plans.records import EXECUTORS, Executor, PlanResult, Row
from tsexport.plans.state import FOLDER, begin, place_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class HowToBuild:
    """Where and how many: `jobs` builds at once, None for as many as this machine takes.

    scheduler: the address of a Dask scheduler; None for a cluster of processes on this machine.
    force: bundles that are there are built anew.
    """

    executor: str = "local"
    jobs: int | None = None
    scheduler: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            hint = did_you_mean(self.executor, EXECUTORS)
            raise UsageError(f"executor is {self.executor!r}{hint}; allowed are {', '.join(EXECUTORS)}")
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"jobs is {self.jobs}; allowed are whole numbers from 1 on")
        if self.scheduler is not None and self.executor != "dask":
            raise UsageError(
                f"the scheduler {self.scheduler} was given, and the executor is {self.executor}",
                next_step="give --executor dask with it",
            )


def build_plan(
    plan: str | Path,
    *,
    output: str | Path | None = None,
    executor: str = "local",
    jobs: int | None = None,
    scheduler: str | None = None,
    force: bool = False,
    quiet: bool = True,
) -> PlanResult:
    """Build what a plan file names and what is not there yet; see the result's `rows` and `exit_code`.

    Nothing is raised for a build that fails: its row says why.

    Args:
        plan: a TOML file, as docs/plans.md says.
        output: the folder that gets the bundles' folders, in place of the plan's.
        executor: "local", or "dask" with the extra `dask`.
        jobs: builds at once; by default as many as fit on this machine.
        scheduler: the address of a Dask scheduler; by default a cluster of processes on this machine.
        force: bundles that are there are built anew.
        quiet: show no progress on stderr.

    Raises:
        UsageError: the file or an option cannot be used, two builds give the same bundle, or the cluster cannot be.
        MissingDependencyError: the extra `build` or `dask` is not installed.
    """
    over = {} if output is None else {"output": Path(output)}
    return run_plan(Path(plan), over, HowToBuild(executor, jobs, scheduler, force), quiet=quiet)


def show_plan(path: Path, over: Mapping[str, Any], how: HowToBuild) -> PlanResult:
    """Return what would be done, and do nothing.

    Raises:
        UsageError: as `run_plan`.
    """
    checked = check_plan(path, over, force=how.force)
    return PlanResult(str(path), _executor(how), tuple(one.row for one in checked), 0.0)


def run_plan(
    path: Path, over: Mapping[str, Any], how: HowToBuild, *, quiet: bool = False, say: Say = lambda line: None
) -> PlanResult:
    """Build what a plan names and what is not there yet; return the rows of all builds, in the plan's order.

    Args:
        path: the plan file.
        over: options of the command line as keyword arguments of `BuildOptions`, which win.
        how: where, and how many at once.
        quiet: show no progress on stderr.
        say: told what a person should know.

    Raises:
        UsageError: the file cannot be used, two builds give the same bundle, an output folder cannot be written to, or
            the workers of a cluster do not share the folders or run another tsexport.
        MissingDependencyError: the packages of the extra `build`, or of `dask`, are not all here.
    """
    began = time.monotonic()
    checked = check_plan(path, over, force=how.force)
    wanted = [one for one in checked if one.is_to_be_built]
    for one in wanted:
        _prepare(one, how.force)
    rows = {one.row.path: one.row for one in checked if one.plan is not None}
    if wanted or _executor(how) == "dask":
        with _running(checked) as running:
            rows |= _execute(checked, how, running, quiet, say)
    result = tuple(rows[one.row.path] if one.plan is not None else one.row for one in checked)
    return PlanResult(str(path), _executor(how), result, round(time.monotonic() - began, 3))


def _executor(how: HowToBuild) -> Executor:
    return "dask" if how.executor == "dask" else "local"


def _prepare(one: CheckedBuild, force: bool) -> None:
    """Make the folder of the state.  Where a bundle is to be built anew, say so there: a retry then builds it once."""
    assert one.plan is not None
    place = place_of(one.plan)
    check_folder(place.output)
    place.folder.mkdir(parents=True, exist_ok=True)
    if force:
        begin(place, one.inputs_sha256)


@contextmanager
def _running(checked: Sequence[CheckedBuild]) -> Iterator[Path]:
    """Make the file that says that this plan runs; at last remove it, and what killed builds left."""
    places = [place_of(one.plan) for one in checked if one.plan is not None]
    folder = places[0].output / FOLDER if places else Path()
    file = folder / f"running-{secrets.token_hex(6)}"
    if places:
        folder.mkdir(parents=True, exist_ok=True)
        file.touch()
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)
        for output in {place.output for place in places}:
            with contextlib.suppress(OSError):
                remove_leftovers(output)


def _execute(checked: Sequence[CheckedBuild], how: HowToBuild, running: Path, quiet: bool, say: Say) -> dict[str, Row]:
    """Return the row of every build that was executed, by the bundle's path."""
    wanted = [one for one in checked if one.is_to_be_built]
    at_once = how.jobs or jobs_here(len(wanted))
    progress = progress_of(wanted, at_once, quiet)
    try:
        if how.executor == "dask":
            from tsexport.plans.on_dask import OnCluster, build_on_cluster

            known = [one for one in checked if one.plan is not None]
            return build_on_cluster(known, OnCluster(how.scheduler, at_once), running, progress, say)
        say(f"{len(wanted)} to build, {at_once} at once{'' if how.jobs else ' (--jobs gives another number)'}")
        rows: dict[str, Row] = {}

        def told(path: str, row: Row | None) -> None:
            progress.told(path, row)
            if row is not None:
                rows[path] = row

        build_here([one.job(running) for one in wanted], at_once, told, progress.tick)
        return rows
    finally:
        progress.clear()


def progress_of(wanted: Sequence[CheckedBuild], at_once: int, quiet: bool) -> PlanProgress:
    """Return the progress of builds that are to be done."""
    return PlanProgress(
        {one.row.path: one.expected_s() for one in wanted},
        {one.row.path: place_of(one.plan).log for one in wanted if one.plan is not None},
        at_once,
        quiet,
    )
