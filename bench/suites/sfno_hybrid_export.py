"""What exporting the full sfno-hybrid takes: seconds, peak memory, file sizes; and whether the exports answer right.

The model has 2 GB of weights, so its ONNX form is two files (see `tsexport.exporters.onnx_external`), and it is too
slow for every test run.  Each stage runs in a process of its own, so that its peak memory is its own:

    source      build the module from its seed and answer one sample, whole
    onnx        rewrite, export, clean and prove it, as `tsexport build` does
    openvino    convert that to OpenVINO IR
    onnxruntime, openvino-runtime     load the files, answer the same sample once to compare it and once more timed

How to run, with 14 GiB of free memory and 10 GB of disk:

    python bench/suites/sfno_hybrid_export.py [--batch 1|dynamic] [--threads 1]

`--batch dynamic` is what a build exports; every proof then runs at several batch sizes, some 100 forward passes of 600
GFLOP together.  `--batch 1` exports the same graph for one sample and proves it at that size, about 25.  `--set` makes
the model smaller.  Results go to bench/results/sfno_hybrid_export-<instruction set>.json and .md.

What it does not say: how fast the model is.  One timed call shows the order of magnitude.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tsexport.bench.affinity import threads_text
from tsexport.bench.fingerprint import Machine, fingerprint
from tsexport.bench.suites.report import load_text, machine_text, publish, results_path, table
from tsexport.cache import StoredArtifact, restore_artifact, store_artifact
from tsexport.codec import decode, encode
from tsexport.errors import InconclusiveError, TsexportError
from tsexport.models.settings import parse_settings
from tsexport.models.sources import OpenedSource, identify, open_source
from tsexport.types import Artifact, Feeds, ModelSpec, random_feeds

MODEL = "sfno-hybrid"
SCHEMA_VERSION = 1
GIB = 1 << 30
SEED = 0
RUNTIMES = {"onnxruntime": "onnx", "openvino-runtime": "openvino"}
"""The stages that load an artifact, and whose."""


@dataclass(frozen=True)
class Stage:
    """One process: its seconds and peak resident memory, and what it found.

    `max_abs_error` and `relative_rms` are against the module's answer in torch; `call_seconds` is one call.
    """

    name: str
    seconds: float
    peak_bytes: int
    notes: tuple[str, ...] = ()
    files: tuple[tuple[str, int], ...] = ()
    call_seconds: float | None = None
    max_abs_error: float | None = None
    relative_rms: float | None = None


@dataclass(frozen=True)
class Report:
    """Everything that one run measured."""

    suite: str
    machine: Machine
    model: str
    settings: tuple[str, ...]
    parameters: int
    batch: str
    threads: int
    stages: tuple[Stage, ...]
    load_average: tuple[float, float]
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Job:
    """What a stage's process is told."""

    folder: Path
    settings: tuple[str, ...]
    batch: str
    threads: int

    def source(self) -> OpenedSource:
        return open_source(identify(MODEL, settings=parse_settings(self.settings), seed=SEED))

    def spec(self, source: OpenedSource) -> ModelSpec:
        """The model's tensors, with the batch that is exported."""
        if self.batch == "dynamic":
            return source.spec
        fixed = [
            tuple(replace(tensor, shape=(1, *tensor.shape[1:])) for tensor in tensors)
            for tensors in (source.spec.inputs, source.spec.outputs)
        ]
        return replace(source.spec, inputs=fixed[0], outputs=fixed[1])

    def sample(self, spec: ModelSpec) -> Feeds:
        return random_feeds(spec.inputs, 1, SEED)


def peak_bytes() -> int:
    """Return the most resident memory that this process ever had (Linux)."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match, "/proc/self/status has no VmHWM"
    return int(match[1]) * 1024


def answer_source(job: Job) -> Stage:
    import torch

    torch.set_num_threads(job.threads)
    source = job.source()
    feeds = job.sample(source.spec)
    started = time.perf_counter()
    answers = source.run(feeds)
    seconds = time.perf_counter() - started
    np.savez(job.folder / "answers.npz", **answers)  # type: ignore[arg-type]  # numpy's own keyword is a bool
    return Stage("source", 0.0, 0, (f"{source.spec.parameters:,} parameters",), call_seconds=seconds)


def export_to_onnx(job: Job) -> Stage:
    import torch

    from tsexport.exporters.conversion import convert_to_onnx, file_name

    torch.set_num_threads(job.threads)
    source = job.source()
    converted = convert_to_onnx(source.module, None, job.spec(source), None, job.folder / file_name("onnx"))
    notes = tuple(str(applied) for applied in converted.rewrites)
    return Stage("onnx", 0.0, 0, notes, _write(job, converted.artifact))


def export_to_openvino(job: Job) -> Stage:
    from tsexport.exporters.conversion import convert_to_openvino, file_name

    converted = convert_to_openvino(_read(job, "onnx"), job.folder / file_name("openvino"))
    return Stage("openvino", 0.0, 0, (), _write(job, converted.artifact))


def call(job: Job, stage: str) -> Stage:
    """Load an artifact, compare its answer to the sample, and time the next one."""
    from tsexport.runtimes.comparison import TOLERANCES, compare_outputs
    from tsexport.runtimes.registry import load

    artifact = _read(job, RUNTIMES[stage])
    with np.load(job.folder / "answers.npz") as stored:
        expected = dict(stored)
    feeds = random_feeds(artifact.inputs, 1, SEED)
    with load(artifact, stage.removesuffix("-runtime"), threads=job.threads) as session:
        (worst,) = compare_outputs(expected, session.run(feeds), TOLERANCES["fp32-export"], scaled=True)
        started = time.perf_counter()
        session.run(feeds)
        seconds = time.perf_counter() - started
    verdict = f"{'within' if worst.passed else 'misses'} the tolerance {worst.tolerance.name}"
    return Stage(stage, 0.0, 0, (verdict,), (), seconds, worst.max_abs_error, worst.relative_rms)


STAGES: dict[str, Callable[[Job], Stage]] = {
    "source": answer_source,
    "onnx": export_to_onnx,
    "openvino": export_to_openvino,
    "onnxruntime": lambda job: call(job, "onnxruntime"),
    "openvino-runtime": lambda job: call(job, "openvino-runtime"),
}


def _write(job: Job, artifact: Artifact) -> tuple[tuple[str, int], ...]:
    """Keep an artifact's record for the stages that follow; return its files and their sizes."""
    (job.folder / f"{artifact.format}.json").write_text(encode(store_artifact(artifact, job.folder)))
    return tuple((file.name, file.stat().st_size) for file in artifact.files)


def _read(job: Job, artifact_format: str) -> Artifact:
    text = (job.folder / f"{artifact_format}.json").read_text()
    return restore_artifact(decode(StoredArtifact, text, what="an artifact's record"), job.folder)


def run_stage(name: str, job: Job) -> Stage:
    """Run one stage in a process of its own.

    Raises:
        InconclusiveError: it failed.
    """
    command = [
        sys.executable, __file__, "--stage", name, "--folder", str(job.folder), "--batch", job.batch,
        "--threads", str(job.threads), *(word for setting in job.settings for word in ("--set", setting)),
    ]  # fmt: skip
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise InconclusiveError(f"the stage {name} ended with exit code {done.returncode}")
    stage = replace(decode(Stage, done.stdout, what=f"the answer of {name}"), seconds=seconds)
    print(f"{name}: {seconds:.0f} s, peak {stage.peak_bytes / GIB:.1f} GiB", file=sys.stderr)
    return stage


def run(settings: tuple[str, ...], batch: str, threads: int, folder: Path | None = None) -> Report:
    """Run every stage, one after the other.

    Raises:
        InconclusiveError: a stage failed.
    """
    machine, before = fingerprint(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="tsexport-sfno-", dir=folder) as place:
        job = Job(Path(place), settings, batch, threads)
        stages = tuple(run_stage(name, job) for name in STAGES)
    parameters = int(stages[0].notes[0].split()[0].replace(",", ""))
    load = (before, os.getloadavg()[0])
    return Report("sfno_hybrid_export", machine, MODEL, settings, parameters, batch, threads, stages, load)


def report_text(report: Report) -> str:
    """Return the tables as Markdown."""

    def shown(value: float | None, form: str) -> str:
        return "n/a" if value is None else format(value, form)

    rows = [
        [
            stage.name,
            f"{stage.seconds:.0f}",
            f"{stage.peak_bytes / GIB:.2f}",
            ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in stage.files) or "n/a",
            shown(stage.call_seconds, ".2f"),
            shown(stage.max_abs_error, ".1e"),
            shown(stage.relative_rms, ".1e"),
        ]
        for stage in report.stages
    ]
    columns = ["stage", "seconds", "peak GiB", "files, MB", "one call, s", "max error", "relative RMS error"]
    size = f" with {', '.join(report.settings)}" if report.settings else ""
    notes = [f"- {stage.name}: {note}" for stage in report.stages for note in stage.notes]
    return "\n".join(
        [
            f"# Exporting {report.model}{size}, batch {report.batch}",
            "",
            f"{machine_text(report.machine)}; {threads_text(report.threads)}; "
            f"{load_text(report.load_average)}; {report.parameters:,} parameters, untrained.",
            "",
            table(columns, rows),
            "",
            *notes,
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite, or one of its stages; return the exit code."""
    args = _parser().parse_args(arguments)
    try:
        if args.stage:
            job = Job(args.folder, tuple(args.settings), args.batch, args.threads)
            stage = replace(STAGES[args.stage](job), peak_bytes=peak_bytes())
            print(encode(stage))
            return 0
        report = run(tuple(args.settings), args.batch, args.threads, args.folder)
    except TsexportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    publish(report, report_text(report), args.output or results_path(report.suite, report.machine))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", choices=("dynamic", "1"), default="dynamic", help="what is exported; dynamic")
    parser.add_argument("--threads", type=int, default=1, help="for torch and the timed calls; 1")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="a setting")
    parser.add_argument("--folder", type=Path, help="where the files are made; the system's temporary folder")
    parser.add_argument("--output", type=Path, help="the .json to write; the .md goes beside it")
    parser.add_argument("--stage", choices=tuple(STAGES), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
