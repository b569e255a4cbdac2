"""How far `tsexport estimate` is from the measured peak: reference models x batch sizes x runtimes, in fresh processes.

    python bench/suites/estimate_accuracy.py --folder /tmp/models --output bench/results

Measured is the peak above an idle session of the same runtime (`bench.memory_worker`); estimated is what `tsexport
estimate` says of the same model and batch, from its own sketch.  Met is within 25 % where the measured peak is 20 MB or
more, and within 5 MB below; at 20 MB both are the same.  Beside them stand the published figures of the same
configurations.

Some of the factors of `bench.memory_model` were fitted on these rows; which models they were not fitted on stands in
`HELD_OUT`.  Memory needs no quiet machine.  Artifacts are kept in --folder, measured rows in the report, and both are
taken up again.
"""

import argparse
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tsexport.bench.fingerprint import Machine, fingerprint
from tsexport.bench.memory import measure_peak
from tsexport.bench.memory_model import RULES, ModelGraphs, estimate_parts
from tsexport.bench.published_memory import PublishedMemory, published_memory
from tsexport.codec import decode_versioned, encode, read_text, write_whole
from tsexport.errors import InconclusiveError
from tsexport.estimating import read_graphs
from tsexport.exporters.conversion import convert_to_onnx, convert_to_openvino, convert_to_torchscript
from tsexport.loading import cores_here
from tsexport.models.sources import OpenedSource, identify, open_source
from tsexport.types import Artifact

SCHEMA_VERSION = 1
MB = 1_000_000
LARGE_BYTES = 20 * MB
LARGE_SHARE = 0.25
SMALL_BYTES = 5 * MB
NAME = "estimate-accuracy"
HELD_OUT = ("itransformer", "tcn", "resnet1d")
"""Measured after the factors were settled."""


@dataclass(frozen=True)
class Case:
    """A model in one configuration, and the batch sizes at which it is measured."""

    model: str
    batches: tuple[int, ...]
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        return " ".join((self.model, *(value if key == "size" else f"{key}={value}" for key, value in self.settings)))


CASES = (
    Case("patchtst-cpu", (1, 8, 32, 128)),
    Case("lstm", (1, 8, 32, 256)),
    Case("lstm", (256,), (("size", "small"),)),
    Case("lstm", (512,), (("size", "large"),)),
    Case("lstm", (1, 8, 32), (("hidden", "1024"),)),
    Case("inception-time", (1, 8, 32, 64)),
    Case("inception-time", (64,), (("size", "small"),)),
    Case("inception-time", (1, 8, 32, 128), (("size", "large"),)),
    Case("nhits", (1, 8, 32, 128)),
    Case("unet", (1, 8, 32)),
    Case("tcn", (1, 32)),
    Case("resnet1d", (1, 32)),
    Case("itransformer", (32,), (("size", "small"),)),
    Case("itransformer", (16,), (("size", "medium"),)),
    Case("itransformer", (1, 8, 32), (("size", "large"),)),
    Case("sfno-edge", (1, 4)),
    Case("migt-tvdt", (1, 4)),
    Case("hrm-27m", (1, 4, 8)),
)


@dataclass(frozen=True)
class AccuracyRow:
    """One artifact at one batch size: measured and estimated peaks above an idle session, in bytes."""

    model: str
    runtime: str
    batch: int
    weights_bytes: int
    idle_bytes: int
    measured_bytes: int
    estimated_bytes: int

    @property
    def ratio(self) -> float:
        return self.estimated_bytes / self.measured_bytes

    @property
    def met(self) -> bool:
        """Whether the estimate is within 25 %, or within 5 MB of a peak below 20 MB."""
        miss = abs(self.estimated_bytes - self.measured_bytes)
        return miss <= (LARGE_SHARE * self.measured_bytes if self.measured_bytes >= LARGE_BYTES else SMALL_BYTES)


@dataclass(frozen=True)
class PublishedRow:
    """A published figure beside the measured peak of the same configuration, which it misses by `factor`."""

    config: str
    model: str
    batch: int
    claimed_mb: float
    runtime: str
    measured_bytes: int
    estimated_bytes: int
    factor: float


@dataclass(frozen=True)
class AccuracyReport:
    """All rows; `failed` are measurements that gave none, with the reason."""

    machine: Machine
    threads: int
    libc: str
    rows: tuple[AccuracyRow, ...] = ()
    published: tuple[PublishedRow, ...] = ()
    failed: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class _Artifacts:
    artifacts: tuple[tuple[str, Artifact], ...]
    schema_version: int = SCHEMA_VERSION


def artifacts_of(case: Case, source: OpenedSource, folder: Path) -> dict[str, Artifact]:
    """Return a model's fp32 artifact for each runtime, made as a build makes them, or those that are there."""
    home = folder / case.label.replace(" ", "-")
    index = home / "artifacts.json"
    if not index.is_file():
        home.mkdir(parents=True, exist_ok=True)
        onnx = convert_to_onnx(source.module, None, source.spec, None, home / "model.onnx").artifact
        assert source.module is not None
        script = convert_to_torchscript(source.module, source.spec, None, home / "model.pt").artifact
        ir = convert_to_openvino(onnx, home / "model.xml").artifact
        write_whole(index, encode(_Artifacts((("onnxruntime", onnx), ("openvino", ir), ("torchscript", script)))))
    return dict(
        decode_versioned(
            _Artifacts, read_text(index), version=SCHEMA_VERSION, what=str(index), next_step="delete the folder"
        ).artifacts
    )


def measure_case(
    case: Case, folder: Path, runtimes: Sequence[str], threads: int, known: Sequence[AccuracyRow]
) -> Iterator[AccuracyRow | str]:
    """Yield a row for each runtime and batch, or why there is none; the estimate is made anew for known rows."""
    source = open_source(identify(case.model, settings=dict(case.settings)))
    graphs = read_graphs(source)
    artifacts: dict[str, Artifact] = {}
    for runtime in runtimes:
        for batch in case.batches:
            estimated = estimate_parts(graphs, runtime, batch).total_bytes
            old = next(
                (row for row in known if (row.model, row.runtime, row.batch) == (case.label, runtime, batch)), None
            )
            if old is not None:
                yield replace(old, estimated_bytes=estimated)
                continue
            artifacts = artifacts or artifacts_of(case, source, folder)
            try:
                peak = measure_peak(artifacts[runtime], runtime, threads=threads, batch=batch)
            except InconclusiveError as error:
                yield f"{case.label} on {runtime}, batch {batch}: {error.message.splitlines()[0]}"
                continue
            yield AccuracyRow(
                case.label, runtime, batch, _weights(graphs), peak.idle_bytes, peak.above_idle_bytes, estimated
            )


def _weights(graphs: ModelGraphs) -> int:
    return graphs.plain.weights.total_bytes


def published_rows(rows: Sequence[AccuracyRow]) -> tuple[PublishedRow, ...]:
    """Return each published figure beside the rows of its configuration."""
    return tuple(
        PublishedRow(
            config=f"{one.row.model}: {one.row.config}",
            model=row.model,
            batch=row.batch,
            claimed_mb=one.row.claimed_mb,
            runtime=row.runtime,
            measured_bytes=row.measured_bytes,
            estimated_bytes=row.estimated_bytes,
            factor=one.misses_by(row.measured_bytes),
        )
        for one in published_memory()
        for row in rows
        if _is_of(row, one)
    )


def _is_of(row: AccuracyRow, one: PublishedMemory) -> bool:
    default = one.size == "medium" and row.model == one.model and one.model != "itransformer"
    return row.batch == one.batch and (default or row.model == f"{one.model} {one.size}")


def markdown(report: AccuracyReport) -> str:
    """Return the report as a page."""
    met = sum(row.met for row in report.rows)
    machine = report.machine
    lines = [
        "# Estimated memory against measured",
        "",
        f"{met} of {len(report.rows)} rows met: within 25 % where the measured peak is 20 MB or more, within 5 MB "
        "below.",
        f"Measured on {machine.cpu_model} ({machine.instruction_set}), {report.threads} threads, {report.libc}: peak "
        "above an idle session of",
        "the same runtime, each in a fresh process.  The factors of the estimate were fitted on all models but "
        f"{', '.join(HELD_OUT)}.",
        "",
        "| runtime | met | of models with weights of 20 MB and more | worst ratio |",
        "|---|---|---|---|",
    ]
    for runtime in RULES:
        own = [row for row in report.rows if row.runtime == runtime]
        if not own:
            continue
        heavy = [row for row in own if row.weights_bytes >= LARGE_BYTES]
        within = sum(abs(row.ratio - 1) <= LARGE_SHARE for row in heavy)
        worst = max(own, key=lambda row: max(row.ratio, 1 / row.ratio))
        lines.append(
            f"| {runtime} | {sum(row.met for row in own)} of {len(own)} | {within} of {len(heavy)} within 25 % | "
            f"{worst.ratio:.2f} ({worst.model}, batch {worst.batch}) |"
        )
    lines += [
        "",
        "| model | runtime | batch | weights MB | measured MB | estimated MB | ratio | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.model} | {row.runtime} | {row.batch} | {row.weights_bytes / MB:.1f} | {row.measured_bytes / MB:.1f} | "
        f"{row.estimated_bytes / MB:.1f} | {row.ratio:.2f} | {'met' if row.met else 'missed'} |"
        for row in report.rows
    ]
    lines += [
        "",
        "## The published figures beside them",
        "",
        "| published for | claimed MB | runtime | measured MB | published is off by | ours MB |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.config} | {one.claimed_mb:,.0f} | {one.runtime} | {one.measured_bytes / MB:.1f} | "
        f"{one.factor:.0f} times | {one.estimated_bytes / MB:.1f} |"
        for one in report.published
    ]
    lines += ["", *(f"Not measured: {one}." for one in report.failed)]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Measure what is not measured yet, and write the report after every model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="keeps the artifacts")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument("--model", action="append", help="only this one; may be given more than once")
    parser.add_argument("--runtime", action="append", choices=tuple(RULES))
    given = parser.parse_args()
    path = given.output / f"{NAME}.json"
    known: tuple[AccuracyRow, ...] = ()
    if path.is_file():
        known = decode_versioned(
            AccuracyReport, read_text(path), version=SCHEMA_VERSION, what=path.name, next_step="delete it"
        ).rows
    threads = min(2, cores_here())
    report = AccuracyReport(fingerprint(), threads, " ".join(platform.libc_ver()))
    runtimes = given.runtime or tuple(RULES)
    for case in CASES:
        if given.model and case.model not in given.model:
            kept = tuple(row for row in known if row.model == case.label)
            report = replace(report, rows=(*report.rows, *kept))
            continue
        for found in measure_case(case, given.folder, runtimes, threads, known):
            if isinstance(found, str):
                report = replace(report, failed=(*report.failed, found))
                print(found, flush=True)
            else:
                report = replace(report, rows=(*report.rows, found))
                print(
                    f"{found.model:28} {found.runtime:12} {found.batch:4} measured {found.measured_bytes / MB:8.1f} "
                    f"estimated {found.estimated_bytes / MB:8.1f} {found.ratio:5.2f} {'' if found.met else 'MISSED'}",
                    flush=True,
                )
        _write(replace(report, published=published_rows(report.rows)), given.output)


def _write(report: AccuracyReport, folder: Path) -> None:
    write_whole(folder / f"{NAME}.json", encode(report))
    write_whole(folder / f"{NAME}.md", markdown(report))


if __name__ == "__main__":
    main()
