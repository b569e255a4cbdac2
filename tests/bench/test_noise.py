"""What a machine does while something is measured, and which CPUs processes are bound to."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from tsexport.bench import affinity, noise
from tsexport.bench.affinity import bind, bound, choose_cpus, core_of, cpus_text
from tsexport.bench.noise import LOOPS_AT_ONCE, MachineNoise, NoiseWatch, frequencies_mhz, jitter_of

linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to CPUs")


def topology(root, cores):
    """Write which CPUs are one core, as Linux does."""
    for core in cores:
        for cpu in core:
            folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
            folder.mkdir(parents=True)
            (folder / "thread_siblings_list").write_text(",".join(map(str, core)) + "\n")
    return root


# --- CPUs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "threads", "chosen"),
    [
        ([(0, 1), (2, 3)], 1, (3,)),
        ([(0, 1), (2, 3)], 2, (1, 3)),
        ([(0, 1), (2, 3)], 3, (1, 2, 3)),
        ([(0, 2), (1, 3)], 2, (2, 3)),
        ([(0,), (1,), (2,), (3,)], 4, (0, 1, 2, 3)),
    ],
)
def test_each_thread_gets_a_core_of_its_own_first(tmp_path, monkeypatch, cores, threads, chosen):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert choose_cpus(threads, topology(tmp_path, cores)) == chosen


def test_more_threads_than_cpus_get_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert choose_cpus(4, tmp_path) == (3, 5)
    assert core_of(7, tmp_path) == "7"


def test_a_system_that_binds_nothing_says_so(monkeypatch):
    monkeypatch.setattr(affinity, "can_bind", lambda: False)
    assert choose_cpus(3) == ()
    assert cpus_text(()) == "not bound to CPUs"
    assert (cpus_text((1,)), cpus_text((0, 1))) == ("CPU 1", "CPUs 0, 1")
    with bound(()):
        bind(os.getpid(), ())


@linux
def test_a_process_and_all_its_threads_are_bound():
    (cpu,) = choose_cpus(1)
    code = (
        "import os, sys, threading; sys.stdin.readline(); seen = []\n"
        "def look(): seen.append(os.sched_getaffinity(0))\n"
        "thread = threading.Thread(target=look); thread.start(); thread.join()\n"
        "print(os.sched_getaffinity(0), *seen)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        bind(process.pid, (cpu,))
        out, _ = process.communicate("go\n")
    assert out.split() == [f"{{{cpu}}}"] * 2


@linux
def test_the_thread_that_calls_is_bound_for_the_while():
    before = os.sched_getaffinity(0)
    (cpu,) = choose_cpus(1)
    with bound((cpu,)):
        assert os.sched_getaffinity(0) == {cpu}
    assert os.sched_getaffinity(0) == before


# --- noise -----------------------------------------------------------------------------------------------------------


def test_a_watch_sees_its_children_and_its_loops():
    watch = NoiseWatch(choose_cpus(1))
    looks = [watch.look() for _ in range(8)]
    # 300 waits, each a voluntary context switch of a child that then ends
    subprocess.run([sys.executable, "-c", "import time\nfor _ in range(300): time.sleep(1e-4)"], check=True)
    seen = watch.record()
    assert seen.idle_loops == 8 * LOOPS_AT_ONCE
    assert min(looks) > 0
    assert seen.jitter is not None
    assert seen.jitter >= 0
    assert seen.seconds > 0
    if sys.platform == "linux":
        assert seen.voluntary_switches_per_s > 300  # in less than a second of CPU time
        assert 0 <= seen.steal <= 1
        assert 0 <= seen.other_programs <= 1


def test_a_program_that_is_not_ours_is_another_program():
    """Its CPU time is no child's until it ends, and so nobody's that the watch knows."""
    cpus = choose_cpus(1)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        bind(busy.pid, cpus)
        watch = NoiseWatch(cpus)
        time.sleep(0.5)
        seen = watch.record()
        busy.kill()
    assert seen.other_programs > 0.2


def test_few_loops_have_no_jitter():
    assert jitter_of([100.0] * 63) is None
    assert jitter_of([100.0] * 64) == 0.0
    assert jitter_of([100.0] * 80 + [150.0] * 20) == pytest.approx(0.5)


def test_what_a_system_does_not_tell_is_not_taken_for_quiet(monkeypatch):
    def refuse(percpu):
        raise NotImplementedError

    monkeypatch.setattr(psutil, "cpu_freq", refuse)
    assert frequencies_mhz(()) == ()
    monkeypatch.setattr(noise, "jitter_of", lambda loops: None)
    seen = NoiseWatch().record()
    assert (seen.min_frequency_mhz, seen.max_frequency_mhz, seen.jitter) == (None, None, None)
    assert "frequency n/a" in str(seen)
    assert "idle loop jitter n/a" in str(seen)


def test_noise_as_text():
    seen = MachineNoise(9.0, (1,), 64, 120.0, 0.031, 99.4, 3.2, 0.002, 0.4, 1800.0, 3200.0, 0.66)
    assert str(seen) == (
        "CPU 1; idle loop jitter 3.1 %; context switches a second: 3 involuntary, 99 voluntary; steal 0.2 %; "
        "other programs 40.0 %; frequency 1800 to 3200 MHz; load average 0.7"
    )
