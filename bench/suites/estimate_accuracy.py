"""How far `tsexport estimate` is from the measured peak: reference models x batch sizes x runtimes, in one pass.

    python bench/suites/estimate_accuracy.py --folder /tmp/models --output bench/results

Measured is the peak above an idle session of the same runtime (`bench.memory_worker`): the median of several fresh
processes, and the lowest and highest of them, since a peak depends on which holes the C library can fill.  Estimated is
what `tsexport estimate` says of the same model and batch, from its own sketch.  There are two readings of "met":

    by the model    within 25 % where the model's weights take 20 MB or more, within 5 MB below
    by the peak     within 25 % where the measured peak is 20 MB or more, within 5 MB below; both are the same at 20 MB

The factors of `bench.memory_model` were settled on measurements of the models in `FITTED`, in whatever configuration;
rows of other models test them.  Memory needs no quiet machine.  Artifacts are kept in --folder and taken up again;
measurements never are.
"""

import argparse
import platform
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median

from tsexport.bench.fingerprint import Machine, fingerprint
from tsexport.bench.memory import measure_peak
from tsexport.bench.memory_model import RULES, estimate_parts
from tsexport.bench.published_memory import PublishedMemory, published_memory
from tsexport.codec import decode_versioned, encode, read_text, write_whole
from tsexport.errors import TsexportError
from tsexport.estimating import read_graphs
from tsexport.exporters.conversion import convert_to_onnx, convert_to_openvino, convert_to_torchscript
from tsexport.loading import cores_here
from tsexport.models.sources import OpenedSource, identify, open_source
from tsexport.types import Artifact

SCHEMA_VERSION = 2
ARTIFACTS_VERSION = 1
MB = 1_000_000
LARGE_BYTES = 20 * MB
LARGE_SHARE = 0.25
SMALL_BYTES = 5 * MB
AGREE = 0.05
NAME = "estimate-accuracy"
FITTED = frozenset(
    ("patchtst-cpu", "lstm", "inception-time", "nhits", "unet", "itransformer", "sfno-edge", "migt-tvdt", "hrm-27m")
)
"""Models that were measured before the factors were settled, in one configuration or more."""


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
    Case("lstm", (1, 32), (("hidden", "1024"),)),
    Case("inception-time", (1, 32), (("size", "large"),)),
    Case("patchtst-cpu", (1, 32, 128)),
    Case("lstm", (1, 32, 256)),
    Case("resnet1d", (1, 32)),
    Case("gru", (1, 32)),
    Case("tcn", (1, 32)),
    Case("tft", (1, 32)),
    Case("patchtst", (1, 32)),
    Case("gru", (1, 32), (("hidden", "1024"),)),
    Case("resnet1d", (1, 32), (("filters", "256,512,512"),)),
    Case("hrm-27m", (1, 4)),
    Case("itransformer", (1, 32), (("size", "large"),)),
    Case("unet", (1, 32)),
    Case("nhits", (1, 128)),
    Case("lstm", (256,), (("size", "small"),)),
    Case("lstm", (512,), (("size", "large"),)),
    Case("inception-time", (1, 64)),
    Case("inception-time", (64,), (("size", "small"),)),
    Case("itransformer", (32,), (("size", "small"),)),
    Case("itransformer", (16,), (("size", "medium"),)),
    Case("migt-tvdt", (1, 4)),
    Case("sfno-edge", (1, 4)),
)


@dataclass(frozen=True)
class AccuracyRow:
    """One artifact at one batch size: peaks above an idle session, in bytes.

    measured_bytes: the median of `runs` fresh processes, which gave from `lowest_bytes` to `highest_bytes`.
    """

    model: str
    fitted: bool
    runtime: str
    batch: int
    weights_bytes: int
    runs: int
    measured_bytes: int
    lowest_bytes: int
    highest_bytes: int
    estimated_bytes: int

    @property
    def ratio(self) -> float:
        return self.estimated_bytes / self.measured_bytes

    @property
    def is_large(self) -> bool:
        """Whether the model's weights take 20 MB or more."""
        return self.weights_bytes >= LARGE_BYTES

    @property
    def met_by_model(self) -> bool:
        return self._within(self.is_large)

    @property
    def met_by_peak(self) -> bool:
        return self._within(self.measured_bytes >= LARGE_BYTES)

    def _within(self, by_share: bool) -> bool:
        miss = abs(self.estimated_bytes - self.measured_bytes)
        return miss <= (LARGE_SHARE * self.measured_bytes if by_share else SMALL_BYTES)


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
    """All rows of one pass; `failed` are those that gave none, with the reason."""

    machine: Machine
    threads: int
    libc: str
    packages: tuple[str, ...]
    rows: tuple[AccuracyRow, ...] = ()
    published: tuple[PublishedRow, ...] = ()
    failed: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class _Artifacts:
    artifacts: tuple[tuple[str, Artifact], ...]
    schema_version: int = ARTIFACTS_VERSION


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
            _Artifacts, read_text(index), version=ARTIFACTS_VERSION, what=str(index), next_step="delete the folder"
        ).artifacts
    )


@dataclass(frozen=True)
class Measuring:
    """How rows are measured: in `runs` fresh processes each, in as many again where those are further than `AGREE`
    apart, none started after `until_s` of the monotonic clock."""

    threads: int
    runs: int
    until_s: float

    def is_done(self, peaks: Sequence[int]) -> bool:
        """Whether these are enough."""
        agree = len(peaks) >= self.runs and max(peaks) - min(peaks) <= AGREE * min(peaks)
        return agree or len(peaks) >= 2 * self.runs


def measure_row(row: AccuracyRow, artifact: Artifact, how: Measuring) -> AccuracyRow | str:
    """Return a row with its peaks, or why there are none; time that runs out leaves it with fewer runs."""
    label = f"{row.model} on {row.runtime}, batch {row.batch}"
    peaks: list[int] = []
    while not how.is_done(peaks) and time.monotonic() < how.until_s:
        try:
            found = measure_peak(artifact, row.runtime, threads=how.threads, batch=row.batch)
        except TsexportError as error:
            return f"{label}: {error.message.splitlines()[0]}"
        peaks.append(found.above_idle_bytes)
    if not peaks:
        return f"{label}: no time was left"
    return replace(
        row,
        runs=len(peaks),
        measured_bytes=round(median(peaks)),
        lowest_bytes=min(peaks),
        highest_bytes=max(peaks),
    )


def submit_case(
    case: Case, folder: Path, runtimes: Sequence[str], how: Measuring, pool: ThreadPoolExecutor
) -> Iterator[Future[AccuracyRow | str]]:
    """Open a model, estimate it, make its artifacts, and yield the measurements that the pool is to do."""
    source = open_source(identify(case.model, settings=dict(case.settings)))
    graphs = read_graphs(source)
    artifacts = artifacts_of(case, source, folder)
    for runtime in runtimes:
        for batch in case.batches:
            row = AccuracyRow(
                model=case.label,
                fitted=case.model in FITTED,
                runtime=runtime,
                batch=batch,
                weights_bytes=graphs.plain.weights.total_bytes,
                runs=0,
                measured_bytes=0,
                lowest_bytes=0,
                highest_bytes=0,
                estimated_bytes=estimate_parts(graphs, runtime, batch).total_bytes,
            )
            yield pool.submit(measure_row, row, artifacts[runtime], how)


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
    machine = report.machine
    lines = [
        "# Estimated memory against measured",
        "",
        f"Measured on {machine.cpu_model} ({machine.instruction_set}), {report.threads} threads, {report.libc}, "
        f"{', '.join(report.packages)}: peak above an idle",
        "session of the same runtime, median of the fresh processes in `runs`, and the lowest and highest of them.",
        "`fitted` rows are of models whose measurements settled the factors of the estimate; `held out` rows are not.",
        "",
        "Met by the model: within 25 % where the weights take 20 MB or more, within 5 MB below.  Met by the peak:",
        "within 25 % where the measured peak is 20 MB or more, within 5 MB below.",
        "",
        "| runtime | rows | weights of 20 MB and more: met | smaller: met | met by the peak | worst ratio |",
        "|---|---|---|---|---|---|",
        *_summary(report.rows),
        "",
        "| model | rows | runtime | batch | weights MB | runs | measured MB | lowest to highest | estimated MB | ratio "
        "| by the model | by the peak |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.model} | {_kind(row.fitted)} | {row.runtime} | {row.batch} | {row.weights_bytes / MB:.1f} | "
        f"{row.runs} | {row.measured_bytes / MB:.1f} | {row.lowest_bytes / MB:.1f} to {row.highest_bytes / MB:.1f} | "
        f"{row.estimated_bytes / MB:.1f} | {row.ratio:.2f} | {_met(row.met_by_model)} | {_met(row.met_by_peak)} |"
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


def _summary(rows: Sequence[AccuracyRow]) -> Iterator[str]:
    for runtime in RULES:
        for fitted in (True, False):
            own = [row for row in rows if row.runtime == runtime and row.fitted is fitted]
            if not own:
                continue
            large = [row.met_by_model for row in own if row.is_large]
            small = [row.met_by_model for row in own if not row.is_large]
            worst = max(own, key=lambda row: max(row.ratio, 1 / row.ratio))
            yield (
                f"| {runtime} | {_kind(fitted)} | {sum(large)} of {len(large)} | {sum(small)} of {len(small)} | "
                f"{sum(row.met_by_peak for row in own)} of {len(own)} | {worst.ratio:.2f} ({worst.model}, batch "
                f"{worst.batch}) |"
            )


def _kind(fitted: bool) -> str:
    return "fitted" if fitted else "held out"


def _met(met: bool) -> str:
    return "met" if met else "missed"


def main() -> None:
    """Measure everything in one pass, and write the report after every model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="keeps the artifacts")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument("--model", action="append", help="only this one; may be given more than once")
    parser.add_argument("--runtime", action="append", choices=tuple(RULES))
    parser.add_argument(
        "--runs", type=int, default=2, help="fresh processes for each row; twice as many where they differ"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--minutes", type=float, default=600.0, help="start no process after so long")
    given = parser.parse_args()
    how = Measuring(min(2, cores_here()), given.runs, time.monotonic() + 60 * given.minutes)
    packages = tuple(f"{name} {version(name)}" for name in ("onnxruntime", "openvino", "torch"))
    report = AccuracyReport(fingerprint(), how.threads, " ".join(platform.libc_ver()), packages)
    runtimes = given.runtime or tuple(RULES)
    cases = [case for case in CASES if not given.model or case.model in given.model]
    pool = ThreadPoolExecutor(given.jobs)
    submitted: list[list[Future[AccuracyRow | str]]] = []
    try:
        for case in cases:
            if time.monotonic() >= how.until_s:
                report = _with(report, f"{case.label}: no time was left")
                continue
            try:
                submitted.append(list(submit_case(case, given.folder, runtimes, how, pool)))
                print(f"{case.label} is made", flush=True)
            except TsexportError as error:
                report = _with(report, f"{case.label}: {error.message.splitlines()[0]}")
        for futures in submitted:
            for future in futures:
                report = _with(report, future.result())
            _write(replace(report, published=published_rows(report.rows)), given.output)
    finally:
        pool.shutdown(cancel_futures=True)


def _with(report: AccuracyReport, found: AccuracyRow | str) -> AccuracyReport:
    if isinstance(found, str):
        print(found, flush=True)
        return replace(report, failed=(*report.failed, found))
    print(
        f"{found.model:24} {found.runtime:12} {found.batch:4} measured {found.measured_bytes / MB:8.1f} "
        f"({found.lowest_bytes / MB:.1f} to {found.highest_bytes / MB:.1f}) estimated "
        f"{found.estimated_bytes / MB:8.1f} {found.ratio:5.2f} {_met(found.met_by_model)}",
        flush=True,
    )
    return replace(report, rows=(*report.rows, found))


def _write(report: AccuracyReport, folder: Path) -> None:
    write_whole(folder / f"{NAME}.json", encode(report))
    write_whole(folder / f"{NAME}.md", markdown(report))


if __name__ == "__main__":
    main()
