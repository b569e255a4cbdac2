"""What the device bundle suite asks for, and what it keeps of each row."""

from dataclasses import dataclass, replace
from typing import Literal

from tsexport.bench.fingerprint import Machine
from tsexport.targets import HOST

SCHEMA_VERSION = 1
SUITE = "device-bundles"
TARGETS: tuple[tuple[str, str], ...] = (
    ("jetson-int8", HOST),
    ("jetson-fp16", HOST),
    ("t4-fp16", HOST),
    ("a100-bf16", HOST),
    ("a100-int8", HOST),
    ("jetson-fp16", "jetson-nano"),
    ("jetson-fp16", "xavier-nx@jetpack-5.1"),
)
"""Targets with their devices; "host" is the device that the target means where none is named."""
BATCHES = (1, 8)
Outcome = Literal["built", "refused", "ended"]


@dataclass(frozen=True)
class Options:
    """What every build was given besides model, target and device; all else is as `tsexport build` has it.

    They change what a build takes, and not what it is judged by: `seconds` is for measuring, which no build for
    another machine does; without a search an INT8 candidate has fewer chances, never more; `formats` leaves out those
    that no TensorRT reads.
    """

    batches: tuple[int, ...] = BATCHES
    formats: tuple[str, ...] = ("onnx",)
    threads: int = 1
    seconds: float = 0.05
    search_seconds: float = 0.0


@dataclass(frozen=True)
class Case:
    """One row: a registered model in its default configuration, for a target on a device."""

    model: str
    target: str
    device: str


def target_label(target: str, device: str) -> str:
    """Return a target and its device in one word, as bundles bear it: "jetson-fp16-jetson-nano"."""
    return target if device == HOST else f"{target}-{device.replace('@', '-')}"


@dataclass(frozen=True)
class Kit:
    """The device kit of a bundle: its files, and what is not as it must be; () where it is complete."""

    files: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class BuiltBundle:
    """What lies in a bundle.

    Attributes:
        device: what the target's device is, such as "orin-nano".
        tensorrt: the version of TensorRT that the graph is for.
        parameters: of the model as it was built.
        weights: "reference checkpoint", or "untrained, seed 0" where the model has none for this configuration.
        artifact, runtime, precision: what is selected; the runtime is the one that simulated it.
        graph, graph_bytes: the file that engines are built of.
        windows: that it was judged on.
        output_error: the relative RMS error of the worst output against the source model; `max_output_error` and
            `max_degradation` are the budget.
        metric, degradation: of the task where there are labels, positive when worse.
        within_budget: whether the budget holds.
        accepted: what `tsexport check` says of the shipped graph, `refusals` its errors.
        rewrites: those that the version of TensorRT needed, with the places where they were applied.
        verified: whether every file has its digest, and the golden outputs hold here.
    """

    device: str
    tensorrt: str
    parameters: int
    weights: str
    artifact: str
    runtime: str
    precision: str
    graph: str
    graph_bytes: int
    windows: int
    output_error: float
    max_output_error: float
    metric: str | None
    degradation: float | None
    max_degradation: float
    within_budget: bool
    accepted: bool
    refusals: tuple[str, ...]
    rewrites: tuple[str, ...]
    verified: bool
    kit: Kit

    def lacks(self, precision: str) -> tuple[str, ...]:
        """Return what is not as it must be in a bundle of that precision; () where all is."""
        found = [f"check refuses {one}" for one in self.refusals]
        found += ["check refuses the graph"] if not (self.accepted or self.refusals) else []
        found += [f"the graph is of precision {self.precision}"] if self.precision != precision else []
        found += [] if self.within_budget else [f"{self.artifact} misses the accuracy budget"]
        found += [] if self.verified else ["the bundle does not verify"]
        return (*found, *self.kit.problems)


@dataclass(frozen=True)
class Refusal:
    """An error of tsexport that ended a build: its class, what it said, and what it told the user to do."""

    kind: str
    message: str
    next_step: str


@dataclass(frozen=True)
class Answer:
    """What a row's process found: a bundle, or the error that there is in place of one."""

    bundle: BuiltBundle | None = None
    refusal: Refusal | None = None


@dataclass(frozen=True)
class Row:
    """One row that was run.

    Attributes:
        outcome: "built", "refused" by an error of tsexport, or "ended" in any other way: then `ending` says how.
        seconds: of the whole process; a model's first rows make what the later ones find in the cache.
        peak_bytes: the most resident memory of the row's process, or of its largest child.
        code_digest: the first digits of the SHA-256 over tsexport's own code.
    """

    case: Case
    outcome: Outcome
    answer: Answer
    ending: str
    seconds: float
    peak_bytes: int
    code_digest: str

    @property
    def lacks(self) -> tuple[str, ...]:
        """What the bundle lacks; () for a whole one, and where there is none."""
        bundle = self.answer.bundle
        return () if bundle is None else bundle.lacks(self.case.target.rpartition("-")[2])

    @property
    def problems(self) -> tuple[str, ...]:
        """Why there is no whole bundle; () where there is."""
        if self.answer.refusal is not None:
            return (self.answer.refusal.message,)
        return (self.ending,) if self.ending else self.lacks


@dataclass(frozen=True)
class Report:
    """All rows that were run; `cases` are all that there are, so that those without a row are not run."""

    suite: str
    machine: Machine
    options: Options
    cases: tuple[Case, ...]
    rows: tuple[Row, ...]
    schema_version: int = SCHEMA_VERSION

    def row(self, case: Case) -> Row | None:
        """Return a case's row, None where it was not run."""
        return next((row for row in self.rows if row.case == case), None)

    def with_row(self, row: Row) -> "Report":
        """Return the report with a row, in the place of an earlier one, in the order of the cases."""
        by_case = {one.case: one for one in (*self.rows, row)}
        return replace(self, rows=tuple(by_case[case] for case in self.cases if case in by_case))
