"""The executor `dask`: the same plan on a Dask cluster, given by its scheduler's address, or made here of processes.

Before anything is built, every worker has to see two files, one beside the bundles and one in the cache, and to run the
same tsexport; those that build need the same tools as well.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tsexport.cache import code_digest, default_root, tool_versions
from tsexport.errors import UsageError
from tsexport.extras import require
from tsexport.plans.checking import CheckedBuild
from tsexport.plans.cluster import ClusterBuilds, Worker, builders, workers_of
from tsexport.plans.headlines import latency_text
from tsexport.plans.kits import ClusterMeasurements, device_resources, needs_measuring
from tsexport.plans.progress import PlanProgress
from tsexport.plans.records import Row, Surroundings
from tsexport.plans.state import place_of
from tsexport.plans.tasks import from_text, look_around
from tsexport.wording import count_text

if TYPE_CHECKING:
    from distributed import Client

CONNECT_SECONDS = 15.0
WORKERS_SECONDS = 30.0
"""How long a scheduler without workers is given to get one."""
_TICK_SECONDS = 0.3
_SHARE = "name an output folder that all workers share with -o, and a cache folder with TSEXPORT_CACHE"
Say = Callable[[str], None]


@dataclass(frozen=True)
class OnCluster:
    """Where a plan runs: `scheduler` is an address, None for a cluster of `at_once` processes here."""

    scheduler: str | None
    at_once: int


def build_on_cluster(
    checked: Sequence[CheckedBuild], where: OnCluster, running: Path, progress: PlanProgress, say: Say
) -> dict[str, Row]:
    """Build on a cluster what is to be built, and measure on its devices what is for them.

    Args:
        checked: all builds of the plan that can be built or are there.
        where: the cluster.
        running: a file that is there as long as the plan runs.
        progress: of the builds.
        say: told what a person should know.

    Returns: the rows of all builds that were touched, by the bundle's path.

    Raises:
        UsageError: no scheduler or no worker answers, a worker does not see the folders, or runs another tsexport.
        MissingDependencyError: the extra `dask` is not installed.
    """
    require("dask", "--executor dask")
    if not any(one.is_to_be_built or (one.target and needs_measuring(one.row, one.target)) for one in checked):
        return {}
    with _client(where) as client:
        workers = _wait_for_workers(client, where)
        devices = device_resources()
        with ExitStack() as stack:
            folders = {place_of(one.plan).folder for one in checked if one.plan is not None}
            probes = [stack.enter_context(_probe(folder)) for folder in (*folders, default_root().absolute())]
            _check(client, [str(probe) for probe in probes], builders(workers, devices))
        progress.at_once = sum(one.threads for one in builders(workers, devices))
        say(f"{count_text(len(workers), 'worker')}: {_summary(workers)}")
        try:
            return _Run(client, checked, running, progress, devices).until_done()
        except BaseException:  # builds and kits that still run end by it, wherever they are
            running.unlink(missing_ok=True)
            raise


class _Run:
    """A plan while it runs on a cluster."""

    def __init__(
        self,
        client: "Client",
        checked: Sequence[CheckedBuild],
        running: Path,
        progress: PlanProgress,
        devices: frozenset[str],
    ) -> None:
        self._client, self._progress = client, progress
        self._targets = {one.row.path: one.target for one in checked}
        self._rows: dict[str, Row] = {}
        jobs = [one.job(running) for one in checked if one.is_to_be_built]
        self._builds = ClusterBuilds(client, jobs, devices, self._told)
        self._kits = ClusterMeasurements(client, default_root().absolute(), running, self._measured)
        self._to_measure = [one.row for one in checked if one.row.status == "there already"]

    def until_done(self) -> dict[str, Row]:
        while True:
            workers = workers_of(self._client)
            self._builds.step(workers)
            for row in self._to_measure:
                target = self._targets[row.path]
                if target is not None and needs_measuring(row, target):
                    self._kits.begin(row, target, workers)
            self._to_measure = []
            self._kits.step(workers)
            self._progress.tick()
            if self._builds.is_done and self._kits.is_done and not self._to_measure:
                return self._rows
            time.sleep(_TICK_SECONDS)

    def _told(self, path: str, row: Row | None) -> None:
        self._progress.told(path, row)
        if row is not None:
            self._rows[path] = row
            self._to_measure.append(row)

    def _measured(self, path: str, row: Row) -> None:
        self._rows[path] = row
        if row.headline is not None:
            self._progress.note(path, latency_text(row.headline))


@contextmanager
def _client(where: OnCluster) -> "Iterator[Client]":
    """Connect to the scheduler, or make a cluster of processes here, which ends with the plan."""
    from distributed import Client, LocalCluster, Security

    if where.scheduler is not None:
        context = Security().get_connection_args("client").get("ssl_context")
        if where.scheduler.startswith("tls:") and context is None:
            raise UsageError(
                f"the Dask scheduler at {where.scheduler} is reached by TLS, and Dask's settings name no certificate",
                next_step="set distributed.comm.tls in Dask's configuration, or DASK_DISTRIBUTED__COMM__TLS__CA_FILE, "
                "..__CLIENT__CERT and ..__CLIENT__KEY",
            )
        try:
            client = Client(where.scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"no Dask scheduler answers at {where.scheduler}: {error}",
                next_step="start one with `dask scheduler`, and give the address that it prints",
            ) from error
        with client:
            yield client
        return
    # Workers hold nothing themselves, so their memory is not watched; the dashboard is left out.
    with (
        LocalCluster(
            n_workers=where.at_once,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            memory_limit=None,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _wait_for_workers(client: "Client", where: OnCluster) -> tuple[Worker, ...]:
    until = time.monotonic() + WORKERS_SECONDS
    while True:
        workers = workers_of(client)
        if workers:
            return workers
        if time.monotonic() > until:
            raise UsageError(
                f"the Dask scheduler at {where.scheduler} has no worker",
                next_step=f"start some with `dask worker {where.scheduler}`, on machines that share the folders",
            )
        time.sleep(_TICK_SECONDS)


@contextmanager
def _probe(folder: Path) -> Iterator[Path]:
    """Make a file in a folder that every worker has to see."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".seen-", dir=folder)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}", next_step=_SHARE) from error
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _check(client: "Client", paths: Sequence[str], able: Sequence[Worker]) -> None:
    """Raise where a worker does not see the files, runs another tsexport, or is to build and cannot."""
    answers = client.run(look_around, paths, on_error="return")
    building = {one.address for one in able}
    for address, answer in sorted(answers.items()):
        if not isinstance(answer, str):
            raise UsageError(
                f"the worker {address} cannot be given work: {type(answer).__name__}: {answer}",
                next_step="install this version of tsexport with the extra dask there",
            )
        found = from_text(Surroundings, answer)
        if found.unseen:
            folder = Path(found.unseen[0]).parent
            raise UsageError(
                f"the worker {address} does not see {folder}: the output and the cache folder have to be shared by all",
                next_step=_SHARE,
            )
        if found.code != code_digest():
            raise UsageError(
                f"the worker {address} runs another tsexport than this one", next_step="install the same version there"
            )
        if address in building and found.missing:
            raise UsageError(
                f"the worker {address} cannot build: {found.missing}",
                next_step="install them there, or start those that build with --resources build=1",
            )
        if address in building and dict(found.versions) != dict(tool_versions()):
            names = _different(found.versions, tool_versions())
            raise UsageError(
                f"the worker {address} has other versions of {names}, and its bundles would be other ones",
                next_step="install the same versions there, or start those that build with --resources build=1",
            )


def _different(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    return ", ".join(sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name)))


def _summary(workers: Sequence[Worker]) -> str:
    carried: dict[str, int] = {}
    for one in workers:
        for name in one.resources:
            carried[name] = carried.get(name, 0) + 1
    threads = sum(one.threads for one in workers)
    found = [f"{name} on {count}" for name, count in sorted(carried.items())]
    return f"{threads} threads" + (f", {', '.join(found)}" if found else ", no resources")
