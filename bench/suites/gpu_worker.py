"""One process of `gpu_runs.py`: it runs the cases that it is told to, one after the other, on the GPU or the CPU.

Requests on stdin, one JSON object a line: `Job`.  Answers on stdout: `Begun` before each way, so that whoever started
this knows what was running where it dies, and `Done` with the row.  Anything that torch prints goes to stderr.
"""

import copy
import gc
import os
import subprocess
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from torch import nn

from tsexport.bench.messages import Protocol
from tsexport.bench.statistics import P99_SAMPLES, Summary, summarize
from tsexport.bench.suites.gpu_cases import CASES, Case, Way
from tsexport.bench.suites.gpu_records import OUTPUT_LIMITS, GpuRow
from tsexport.exporters.rewrites.spectral import SpectralAsMatrixProducts
from tsexport.models.definition import Narrowing, narrowing_of
from tsexport.models.registry import get_entry
from tsexport.models.sources import identify, open_source
from tsexport.runtimes.comparison import relative_rms
from tsexport.runtimes.cuda_precision import exact_products, narrowed_model
from tsexport.runtimes.torch_cuda import ModuleSession, TorchCudaSession, compiled, module_session
from tsexport.types import Array, Artifact, ModelSpec, random_feeds

CHECKED = 4
"""Samples of a batch that are held against the source model."""
FEWEST = 10
SEED = 0


@dataclass(frozen=True)
class Job:
    """Run a case (its place in CASES) in some ways; with `only_prepare` make the session and time nothing."""

    case: int
    ways: tuple[Way, ...]
    device: str
    seconds: float
    only_prepare: bool = False


@dataclass(frozen=True)
class Begun:
    """A way is about to be tried."""

    case: int
    way: Way


@dataclass(frozen=True)
class Done:
    """A way was tried."""

    row: GpuRow


Message = Job | Begun | Done
_PROTOCOL = Protocol("a GPU worker", (Job, Begun, Done))
to_line, from_line = _PROTOCOL.to_line, _PROTOCOL.from_line


@dataclass(frozen=True)
class Prepared:
    """A case's module in its precision, on the host, with what the source answers to the first samples."""

    case: Case
    spec: ModelSpec
    module: nn.Module
    feeds: dict[str, Array]
    expected: dict[str, Array]

    def batch(self, start: int) -> dict[str, Array]:
        """Return the case's batch of feeds from one sample on."""
        return {
            name: np.ascontiguousarray(array[start : start + self.case.batch]) for name, array in self.feeds.items()
        }

    def answers(self, session: ModuleSession) -> dict[str, Array]:
        """Return what a session answers to the checked samples, batch by batch."""
        batches = [session.run(self.batch(start)) for start in range(0, CHECKED, self.case.batch)]
        return {name: np.concatenate([one[name] for one in batches])[:CHECKED] for name in self.expected}


@cache
def _source(model: str, component: str | None, settings: tuple[tuple[str, int], ...]) -> tuple[ModelSpec, nn.Module]:
    opened = open_source(identify(model, component=component, settings=dict(settings)))
    assert opened.module is not None, f"{model} has no torch module"
    return opened.spec, opened.module


@cache
def _expected(
    model: str, component: str | None, settings: tuple[tuple[str, int], ...], batch: int
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return feeds of a batch, or of `CHECKED` samples where those are more, and the answers to the first of them."""
    spec, source = _source(model, component, settings)
    feeds = random_feeds(spec.inputs, max(batch, CHECKED), SEED)
    with torch.inference_mode():
        answer = source(*(torch.from_numpy(feeds[one.name][:CHECKED].copy()) for one in spec.inputs))
    answers = (answer,) if isinstance(answer, torch.Tensor) else tuple(answer)
    return feeds, {one.name: value.numpy() for one, value in zip(spec.outputs, answers, strict=True)}


def prepare(case: Case) -> Prepared:
    """Build a case's model and cast it.  The expected answers are the source's, in fp32 on the CPU."""
    spec, source = _source(case.model, case.component, case.settings)
    feeds, expected = _expected(case.model, case.component, case.settings, case.batch)
    if case.form == "matrix products":
        source, _ = SpectralAsMatrixProducts().call(copy.deepcopy(source), ())
    narrowing = narrowing_for(case)
    keep = (*spec.fp32_layers, *narrowing.keep)
    module = narrowed_model(source, case.precision, keep=keep, within=narrowing.within)
    return Prepared(case, spec, module, feeds, expected)


def narrowing_for(case: Case) -> Narrowing:
    """Return what stays in fp32 of a case; products of real matrices need no exception for what was a transform."""
    if case.component is not None or case.precision == "fp32" or case.form == "matrix products":
        return Narrowing()
    return narrowing_of(get_entry(case.model).definition())


def run_job(job: Job) -> Iterator[Begun | Done]:
    """Yield what becomes of each way of a job's case."""
    case = CASES[job.case]
    prepared: Prepared | None = None
    with tempfile.TemporaryDirectory(prefix="tsexport-gpu-") as folder:
        lanes: Lanes | None = None
        for way in job.ways:
            yield Begun(job.case, way)
            try:
                prepared = prepared or prepare(case)
                lanes = lanes or Lanes(prepared, job, Path(folder))
                row = lanes.run(way)
            except Exception as error:  # torch raises anything; one way's failure is a result
                traceback.print_exc()
                row = GpuRow(case, way, "failed", reason=_reason(error))
            yield Done(row)
            _free(job.device)


class Lanes:
    """The ways of one case; what they share is made once: the trace's file, and the compiled module."""

    def __init__(self, prepared: Prepared, job: Job, folder: Path) -> None:
        self._prepared, self._job, self._folder = prepared, job, folder
        self._file: Path | None = None
        self._compiled: nn.Module | None = None

    def run(self, way: Way) -> GpuRow:
        """Make a way's session, check its answer and time it."""
        graphed = way.endswith("CUDA graph")
        if graphed and self._job.device == "cpu":
            return GpuRow(self._prepared.case, way, "not run", reason="a rehearsal on the CPU has no CUDA graphs")
        make = self._maker(way)
        if way.startswith("TorchScript") and self._file is None:
            self._file = self._trace()
        self._prepared.module.to("cpu")
        held = _free(self._job.device)
        started = time.perf_counter()
        with make(graphed) as session:
            session.run(self._prepared.batch(0))
            first_call_s = time.perf_counter() - started
            row = self._judge(way, session, first_call_s)
        if row.status != "measured" or self._job.device == "cpu":
            return row
        return replace(row, memory_bytes=torch.cuda.max_memory_allocated() - held)

    def _maker(self, way: Way) -> Callable[[bool], ModuleSession]:
        if way == "eager":
            return self._eager
        return self._torchscript if way.startswith("TorchScript") else self._of_compiled

    def _judge(self, way: Way, session: ModuleSession, first_call_s: float) -> GpuRow:
        case, prepared = self._prepared.case, self._prepared
        refusals = session.refusals()
        if way.endswith("CUDA graph") and refusals:
            return GpuRow(case, way, "failed", reason=f"no graph could be captured: {next(iter(refusals.values()))}")
        if self._job.only_prepare:
            return GpuRow(case, way, "not run", first_call_s=first_call_s, reason="prepared only")
        answers = prepared.answers(session)
        error = max(relative_rms(values, answers[name]) for name, values in prepared.expected.items())
        limit = OUTPUT_LIMITS[case.precision]
        finite = float(error) if np.isfinite(error) else None
        if finite is None or finite > limit.limit:
            shown = "not finite" if finite is None else f"{finite:.3g}"
            reason = f"its error is {shown}; {limit.name} allows {limit.limit:g}"
            return GpuRow(case, way, "wrong", output_error=finite, checked=CHECKED, reason=reason)
        on_gpu = self._job.device != "cpu"
        device = time_calls(lambda: session.device_ms(case.batch), self._job.seconds) if on_gpu else None
        clock = clock_mhz() if on_gpu else None
        feeds = prepared.batch(0)
        wall = time_calls(lambda: _wall_ms(session, feeds), self._job.seconds)
        return GpuRow(
            case, way, "measured", device, wall, finite, CHECKED,
            first_call_s=first_call_s,
            notes=tuple(note for note in (narrowing_for(case).reason, _compiler_note(way)) if note),
            clock_mhz=clock,
        )  # fmt: skip

    def _eager(self, graphed: bool) -> ModuleSession:
        return self._session(self._prepared.module, graphed)

    def _of_compiled(self, graphed: bool) -> ModuleSession:
        if self._compiled is None:
            self._compiled = compiled(self._prepared.module)
        return self._session(self._compiled, graphed)

    def _session(self, module: nn.Module, graphed: bool) -> ModuleSession:
        spec, case = self._prepared.spec, self._prepared.case
        return module_session(
            module, case.name, spec.inputs, spec.outputs, case.precision,
            device=self._job.device, graphed=graphed, first_batch=case.batch,
        )  # fmt: skip

    def _torchscript(self, graphed: bool) -> ModuleSession:
        assert self._file is not None
        spec, case = self._prepared.spec, self._prepared.case
        artifact = Artifact(
            case.name, self._file, "torchscript", case.precision, spec.inputs, spec.outputs, (self._file,), "",
            self._file.stat().st_size,
        )  # fmt: skip
        return TorchCudaSession(artifact, 1, device=self._job.device, graphed=graphed, first_batch=case.batch)

    def _trace(self) -> Path:
        """Trace the cast module at batch 2, and write it."""
        spec, module = self._prepared.spec, self._prepared.module.to(self._job.device)
        feeds = random_feeds(spec.inputs, 2, SEED)
        examples = tuple(torch.from_numpy(feeds[one.name]).to(self._job.device) for one in spec.inputs)
        path = self._folder / "traced.pt"
        with warnings.catch_warnings(), torch.no_grad():
            # torch announces the end of TorchScript; what the tracer says is judged by the answers
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(module, examples, check_trace=False)  # type: ignore[no-untyped-call]
            traced.save(str(path))
        return path


def time_calls(call: Callable[[], float], seconds: float) -> Summary:
    """Return the summary of single calls' milliseconds, after some that do not count.

    As many as a p99 needs, or as many as the time allows, but `FEWEST` at least.
    """
    for _ in range(3):
        call()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < P99_SAMPLES:
        if len(times) >= FEWEST and time.perf_counter() - began > seconds:
            break
        times.append(call())
    return summarize(times)


def clock_mhz() -> int | None:
    """Return the clock of the first GPU's multiprocessors now, just after it computed; None where nobody says."""
    command = ("nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits", "--id=0")
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=5.0).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return int(told) if told.isdecimal() else None


def _wall_ms(session: ModuleSession, feeds: dict[str, Array]) -> float:
    began = time.perf_counter_ns()
    session.run(feeds)
    return (time.perf_counter_ns() - began) / 1e6


def _compiler_note(way: Way) -> str:
    """Return what torch.compile made, where that is not one piece."""
    if not way.startswith("compiled"):
        return ""
    from torch._dynamo.utils import counters

    breaks = sum(counters["graph_break"].values())
    return f"torch.compile broke the module in {breaks} places" if breaks else ""


def _free(device: str) -> int:
    """Give back what ended sessions left on the device; return the bytes that stay allocated.

    cuBLAS keeps a workspace (32 MiB on an H100) for each stream that it was ever called on.  No graph that was captured
    with one of them is alive here.
    """
    gc.collect()
    if device == "cpu":
        return 0
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)  # torch has no public name for it
    if clear is not None:
        clear()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer jobs until there are no more."""
    exact_products()
    for line in requests:
        for message in run_job(from_line(line)):
            answers.write(to_line(message))
            answers.flush()


def main() -> None:
    """Take the protocol's ends away from file descriptors 0 and 1, then serve."""
    requests, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    serve(requests, answers)


if __name__ == "__main__":
    main()
