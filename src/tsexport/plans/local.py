"""The executor `local`: builds in processes of their own on this machine, several at once."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial

from tsexport.bench.fingerprint import memory_limit
from tsexport.bundles.loading import cores_here
from tsexport.plans.process import build_in_process
from tsexport.plans.records import Job, Row

MEMORY_OF_A_BUILD_BYTES = 3 * 2**30
"""What one build is counted with: torch, OpenVINO and the tools that quantize, and a model as large as the reference
ones.  Very large models need more, and fewer --jobs."""
TICK_SECONDS = 0.5
Told = Callable[[str, Row | None], None]
"""Told of a job's path, with its row when it has ended; without one it has begun."""


def jobs_here(builds: int) -> int:
    """Return how many builds run at once: one for each core, as far as memory goes, and no more than there are."""
    import psutil

    memory = psutil.virtual_memory()
    free_bytes = min(memory.available, memory_limit(memory.total) or memory.total)
    by_memory = int(free_bytes // MEMORY_OF_A_BUILD_BYTES)
    return max(1, min(builds, cores_here(), by_memory))


def build_here(jobs: Sequence[Job], at_once: int, told: Told, tick: Callable[[], None]) -> None:
    """Build every job, `at_once` at a time, in the order given.

    Args:
        jobs: whose file `running` is there as long as they are wanted.
        at_once: from 1 on.
        told: of every build when it begins and when it ends, in this thread.
        tick: called a few times a second.

    A KeyboardInterrupt ends every running build, waits for that, and is raised again.
    """
    waiting, running = list(jobs), dict[Future[Row], Job]()
    interrupted = False

    def is_wanted(job: Job) -> bool:
        return not interrupted and job.running.exists()

    with ThreadPoolExecutor(at_once) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    job = waiting.pop(0)
                    told(job.path, None)
                    running[pool.submit(build_in_process, job, partial(is_wanted, job))] = job
                done, _ = wait(running, timeout=TICK_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    told(running.pop(future).path, future.result())
                tick()
        except BaseException:
            interrupted = True
            raise
