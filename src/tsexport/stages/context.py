"""What every stage of one build shares: what was asked, what it starts from, the cache, and the source once it is
open."""

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tsexport.bench.tables import LatencyTables, load_tables
from tsexport.bundles.manifest import Selection, parse_selection
from tsexport.cache import Cache, digest_of
from tsexport.errors import UsageError
from tsexport.options import BuildOptions
from tsexport.stages.data import DataPlan, Opened, open_calibration, open_evaluation
from tsexport.stages.preparing import prepared_source
from tsexport.targets import CpuFeatures, Target
from tsexport.turns import Turns
from tsexport.types import Artifact, Session, TensorSpec

if TYPE_CHECKING:
    from tsexport.calibration.table import CalibrationTable
    from tsexport.exporters.checks import RememberedSource
    from tsexport.models.sources import OpenedSource, SourceIdentity


@dataclass(frozen=True)
class Context:
    """One build.  `source`, `calibration` and `evaluation` are opened when they are first asked for, and kept.

    `turns` are those of the machine; without, nobody is waited for.  `prune` gives the pruned source, where that was
    asked for.
    """

    options: BuildOptions
    target: Target
    cpu: CpuFeatures
    identity: "SourceIdentity"
    plan: DataPlan
    cache: Cache
    threads: int
    turns: Turns = field(default_factory=Turns)
    prune: "Callable[[Context], OpenedSource] | None" = None

    @cached_property
    def declared_inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs of a model that does not say them itself: as given, else as the calibration arrays have them."""
        # Arrays for a graph that prepares them are named as its raw inputs, not as the model's.
        if self.options.inputs or self.identity.kind == "registered" or self.plan.raw:
            return self.options.inputs
        path = self.options.calibration or self.options.evaluation
        return inputs_of_arrays(path) if path is not None and path.suffix == ".npz" else ()

    @property
    def built(self) -> str:
        """The model, with its component."""
        return " ".join(name for name in (self.identity.name, self.options.component) if name)

    @cached_property
    def tables(self) -> LatencyTables:
        """The latency tables that are judged: the user's own, else the published ones.

        Raises:
            UsageError: they cannot be read.
            ConfigurationError: they are none.
        """
        return load_tables(self.options.table)

    @cached_property
    def selection(self) -> Selection | None:
        """The selection.json whose choices are repeated, or None.

        Raises:
            UsageError: it cannot be read, or was made for another model: its choices rest on what was measured there.
            BundleError: it is no selection.json.
        """
        path = self.options.selection
        if path is None:
            return None
        try:
            selection = parse_selection(path.read_bytes())
        except OSError as error:
            raise UsageError(f"--selection {path} cannot be read: {error.strerror}") from error
        if selection.model not in ("", self.built):
            raise UsageError(
                f"--selection {path} repeats choices that were measured for {selection.model}; this build is of "
                f"{self.built}",
                next_step=f"give the selection.json of a bundle of {self.built}, or build without --selection",
            )
        return selection

    @cached_property
    def calibration_tables(self) -> "tuple[CalibrationTable, ...]":
        """The tables of --calibration-table, () without it.

        Raises:
            UsageError: a target that calibrates nothing, or a file that is not there.
            CalibrationTableError: a damaged file.
        """
        path = self.options.calibration_table
        if path is None:
            return ()
        if self.target.precision != "int8":
            raise UsageError(
                f"--calibration-table {path.name} was given, and {self.target.name} calibrates nothing",
                next_step="leave it out, or build an int8 target",
            )
        from tsexport.calibration.table_files import read_tables

        return read_tables(path)

    @cached_property
    def opened(self) -> "OpenedSource":
        """The model, built or loaded, as it is; this imports torch."""
        from tsexport.models.sources import open_source

        return open_source(self.identity, self.declared_inputs)

    def prepared(self, opened: "OpenedSource") -> "OpenedSource":
        """Return a model behind its preparation where there is one."""
        return prepared_source(opened, self.plan, self.identity) if self.plan.raw else opened

    @cached_property
    def unpruned(self) -> "OpenedSource":
        """The source model before anything was removed from it, behind its preparation where there is one."""
        return self.prepared(self.opened)

    @cached_property
    def source(self) -> "OpenedSource":
        """The source model that every artifact is held against: pruned where that was asked for."""
        return self.unpruned if self.prune is None else self.prune(self)

    @cached_property
    def remembered_source(self) -> "RememberedSource":
        """The source, which runs the same feeds once: every artifact on every runtime is compared on them."""
        from tsexport.exporters.checks import RememberedSource

        return RememberedSource(self.source)

    @cached_property
    def source_digest(self) -> str:
        """The content of the source model; a factory has to run for it."""
        digest = self.identity.digest or self.unpruned.digest
        if self.options.prune is None:
            return digest
        return digest_of({"source": digest, "prune": self.options.prune, "data": self.plan.digest})

    @property
    def calibrates(self) -> bool:
        """Whether anything is calibrated: a plain fp32 target does without."""
        return self.target.precision != "fp32" or self.options.prune is not None

    @cached_property
    def calibration(self) -> Opened | None:
        """The calibration windows, checked; None where nothing is calibrated."""
        if not self.calibrates:
            return None
        return open_calibration(self.plan, self.identity, self.unpruned.spec.inputs)

    @cached_property
    def evaluation(self) -> Opened | None:
        """The evaluation windows, checked."""
        return open_evaluation(self.plan, self.identity, self.unpruned.spec.inputs, self.calibration)

    def simulates(self, artifact: Artifact) -> bool:
        """Return whether an artifact is simulated: what is not fp32, where the target is not this machine."""
        return not self.target.here and artifact.precision != "fp32"

    def session(self, artifact: Artifact, runtime: str) -> Session:
        """Return a session that answers as the target does.

        Raises:
            UsageError: the runtime refuses the file.
        """
        from tsexport.runtimes.registry import load
        from tsexport.runtimes.simulation import simulate

        opened = simulate if self.simulates(artifact) else load
        return opened(artifact, runtime, threads=self.threads)


def portable(text: str, cache: Cache) -> str:
    """Return a message without the folders of this machine: a manifest holds no absolute path."""
    roots = (cache.root.absolute(), Path(tempfile.gettempdir()), Path.cwd(), Path.home())
    known = "|".join(re.escape(str(root)) for root in roots if root != Path("/"))
    return re.sub(rf"(?<![\w/])(?:{known})(?:/[^\s/:'\"]+)*/", "", text)


def inputs_of_arrays(path: Path) -> tuple[TensorSpec, ...]:
    """Return the inputs that an .npz of arrays [samples, ...] stands for; float64 means float32."""
    from tsexport.calibration.arrays import TARGET, NpzDataset
    from tsexport.types import BATCH

    first = next(iter(NpzDataset(path).batches(1)))
    return tuple(
        TensorSpec(name, "float32" if array.dtype == np.float64 else array.dtype.name, (BATCH, *array.shape[1:]))
        for name, array in first.feeds.items()
        if name != TARGET
    )
