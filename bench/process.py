"""The process that loads one artifact on one runtime and times it (`bench.worker`), from its parent's end."""

import sys
from collections.abc import Sequence
from pathlib import Path

from tsexport.bench.answering import AnsweringProcess, label_of
from tsexport.bench.wire import PROTOCOL, Block, Load, Loaded, Timed, Warmed, WarmUp
from tsexport.npz import write_arrays
from tsexport.types import Artifact, Feeds

WARM_TOLERANCE = 0.05
WARM_MAX_CALLS = 2000
WARM_MAX_SECONDS = 2.0
LEAD_IN_CALLS = 1
"""Each block begins with a call that does not count: another process has just emptied the caches."""
LOAD_TIMEOUT_SECONDS = 300.0
CALL_TIMEOUT_SECONDS = 120.0
WORKER_COMMAND = (sys.executable, "-P", "-m", "tsexport.bench.worker")
"""-P: the working folder is no place to import from."""


def write_feeds(feeds: Feeds, folder: Path) -> Path:
    """Write arrays [samples, ...] for the workers to read."""
    path = folder / "feeds.npz"
    write_arrays(path, feeds)
    return path


class WorkerProcess(AnsweringProcess):
    """One fresh process with at most one artifact."""

    def __init__(
        self,
        artifact: Artifact,
        runtime: str,
        threads: int,
        *,
        command: Sequence[str] = WORKER_COMMAND,
        cpus: Sequence[int] = (),
    ) -> None:
        self._artifact, self._runtime, self._threads = artifact, runtime, threads
        super().__init__(
            command,
            PROTOCOL,
            what="the measuring process",
            label=label_of(artifact, runtime),
            next_step=(
                "build it again without this candidate, or see whether memory or a time limit ended the process"
            ),
            cpus=cpus,
        )

    def load(self, feeds: Path, batch: int, *, timeout_s: float = LOAD_TIMEOUT_SECONDS) -> Loaded:
        """Load the artifact and answer once.  Raises as `ask`."""
        request = Load(self._artifact, self._runtime, self._threads, str(feeds), batch)
        return self.ask(request, Loaded, timeout_s)

    def warm_up(
        self,
        batch: int,
        *,
        tolerance: float = WARM_TOLERANCE,
        max_calls: int = WARM_MAX_CALLS,
        max_seconds: float = WARM_MAX_SECONDS,
    ) -> Warmed:
        """Call until stable or capped.  Raises as `ask`."""
        request = WarmUp(batch, tolerance, max_calls, max_seconds)
        return self.ask(request, Warmed, max_seconds + CALL_TIMEOUT_SECONDS)

    def time_block(
        self,
        batch: int,
        calls: int,
        *,
        lead_in: int = LEAD_IN_CALLS,
        quiet: bool = False,
        timeout_s: float = CALL_TIMEOUT_SECONDS,
    ) -> Timed:
        """Time `calls` single calls after `lead_in` that do not count.  Raises as `ask`.

        With `quiet` it returns when the runtime's threads have stopped spinning, so that another process can be timed.
        """
        return self.ask(Block(batch, calls, lead_in, quiet), Timed, timeout_s)
