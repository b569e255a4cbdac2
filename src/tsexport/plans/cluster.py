"""Builds as tasks of a Dask cluster.

They go to the workers with the resource `build` where any has it, else to those without the resource of a device, else
to all; each runs as many builds at once as it has threads.  Where a worker dies, Dask runs its task again on another
one: the bundle's lock is free by then, finished stages are in the cache, and a finished bundle is there already.
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tsexport.errors import UsageError
from tsexport.plans.process import EXIT_DIED
from tsexport.plans.records import Job, Row
from tsexport.plans.tasks import build_task, from_text, to_text

if TYPE_CHECKING:
    from distributed import Client, Future

BUILD = "build"
"""The resource of workers that build, where a cluster names them."""
PATIENCE_SECONDS = 60.0
"""How long a task waits for a worker that may take it, once none is there: a nanny's new one comes within seconds."""
EXIT_NO_WORKER = 2
Told = Callable[[str, Row | None], None]


@dataclass(frozen=True)
class Worker:
    """A worker as the scheduler knows it: where it is, how many tasks it takes at once, and what it carries."""

    address: str
    threads: int
    resources: Mapping[str, float]


def workers_of(client: "Client") -> tuple[Worker, ...]:
    """Return the workers that are connected now.

    Raises:
        UsageError: the scheduler is gone.
    """
    try:
        known: Mapping[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    except (OSError, KeyError) as error:  # without a connection the client knows no workers at all
        raise _gone() from error
    return tuple(Worker(address, int(one["nthreads"]), dict(one["resources"])) for address, one in known.items())


def _gone() -> UsageError:
    return UsageError(
        "the Dask scheduler went away",
        next_step="start it again and give the same command: what is finished is not built again",
    )


def builders(workers: Sequence[Worker], devices: frozenset[str]) -> tuple[Worker, ...]:
    """Return the workers that builds go to; `devices` are the resources that stand for devices."""
    named = tuple(one for one in workers if one.resources.get(BUILD, 0) > 0)
    return named or tuple(one for one in workers if not devices & one.resources.keys()) or tuple(workers)


def resource_for(workers: Sequence[Worker], wanted: Sequence[str]) -> str | None:
    """Return the first of the wanted resources that a worker carries; None where none does."""
    carried = {name for one in workers for name, amount in one.resources.items() if amount > 0}
    return next((name for name in wanted if name in carried), None)


@dataclass
class Pending:
    """A task that was given to the cluster: its future, what it needs, and since when nobody is there that has it.

    resource: that a worker has to carry, "" for none.
    addresses: of the workers that may take it; none for any with the resource.
    """

    future: "Future[str]"
    resource: str = ""
    addresses: frozenset[str] = frozenset()
    alone_since: float | None = None


@dataclass
class ClusterBuilds:
    """The builds of a plan on a cluster.

    Attributes:
        client: of the cluster.
        waiting: jobs that were not handed out yet, in order.
        devices: the resources that stand for devices.
        told: of every build when it is handed out and when it has ended.
    """

    client: "Client"
    waiting: list[Job]
    devices: frozenset[str]
    told: Told
    _building: dict[str, tuple[Job, Pending]] = field(default_factory=dict, init=False)

    @property
    def is_done(self) -> bool:
        return not self.waiting and not self._building

    def step(self, workers: Sequence[Worker]) -> None:
        """Take what has ended, and hand out as many builds as the builders have threads."""
        able = builders(workers, self.devices)
        for path, (job, pending) in list(self._building.items()):
            row = self._ended(job, pending, bool(able))
            if row is not None:
                del self._building[path]
                self.told(path, row)
            elif able and pending.addresses and not pending.addresses & {one.address for one in able}:
                pending.future.cancel()  # all that might have taken it are gone, and others are here
                self._building[path] = (job, self._submit(job, able))
        room = sum(one.threads for one in able) - len(self._building)
        for job in self.waiting[: max(0, room)]:
            self._building[job.path] = (job, self._submit(job, able))
            self.told(job.path, None)
        self.waiting = self.waiting[max(0, room) :]

    def _submit(self, job: Job, able: Sequence[Worker]) -> Pending:
        # By its address a worker is one that builds; what carries a device would take a build, too.
        resource = BUILD if any(one.resources.get(BUILD, 0) > 0 for one in able) else ""
        addresses = frozenset() if resource else frozenset(one.address for one in able)
        future = self.client.submit(
            build_task,
            to_text(job),
            key=f"build {job.name} {secrets.token_hex(6)}",
            pure=False,
            resources={resource: 1} if resource else None,
            workers=sorted(addresses) or None,
        )
        return Pending(future, resource, addresses)

    def _ended(self, job: Job, pending: Pending, able: bool) -> Row | None:
        options = job.options
        row = Row(job.name, options.model, options.target, options.device, job.path, "failed")
        if pending.future.done():
            text, reason = outcome_of(pending.future)
            return from_text(Row, text) if text else replace(row, exit_code=EXIT_DIED, reason=reason)
        if not is_lost(pending, able):
            return None
        pending.future.cancel()
        reason = f"the cluster has had no worker for {PATIENCE_SECONDS:.0f} s that could build it"
        again = "start workers, and give the same command again"
        return replace(row, exit_code=EXIT_NO_WORKER, reason=reason, next_step=again)


def is_lost(pending: Pending, able: bool) -> bool:
    """Return whether no worker has been there for a while that could do a task."""
    if able:
        pending.alone_since = None
        return False
    pending.alone_since = pending.alone_since or time.monotonic()
    return time.monotonic() - pending.alone_since > PATIENCE_SECONDS


def outcome_of(future: "Future[str]") -> tuple[str, str]:
    """Return what a task that has ended answered, or "" and what went wrong with it.

    Raises:
        UsageError: the scheduler is gone; nobody else cancels a task that is still asked for.
    """
    from distributed.scheduler import KilledWorker

    if future.status in ("cancelled", "lost"):
        raise _gone()
    try:
        return future.result(), ""
    except KilledWorker as error:
        deaths = error.allowed_failures + 1
        times = "once" if deaths == 1 else f"{deaths} times, the last time"
        return "", f"the worker that had it died, {times}: {error.last_worker.address}"
    except Exception as error:
        return "", f"its task ended with {type(error).__name__}: {error}"
