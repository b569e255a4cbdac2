"""The published container: a cgroup with its CPU time and memory, in which measuring processes run.

The limits are those of the latency tables (`container` of their memory rows): 3.5 CPUs and 12 GiB.  A limit is only
what the kernel enforces: a group of its own is made, by version 2 of cgroups or version 1, below the group of this
process or at the top; where neither may be written, by systemd (`systemd-run --scope`).  Each process joins it before
anything is imported.  Then one process inside reads what its cgroups grant it, and where that is not what was asked
for, nothing is measured.  A limit on addresses (`ulimit -v`) or a niceness would not be the same, and is not tried.

A machine with less than the limits is refused: the container would not be the published one.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tsexport.bench.fingerprint import Machine
from tsexport.bench.process import WORKER_COMMAND
from tsexport.bench.tables import load_tables
from tsexport.codec import from_plain
from tsexport.errors import ConfigurationError, InconclusiveError

PERIOD_US = 100_000
_GIB = 1024**3
_PROBE_SECONDS = 60.0
_PROBE = (
    "import json; from tsexport.bench.fingerprint import fingerprint; from tsexport.codec import to_plain;"
    "print(json.dumps(to_plain(fingerprint())))"
)
_JOIN = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
_NEXT_STEP = (
    "run as a user who may write cgroups (root, or a systemd session with delegated controllers), or measure inside a "
    "container with these limits, such as `docker run --cpus 3.5 --memory 12g`, without --container"
)


@dataclass(frozen=True)
class ContainerLimits:
    """What a container grants: CPU time in CPUs, and memory in bytes."""

    cpus: float
    memory_bytes: int

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.memory_bytes / _GIB:g} GiB"


@dataclass(frozen=True)
class Container:
    """A running container: what starts a measuring process in it, and the machine as a process inside sees it."""

    limits: ContainerLimits
    how: str
    prefix: tuple[str, ...]
    machine: Machine

    @property
    def worker_command(self) -> tuple[str, ...]:
        return (*self.prefix, *WORKER_COMMAND)


def published_limits() -> ContainerLimits:
    """Return the limits of the latency tables.

    Raises:
        ConfigurationError: the tables name none, or more than one.
    """
    found = {row.container for row in load_tables().memory if row.container is not None}
    if len(found) != 1:
        raise ConfigurationError(f"the latency tables name {len(found)} containers; one is needed")
    (one,) = found
    return ContainerLimits(one.cpus, round(one.memory_gib * _GIB))


def require_room(limits: ContainerLimits, machine: Machine) -> None:
    """Raise where a machine has less than the limits grant.

    Raises:
        InconclusiveError: names what it lacks.
    """
    cores = float(machine.usable_cores) if machine.cgroup_cpu_quota is None else machine.cgroup_cpu_quota
    memory_bytes = machine.cgroup_memory_bytes or machine.memory_bytes
    lacking = []
    if min(cores, machine.logical_cores) < limits.cpus:
        lacking.append(f"{min(cores, machine.logical_cores):g} CPUs")
    if memory_bytes < limits.memory_bytes:
        lacking.append(f"{memory_bytes / _GIB:.1f} GiB of memory")
    if lacking:
        raise InconclusiveError(
            f"the published container has {limits}; this machine has {' and '.join(lacking)}, which is less",
            next_step="measure on a machine with more, or without --container",
        )


@contextlib.contextmanager
def container(limits: ContainerLimits, machine: Machine, root: Path = Path("/")) -> Iterator[Container]:
    """Make a container, prove that it limits, and remove it at the end, when no process is left in it.

    Args:
        machine: this one, from outside.
        root: where /proc and /sys lie.

    Raises:
        InconclusiveError: the machine has less, no cgroup can be made, or a process inside does not see the limits.
    """
    require_room(limits, machine)
    with contextlib.ExitStack() as stack:
        how, prefix = _grouped(limits, root, stack)
        seen = _machine_inside(prefix)
        if seen.cgroup_cpu_quota != limits.cpus or seen.cgroup_memory_bytes != limits.memory_bytes:
            raise InconclusiveError(
                f"a process in the container ({how}) sees {seen.cgroup_cpu_quota} CPUs and "
                f"{seen.cgroup_memory_bytes} bytes of memory; {limits} were asked for",
                next_step=_NEXT_STEP,
            )
        yield Container(limits, how, prefix, seen)


def _grouped(limits: ContainerLimits, root: Path, stack: contextlib.ExitStack) -> tuple[str, tuple[str, ...]]:
    """Return how processes are put into a limited group, and the command before theirs that does it."""
    why: list[str] = []
    for how, make in (("cgroup v2", _make_v2), ("cgroup v1", _make_v1)):
        try:
            folders = make(limits, root, stack)
        except OSError as error:
            why.append(f"{how}: {error.strerror or error}")
            continue
        return how, tuple(part for folder in folders for part in ("/bin/sh", "-c", _JOIN, str(folder)))
    return "systemd-run", _systemd_prefix(limits, why)


def _make_v2(limits: ContainerLimits, root: Path, stack: contextlib.ExitStack) -> tuple[Path, ...]:
    mount = root / "sys/fs/cgroup"
    for parent in _parents(root, "", mount):
        enabled = _words(parent / "cgroup.subtree_control")
        if {"cpu", "memory"} <= enabled:
            folder = _made(parent, stack)
            (folder / "cpu.max").write_text(f"{round(limits.cpus * PERIOD_US)} {PERIOD_US}")
            (folder / "memory.max").write_text(str(limits.memory_bytes))
            with contextlib.suppress(OSError):  # a kernel without swap accounting has no such file
                (folder / "memory.swap.max").write_text("0")
            return (folder,)
    raise OSError("no group above this process hands on the controllers cpu and memory")


def _make_v1(limits: ContainerLimits, root: Path, stack: contextlib.ExitStack) -> tuple[Path, ...]:
    mount = root / "sys/fs/cgroup"
    cpu = _made(_first(root, "cpu", mount), stack)
    (cpu / "cpu.cfs_period_us").write_text(str(PERIOD_US))
    (cpu / "cpu.cfs_quota_us").write_text(str(round(limits.cpus * PERIOD_US)))
    memory = _made(_first(root, "memory", mount), stack)
    (memory / "memory.limit_in_bytes").write_text(str(limits.memory_bytes))
    with contextlib.suppress(OSError):  # a kernel without swap accounting has no such file
        (memory / "memory.memsw.limit_in_bytes").write_text(str(limits.memory_bytes))
    return cpu, memory


def _first(root: Path, controller: str, mount: Path) -> Path:
    for parent in _parents(root, controller, mount):
        return parent
    raise OSError(f"no group of the controller {controller} is mounted")


def _parents(root: Path, controller: str, mount: Path) -> Iterator[Path]:
    """Yield the folders of this process's group for a controller ("" in version 2), the nearest first."""
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        base = mount / controllers if controllers else mount
        folder = base / path.lstrip("/")
        yield from (one for one in (folder, *folder.parents) if one.is_relative_to(base) and one.is_dir())


def _made(parent: Path, stack: contextlib.ExitStack) -> Path:
    folder = parent / f"tsexport-{os.getpid()}"
    folder.mkdir()
    stack.callback(_remove, folder)
    return folder


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):  # a process that has not quite ended keeps it; the kernel's, not ours
        folder.rmdir()


def _words(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except OSError:
        return set()


def _systemd_prefix(limits: ContainerLimits, why: Sequence[str]) -> tuple[str, ...]:
    """Return what starts a process in a scope of systemd, after a try.

    Raises:
        InconclusiveError: systemd is not there, or refuses.
    """
    command = (
        "systemd-run", *(() if os.geteuid() == 0 else ("--user",)), "--scope", "--quiet", "--collect",
        "-p", f"CPUQuota={limits.cpus * 100:g}%", "-p", f"MemoryMax={limits.memory_bytes}", "-p", "MemorySwapMax=0",
    )  # fmt: skip
    if shutil.which(command[0]) is None:
        reason = "systemd-run: not installed"
    else:
        tried = subprocess.run([*command, "true"], capture_output=True, text=True, timeout=_PROBE_SECONDS)
        if tried.returncode == 0:
            return command
        reason = f"systemd-run: {(tried.stderr.strip().splitlines() or ['it failed'])[0]}"
    raise InconclusiveError(
        f"no container of {limits} can be made here: {'; '.join([*why, reason])}", next_step=_NEXT_STEP
    )


def _machine_inside(prefix: Sequence[str]) -> Machine:
    """Return the machine as a process sees it that was started behind `prefix`."""
    command = [*prefix, sys.executable, "-P", "-c", _PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=True)
        return from_plain(Machine, json.loads(done.stdout), what="the machine inside", error=InconclusiveError)
    except (subprocess.SubprocessError, ValueError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise InconclusiveError(
            f"no process could be started in the container: {said.strip().splitlines()[-1]}", next_step=_NEXT_STEP
        ) from None
