"""The published container: what it takes, that it limits, and every way in which it is refused."""

import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tsexport.bench import container as module
from tsexport.bench.container import ContainerLimits, container, published_limits, require_room
from tsexport.bench.fingerprint import fingerprint
from tsexport.bench.measure import measure
from tsexport.bench.tables import LatencyTables
from tsexport.errors import ConfigurationError, InconclusiveError

GIB = 2**30
SMALL = ContainerLimits(0.5, GIB // 2)


@pytest.fixture
def small_container():
    """A real container of half a CPU and half a GiB."""
    try:
        with container(SMALL, fingerprint()) as made:
            yield made
    except InconclusiveError as error:
        pytest.skip(f"no cgroup can be made here: {error.message}")


@pytest.fixture
def no_cgroups(tmp_path):
    """The root of a system that has no cgroup that may be written."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    return tmp_path


def test_the_published_limits():
    assert published_limits() == ContainerLimits(3.5, 12 * GIB)
    assert str(published_limits()) == "3.5 CPUs and 12 GiB"


def test_tables_without_a_container(monkeypatch):
    monkeypatch.setattr(module, "load_tables", LatencyTables)
    with pytest.raises(ConfigurationError, match="the latency tables name 0 containers; one is needed"):
        published_limits()


# --- a real one ------------------------------------------------------------------------------------------------------


def test_a_process_inside_sees_the_limits(small_container):
    assert small_container.machine.cgroup_cpu_quota == 0.5
    assert small_container.machine.cgroup_memory_bytes == GIB // 2
    assert small_container.machine.usable_cores == 1
    assert small_container.machine.machine_id != fingerprint().machine_id
    assert small_container.how in ("cgroup v1", "cgroup v2", "systemd-run")


def test_cpu_time_is_limited(small_container):
    code = "import time\nbegan = time.perf_counter()\nwhile time.perf_counter() < began + 2: pass\n"
    began = time.perf_counter()
    done = subprocess.run(
        [*small_container.prefix, sys.executable, "-c", code + "print(time.process_time())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    wall_s = time.perf_counter() - began
    # at most half of the time, and one period of 0.1 s more
    assert float(done.stdout) <= 0.5 * wall_s + 0.1


def test_memory_is_limited(small_container):
    code = "print(len(bytearray(2**20)), flush=True); print(len(bytearray(b'1' * 2**30)))"
    done = subprocess.run([*small_container.prefix, sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stdout.split() == [str(2**20)]


def test_measuring_processes_join_it(small_container, short_chain, feeds):
    """The worker is one process, started behind the prefix: what limits the prefix limits it."""
    (measured,) = measure(
        short_chain, "onnxruntime", feeds=feeds, threads=1, machine=small_container.machine, batches=(1,), samples=64,
        max_seconds=1.0, command=small_container.worker_command,
    )  # fmt: skip
    assert measured.machine == small_container.machine.machine_id
    assert len(measured.samples_ms) >= 10


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"has 3\.5 CPUs and 12 GiB; this machine has 2 CPUs and 8\.0 GiB of memory, which is less"),
        ({"logical_cores": 8, "usable_cores": 8}, r"this machine has 8\.0 GiB of memory, which is less"),
        ({"memory_bytes": 64 * GIB}, "this machine has 2 CPUs, which is less"),
        (
            {"logical_cores": 8, "usable_cores": 8, "memory_bytes": 64 * GIB, "cgroup_memory_bytes": 6 * GIB},
            r"this machine has 6\.0 GiB of memory",
        ),
        (
            {"logical_cores": 8, "usable_cores": 2, "memory_bytes": 64 * GIB, "cgroup_cpu_quota": 2.5},
            r"this machine has 2\.5 CPUs",
        ),
    ],
)
def test_a_machine_with_less_is_refused(machine, changes, message):
    with pytest.raises(InconclusiveError, match=message) as raised:
        require_room(published_limits(), replace(machine, **changes))
    assert "without --container" in raised.value.next_step


def test_a_machine_with_as_much_has_room(four_cores):
    require_room(published_limits(), replace(four_cores, memory_bytes=12 * GIB))


def test_a_system_without_cgroups_and_systemd(no_cgroups, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with (
        pytest.raises(InconclusiveError, match=r"no container of 0\.5 CPUs and 0\.5 GiB can be made here") as raised,
        container(SMALL, fingerprint(), no_cgroups),
    ):
        pass
    assert "cgroup v2: no group above this process hands on the controllers cpu and memory" in raised.value.message
    assert "cgroup v1: no group of the controller cpu is mounted" in raised.value.message
    assert "systemd-run: not installed" in raised.value.message
    assert "docker run --cpus 3.5 --memory 12g" in raised.value.next_step


def test_a_systemd_that_refuses_says_why(no_cgroups, tmp_path, monkeypatch):
    refusing = tmp_path / "bin" / "systemd-run"
    refusing.parent.mkdir()
    refusing.write_text("#!/bin/sh\necho 'Access denied' >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", str(refusing.parent), prepend=":")
    with (
        pytest.raises(InconclusiveError, match="systemd-run: Access denied"),
        container(SMALL, fingerprint(), no_cgroups),
    ):
        pass


def test_a_group_that_does_not_limit_is_refused(no_cgroups):
    """Files that look like a cgroup and are none: what counts is what a process inside sees."""
    group = no_cgroups / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "cgroup.subtree_control").write_text("cpuset cpu io memory pids\n")
    with (
        pytest.raises(InconclusiveError, match=r"a process in the container \(cgroup v2\) sees"),
        container(SMALL, fingerprint(), no_cgroups),
    ):
        pass
    (made,) = group.glob("tsexport-*")
    assert (made / "cpu.max").read_text() == "50000 100000"
    assert (made / "memory.max").read_text() == str(GIB // 2)
    assert (made / "memory.swap.max").read_text() == "0"


def test_a_process_that_does_not_start_in_it():
    with pytest.raises(InconclusiveError, match=r"no process could be started in the container: .*returned non-zero"):
        module._machine_inside(("false",))
