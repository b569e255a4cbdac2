"""The profile of a build: where the time of one call of the selected artifact goes, node by node.

It explains and decides nothing: a runtime without a profiler, or one that fails, ends no build; the record says why.
"""

from collections.abc import Callable

from tsexport.bench.fingerprint import Machine
from tsexport.bench.profile_records import ProfileRecord
from tsexport.bench.profiling import profile
from tsexport.progress import Progress
from tsexport.stages.context import Context
from tsexport.stages.measuring import Placed
from tsexport.stages.samples import Samples

PROFILE = "profile the selected artifact"


def profile_here(
    context: Context,
    samples: Samples,
    selected: Placed,
    threads: int,
    machine: Machine,
    progress: Progress,
    say: Callable[[str], None],
) -> ProfileRecord | None:
    """Profile the selected artifact at batch 1, as a step of the build; None where the target is not this machine.

    Args:
        say: told why there is no profile.
    """
    if not context.target.here:
        return None
    with progress.step(PROFILE):
        record = profile(selected.artifact, selected.runtime, feeds=samples.feeds, threads=threads, machine=machine)
    if record.reason:
        say(f"no profile of {selected.label}: {record.reason}")
    return record
