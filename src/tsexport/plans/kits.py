"""Device kits run by workers of a Dask cluster that carry the device, and their results attached to the bundles.

A bundle for a GPU or a board is measured on a worker that carries its device as a resource ("xavier-nx=1"), or else
its family ("jetson=1", "t4=1").  The kit builds the engine and measures it there; what comes back is checked as by
`tsexport attach`, which refuses results of another device or version.  Where there is no such worker, or the kit fails,
the row says "not measured" and why.  A bundle that holds results of its device already is not measured again.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.measured import read_attached
from tsexport.device.attaching import attach_results
from tsexport.devices import list_devices
from tsexport.errors import TsexportError
from tsexport.plans.cluster import PATIENCE_SECONDS, Pending, Worker, is_lost, outcome_of, resource_for
from tsexport.plans.headlines import with_headline
from tsexport.plans.records import KitRun, MeasureJob, Row
from tsexport.plans.tasks import from_text, measure_task, to_text
from tsexport.targets import Target

if TYPE_CHECKING:
    from distributed import Client

Measured = Callable[[str, Row], None]


def device_resources() -> frozenset[str]:
    """Return every resource that stands for a device: the devices' names and their families'."""
    return frozenset(name for one in list_devices() for name in (one.name, one.family))


def resources_of(target: Target) -> tuple[str, ...]:
    """Return the resources that a worker may carry a target's device by: its own name first, then its family's."""
    return tuple(dict.fromkeys((target.device, target.name.rpartition("-")[0])))


def needs_measuring(row: Row, target: Target) -> bool:
    """Return whether a row's bundle stands, is for a device with a kit, and holds nothing that one measured."""
    if row.status not in ("built", "there already") or target.tensorrt is None:
        return False
    return not read_attached(open_bundle(row.path))


@dataclass
class ClusterMeasurements:
    """The device measurements of a plan on a cluster.

    Attributes:
        client: of the cluster.
        cache, running: as of a `Job`.
        measured: given the path of a bundle and its row with what came of measuring.
    """

    client: "Client"
    cache: Path
    running: Path
    measured: Measured
    _pending: dict[str, tuple[Row, Pending]] = field(default_factory=dict, init=False)

    @property
    def is_done(self) -> bool:
        return not self._pending

    def begin(self, row: Row, target: Target, workers: Sequence[Worker]) -> bool:
        """Give a bundle's measurement to a worker that carries its device; False where there is none."""
        wanted = resources_of(target)
        resource = resource_for(workers, wanted)
        if resource is None:
            names = " or ".join(f"{name}=1" for name in wanted)
            self._tell(row, f"no worker of the cluster carries the resource {names}")
            return False
        path = Path(row.path)
        job = MeasureJob(path, self.running.parent / "results", self.cache, self.running)
        future = self.client.submit(
            measure_task,
            to_text(job),
            key=f"measure {row.name} {secrets.token_hex(6)}",
            pure=False,
            resources={resource: 1},
        )
        self._pending[row.path] = (row, Pending(future, resource))
        return True

    def step(self, workers: Sequence[Worker]) -> None:
        """Take what has ended, and give up what no worker can do any more."""
        for path, (row, pending) in list(self._pending.items()):
            if pending.future.done():
                text, reason = outcome_of(pending.future)
                run = from_text(KitRun, text) if text else KitRun(None, reason)
                del self._pending[path]
                self._tell(row, attach_kit_run(row, run))
            elif is_lost(pending, resource_for(workers, [pending.resource]) is not None):
                pending.future.cancel()
                del self._pending[path]
                waited = f"and none came for {PATIENCE_SECONDS:.0f} s"
                self._tell(row, f"the worker with {pending.resource}=1 left the cluster, {waited}")

    def _tell(self, row: Row, not_measured: str) -> None:
        self.measured(row.path, with_headline(row, open_bundle(row.path), not_measured))


def attach_kit_run(row: Row, run: KitRun) -> str:
    """Attach results to their bundle; return why there are none, or why they are not its own, or ""."""
    if run.results is None:
        return run.reason
    try:
        attach_results(row.path, run.results)
    except TsexportError as error:
        return f"what its worker measured is not attached: {error.message} (it is in {run.results})"
    return ""
