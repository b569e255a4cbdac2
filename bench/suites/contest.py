"""One model's contestants: made, tried once, judged for accuracy, and timed side by side."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tsexport.bench.process import WorkerProcess, write_feeds
from tsexport.bench.race import Contestant, RaceResult, race
from tsexport.bench.statistics import Ratio, summarize
from tsexport.bench.suites.plain_exports import ONNX, QUANTIZED, TORCHSCRIPT, make_plain_exports
from tsexport.bench.suites.plain_runtimes import EagerSource
from tsexport.bench.suites.ratios import CONFIDENCE, PairRatio, least, medians_of, ratio_over_processes
from tsexport.bench.suites.rows import (
    EAGER,
    FASTEST_FP32,
    PLAIN_ONNX,
    PLAIN_OPENVINO,
    PLAIN_OPENVINO_F32,
    PLAIN_TORCHSCRIPT,
    QUANTIZE_DYNAMIC,
    SELECTED,
    ModelResult,
    Row,
)
from tsexport.bundles.bundle import Bundle
from tsexport.bundles.loading import choose_artifact, cores_here, load_session
from tsexport.errors import TsexportError
from tsexport.quantize.evaluation import EvaluationSet, evaluate
from tsexport.runtimes.registry import load
from tsexport.targets import host_cpu
from tsexport.types import Artifact, Format, ModelSpec, Precision, files_sha256

BATCH = 1
FEWEST_WINDOWS = 8
Say = Callable[[str, float], None]
Tell = Callable[[str], None]
"""Told what is being done."""


@dataclass(frozen=True)
class Entrant:
    """A contestant before it is timed; `failed` says why there is nothing to time.

    `is_export` is False for the source module itself, `from_bundle` True for what tsexport made.
    """

    name: str
    what: str
    precision: Precision
    runtime: str
    artifact: Artifact | None
    is_export: bool = True
    from_bundle: bool = False
    memory_bytes: int | None = None
    load_ms: float | None = None
    call_ms: float = 0.0
    failed: str = ""

    @property
    def is_plain_fp32(self) -> bool:
        return self.is_export and not self.from_bundle and self.precision == "fp32"

    def contestant(self, threads: int) -> Contestant:
        assert self.artifact is not None
        return Contestant(self.artifact, self.runtime, threads, self.name)


@dataclass(frozen=True)
class Pace:
    """How long it is measured.  `rounds` are those of each process; `max_seconds` caps each process's rounds."""

    threads: int
    rounds: int
    processes: int
    max_seconds: float


@dataclass(frozen=True)
class PlainFiles:
    """The files in `folder` that a user would have made of a model; `failures` says by name why some are missing."""

    spec: ModelSpec
    folder: Path
    failures: Mapping[str, str]

    def entrant(
        self,
        name: str,
        what: str,
        file: str,
        kind: Format,
        runtime: str,
        precision: Precision = "fp32",
        is_export: bool = True,
    ) -> Entrant:
        """Return a file as a contestant; an IR's weights lie beside its .xml."""
        if file in self.failures:
            return Entrant(name, what, precision, runtime, None, is_export, failed=self.failures[file])
        path = self.folder / file
        files = (path, path.with_suffix(".bin")) if kind == "openvino" else (path,)
        artifact = Artifact(
            name=name,
            path=path,
            format=kind,
            precision=precision,
            inputs=self.spec.inputs,
            outputs=self.spec.outputs,
            files=files,
            sha256=files_sha256(files),
            size_bytes=sum(one.stat().st_size for one in files),
        )
        return Entrant(name, what, precision, runtime, artifact, is_export)

    def openvino(self) -> tuple[Entrant, ...]:
        """Return the plain ONNX file in OpenVINO.

        On a CPU with bf16 OpenVINO computes in bf16 unless told otherwise; that is what its user gets by default, but
        it is no fp32 export, so the same file runs once more in f32.
        """
        in_bf16 = host_cpu().bf16
        default = self.entrant(
            PLAIN_OPENVINO, "of plain ONNX", ONNX, "onnx", "plain-openvino", "bf16" if in_bf16 else "fp32"
        )
        if not in_bf16:
            return (default,)
        return default, self.entrant(PLAIN_OPENVINO_F32, "of plain ONNX", ONNX, "onnx", "plain-openvino-f32")


def dynamic_entrant(plain: PlainFiles) -> Entrant:
    """Return ONNX Runtime's quantize_dynamic of the plain ONNX file, by defaults."""
    return plain.entrant(QUANTIZE_DYNAMIC, "of plain ONNX", QUANTIZED, "onnx", "plain-onnxruntime", "int8")


def make_entrants(
    spec: ModelSpec, eager: EagerSource, bundle: Bundle, folder: Path, say: Tell, *, plain_int8: bool = True
) -> tuple[Entrant, ...]:
    """Make the plain exports in `folder`, and return all contestants, eager first.

    Args:
        say: told which files are being made.
        plain_int8: whether ONNX Runtime's quantize_dynamic is among them.
    """
    eager.write(folder / "eager.json")
    files = (TORCHSCRIPT, ONNX, QUANTIZED) if plain_int8 else (TORCHSCRIPT, ONNX)
    say(", ".join(files))
    plain = PlainFiles(spec, folder, make_plain_exports(folder / "eager.json", folder, files))
    entrants = [
        plain.entrant(EAGER, "inference mode, fast path on", "eager.json", "torchscript", "eager", is_export=False),
        plain.entrant(PLAIN_TORCHSCRIPT, "traced", TORCHSCRIPT, "torchscript", "plain-torchscript"),
        plain.entrant(PLAIN_ONNX, "opset 17", ONNX, "onnx", "plain-onnxruntime"),
    ]
    if plain_int8:
        entrants.append(
            plain.entrant(QUANTIZE_DYNAMIC, "of plain ONNX", QUANTIZED, "onnx", "plain-onnxruntime", "int8")
        )
    return (*entrants, *plain.openvino(), *entrants_of_bundle(bundle))


def entrants_of_bundle(bundle: Bundle) -> tuple[Entrant, ...]:
    """Return the selected artifact and the fastest fp32 one, which may be the same."""
    found = []
    for name, precision in ((SELECTED, None), (FASTEST_FP32, "fp32")):
        choice = choose_artifact(bundle.manifest, bundle.selection, precision, None)
        artifact = bundle.artifact(choice.artifact)
        what = f"{choice.artifact} on {choice.runtime}"
        found.append(Entrant(name, what, artifact.precision, choice.runtime, artifact, from_bundle=True))
    return tuple(found[:1] if found[0].what == found[1].what else found)


def try_once(entrants: Sequence[Entrant], evaluation: EvaluationSet, folder: Path, threads: int) -> tuple[Entrant, ...]:
    """Load each contestant in a process of its own and let it answer once; what fails is marked with the reason."""
    path = write_feeds(evaluation.feeds, folder)

    def attempt(one: Entrant) -> Entrant:
        if one.artifact is None:
            return one
        try:
            with WorkerProcess(one.artifact, one.runtime, threads) as worker:
                loaded = worker.load(path, BATCH)
                call_ms = worker.time_block(BATCH, 1).times_ns[0] / 1e6
        except TsexportError as error:
            return replace(one, failed=error.message.splitlines()[0][:300])
        memory = loaded.peak_memory_bytes - loaded.idle_memory_bytes
        return replace(one, memory_bytes=memory, load_ms=loaded.load_ms, call_ms=call_ms)

    with ThreadPoolExecutor(cores_here()) as pool:  # nothing is timed yet, so they may run side by side
        return tuple(pool.map(attempt, entrants))


def fewer_windows(evaluation: EvaluationSet, entrants: Sequence[Entrant], seconds: float) -> EvaluationSet:
    """Return as many windows, spread over all, as the slowest contestant answers in about that many seconds.

    At least FEWEST_WINDOWS: a slow model takes longer.
    """
    slowest_ms = max((one.call_ms for one in entrants if not one.failed), default=0.0)
    count = max(FEWEST_WINDOWS, int(1000 * seconds / slowest_ms)) if slowest_ms else evaluation.windows
    if count >= evaluation.windows:
        return evaluation
    rows = np.linspace(0, evaluation.windows - 1, count).astype(int)
    return replace(
        evaluation,
        feeds={name: array[rows] for name, array in evaluation.feeds.items()},
        outputs={name: array[rows] for name, array in evaluation.outputs.items()},
        target=None if evaluation.target is None else evaluation.target[rows],
    )


def judge_accuracy(one: Entrant, evaluation: EvaluationSet, bundle: Bundle, threads: int) -> Row:
    """Return a contestant's row, with its size and errors and nothing timed yet."""
    size = one.artifact.size_bytes if one.artifact and one.is_export else None
    row = Row(
        one.name,
        one.what,
        one.precision,
        one.is_export,
        size,
        memory_bytes=one.memory_bytes,
        load_ms=one.load_ms,
        failed=one.failed,
    )
    if one.failed or one.artifact is None:
        return row
    if one.from_bundle:
        precision = None if one.name == SELECTED else one.precision
        opened = load_session(bundle, precision=precision, threads=threads)
    else:
        opened = load(one.artifact, one.runtime, threads=threads)
    with opened as session:
        accuracy = evaluate(session, evaluation, artifact=one.artifact.name, runtime=one.runtime, batches=(BATCH,))
    if not (math.isfinite(accuracy.output_error) and math.isfinite(accuracy.degradation or 0.0)):
        return replace(row, failed="its answers are not finite, or the source's are all zero")
    return replace(row, output_error=accuracy.output_error, degradation=accuracy.degradation)


def time_side_by_side(
    model: str,
    entrants: Sequence[Entrant],
    rows: Sequence[Row],
    evaluation: EvaluationSet,
    pace: Pace,
    say: Callable[[int], Say],
    caveats: Sequence[str] = (),
) -> ModelResult:
    """Time what can be run in interleaved rounds, several times with fresh processes, and return the model's result.

    Args:
        rows: those of `judge_accuracy`, in the order of the entrants.
        say: gives the progress callback of a process by its number.
    """
    before = _load_average()
    running = [one for one, row in zip(entrants, rows, strict=True) if not row.failed]
    races = [
        race(
            [one.contestant(pace.threads) for one in running],
            evaluation.feeds,
            BATCH,
            rounds=pace.rounds,
            max_seconds=pace.max_seconds,
            progress=say(number),
        )
        for number in range(pace.processes)
    ]
    ratios = _all_ratios([one.name for one in running], races)
    plain_fp32 = [one.name for one in running if one.is_plain_fp32]
    timed = tuple(row if row.failed else _timed(row, races, ratios, plain_fp32) for row in rows)
    names = [one.name for one in entrants]
    return ModelResult(
        model=model,
        rows=timed,
        ratios=tuple(ratios.values()),
        selected=SELECTED,
        fp32=FASTEST_FP32 if FASTEST_FP32 in names else SELECTED,
        windows=evaluation.windows,
        rounds=sum(result.rounds for result in races),
        processes=len(races),
        load_average=(before, _load_average()),
        caveats=tuple(caveats),
        rounds_ms=tuple(
            medians_of(one.name, [result.entry(one.name).blocks_ms for result in races]) for one in running
        ),
    )


def _all_ratios(names: Sequence[str], races: Sequence[RaceResult]) -> dict[tuple[str, str], PairRatio]:
    blocks = {name: [result.entry(name).blocks_ms for result in races] for name in names}
    return {
        (name, than): PairRatio(name, than, ratio_over_processes(blocks[than], blocks[name]))
        for name in names
        for than in names
        if name != than
    }


def _timed(
    row: Row, races: Sequence[RaceResult], ratios: dict[tuple[str, str], PairRatio], plain_fp32: Sequence[str]
) -> Row:
    entries = [result.entry(row.name) for result in races]

    def than(name: str) -> Ratio | None:
        pair = ratios.get((row.name, name))
        return pair.ratio if pair else None

    against = [Ratio(1.0, 1.0, 1.0, CONFIDENCE) if name == row.name else than(name) for name in plain_fp32]
    return replace(
        row,
        summary=summarize([value for entry in entries for value in entry.samples_ms]),
        process_medians_ms=tuple(entry.summary.median_ms for entry in entries),
        stable_warmup=all(entry.stable_warmup for entry in entries),
        than_eager=than(EAGER),
        than_best_plain_fp32=least([one for one in against if one]) if against else None,
        than_plain_onnx=than(PLAIN_ONNX),
    )


def _load_average() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
