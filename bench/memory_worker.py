"""A process whose memory is measured: `python -m tsexport.bench.memory_worker`, one request on stdin, one answer.

Peak above an idle session of the same runtime is, in one fresh process:

    idle    resident memory after the runtime was imported, has loaded a model of one product and a Relu and answered
            on it, garbage was collected and free memory given back to the system
    peak    the kernel's high-water mark, set back at that moment, after the artifact was loaded as `tsexport.load`
            loads it and has answered at the batch
    above   peak - idle

So neither the interpreter, nor the runtime's code and tables, nor the caller's own arrays of inputs are part of it, but
its outputs are.  Limits: Linux alone, since no other system lets a process set its mark back.
"""

import ctypes
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tsexport.bench.memory_wire import (
    Answer,
    GrowthRequest,
    MemoryGrowth,
    PeakMemory,
    PeakRequest,
    Progress,
    from_line,
    to_line,
)
from tsexport.bench.own_memory import EXACT, peak_bytes, reset_peak, resident_bytes
from tsexport.bench.wire import Failed
from tsexport.errors import InconclusiveError, TsexportError
from tsexport.types import Array, Artifact, Session, TensorSpec, random_feeds

PROGRESS_SECONDS = 5.0
IDLE_WIDTH = 16
IDLE_ONNX = bytes.fromhex(
    "08083a8f010a170a0173120177220f436f6e7374616e744f6653686170650a110a01780a017712017022064d61744d756c0a0c0a017012"
    "0179220452656c75120469646c652a19080210074201734a10100000000000000010000000000000005a180a017812130a110801120d0a"
    "07120562617463680a02081062180a017912130a110801120d0a07120562617463680a02081042040a001011"
)
"""An ONNX file of opset 17: y = Relu(x W), W zeros [16, 16], x float32[batch, 16]."""


def idle_session(runtime: str, threads: int, folder: Path) -> Session:
    """Return a session of a runtime on a model of one product and a Relu, which has answered once."""
    from tsexport.runtimes.registry import load

    artifact = _idle_torchscript(folder) if runtime == "torchscript" else _idle_onnx(folder)
    session = load(artifact, runtime, threads)
    session.run(random_feeds(artifact.inputs, 1, 0))
    return session


def _idle_onnx(folder: Path) -> Artifact:
    path = folder / "idle.onnx"
    path.write_bytes(IDLE_ONNX)
    return _artifact(path, "onnx")


def _idle_torchscript(folder: Path) -> Artifact:
    import warnings

    import torch

    path = folder / "idle.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch calls its own format deprecated at every save
        product = torch.nn.Sequential(torch.nn.Linear(IDLE_WIDTH, IDLE_WIDTH), torch.nn.ReLU()).eval()
        torch.jit.save(torch.jit.trace(product, torch.zeros(1, IDLE_WIDTH)), str(path))  # type: ignore[no-untyped-call]
    return _artifact(path, "torchscript")


def _artifact(path: Path, form: str) -> Artifact:
    spec = TensorSpec("x", "float32", ("batch", IDLE_WIDTH)), TensorSpec("y", "float32", ("batch", IDLE_WIDTH))
    return Artifact("idle", path, form, "fp32", spec[:1], spec[1:], (path,), "", path.stat().st_size)  # type: ignore[arg-type]


def release_free_memory() -> bool:
    """Collect garbage and let the C library give back what it holds free; return whether it can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False  # not glibc
    trim(0)
    return True


def measure_peak(request: PeakRequest) -> PeakMemory:
    """Load an artifact beside an idle session, let it answer, and return what that held."""
    from tsexport.runtimes.registry import load

    feeds = random_feeds(request.artifact.inputs, request.batch, request.seed)
    with tempfile.TemporaryDirectory(prefix="tsexport-memory-") as folder:
        idle = idle_session(request.runtime, request.threads, Path(folder))
        release_free_memory()
        before = resident_bytes()
        reset_peak()
        session = load(request.artifact, request.runtime, request.threads)
        loaded = peak_bytes()
        for _ in range(request.calls):
            session.run(feeds)
        idle.close()
    return PeakMemory(before, loaded, peak_bytes(), resident_bytes())


def measure_growth(request: GrowthRequest, tell: Callable[[Progress], None] = lambda progress: None) -> MemoryGrowth:
    """Let an artifact answer, and return what the process held after half of the calls and after all.

    Args:
        tell: is told every `PROGRESS_SECONDS` how far it is, and once before memory is read for the first time, so
            that what the first line takes is no growth.
    """
    from tsexport.bench.worker import batches_of, read_feeds
    from tsexport.runtimes.registry import load

    batches: list[dict[str, Array]] = list(batches_of(read_feeds(Path(request.feeds)), request.batch))
    session = load(request.artifact, request.runtime, request.threads)
    session.run(batches[0])
    tell(Progress(0, request.calls, 0.0))
    trimmed, first = release_free_memory(), resident_bytes()
    marks = [first, first]
    half = request.calls // 2
    start = told = time.monotonic()
    for part, numbers in enumerate((range(half), range(half, request.calls))):
        for number in numbers:
            session.run(batches[number % len(batches)])
            now = time.monotonic()
            if now - told >= PROGRESS_SECONDS:
                told = now
                tell(Progress(number + 1, request.calls, now - start))
        release_free_memory()
        marks[part] = resident_bytes()
    return MemoryGrowth(request.calls, first, marks[0], marks[1], trimmed)


def answer(text: str, tell: Callable[[Progress], None] = lambda progress: None) -> Answer:
    """Return the answer to a request; what a runtime raises belongs to the parent, which knows what to say."""
    try:
        if not EXACT.exists():
            raise InconclusiveError(
                f"memory is measured from Linux's {EXACT}, which {sys.platform} does not have here",
                next_step="measure on Linux 4.14 or later",
            )
        request = from_line(text)
        return measure_peak(request) if isinstance(request, PeakRequest) else measure_growth(request, tell)
    except TsexportError as error:
        return Failed(type(error).__name__, error.message, error.next_step, expected=True)
    except Exception as error:
        return Failed(type(error).__name__, str(error))


def main() -> None:
    """Take stdout away from libraries that print, then answer."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def write(message: Answer | Progress) -> None:
        out.write(to_line(message))
        out.flush()

    write(answer(sys.stdin.readline(), write))


if __name__ == "__main__":
    main()
