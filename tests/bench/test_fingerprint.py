import dataclasses
import platform
import socket
import subprocess
import sys

import numpy as np
import pytest

from tsexport.bench.fingerprint import (
    Machine,
    cpu_governor,
    cpu_quota,
    fingerprint,
    installed_versions,
    memory_limit,
    usable_cores,
)
from tsexport.codec import decode, encode


@pytest.fixture(scope="module")
def here() -> Machine:
    return fingerprint()


def test_it_describes_this_machine(here):
    assert 1 <= here.usable_cores <= here.logical_cores
    assert 1 <= here.physical_cores <= here.logical_cores
    assert here.memory_bytes > 100 * 10**6
    assert dict(here.packages)["numpy"] == np.__version__
    assert here.python.endswith(platform.python_version())
    assert here.cpu_model


def test_the_id_is_the_same_each_time_and_in_another_process(here):
    code = "from tsexport.bench.fingerprint import fingerprint; print(fingerprint().machine_id)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == here.machine_id
    assert len(here.machine_id) == 12


def test_nothing_heavy_is_imported_for_it():
    code = (
        "import sys; from tsexport.bench.fingerprint import fingerprint; fingerprint();"
        "print(*{'torch', 'onnx', 'onnxruntime', 'openvino', 'nncf', 'tract'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


def test_it_survives_json_and_holds_no_host_name(here):
    text = encode(here)
    assert decode(Machine, text, what="machine") == here
    assert f'"{socket.gethostname()}"' not in text


def test_versions_do_not_change_the_id(here, monkeypatch):
    monkeypatch.setattr(platform, "release", lambda: "99.0-other")
    other = fingerprint()
    assert other.kernel != here.kernel
    assert other.machine_id == here.machine_id


def test_what_is_not_installed_is_left_out():
    assert installed_versions(("no-such-package-here",)) == ()


@pytest.mark.parametrize(("affinity", "quota", "expected"), [(8, None, 8), (8, 3.5, 3), (2, 3.5, 2), (8, 0.5, 1)])
def test_usable_cores(affinity, quota, expected):
    assert usable_cores(affinity, quota) == expected


def write(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_limits_of_cgroup_v2_are_the_least_up_to_the_root(tmp_path):
    write(tmp_path, "proc/self/cgroup", "0::/outer/inner\n")
    write(tmp_path, "sys/fs/cgroup/outer/inner/cpu.max", "max 100000\n")
    write(tmp_path, "sys/fs/cgroup/outer/cpu.max", "350000 100000\n")
    write(tmp_path, "sys/fs/cgroup/outer/inner/memory.max", "max\n")
    write(tmp_path, "sys/fs/cgroup/outer/memory.max", "1000000\n")
    assert cpu_quota(tmp_path) == 3.5
    assert memory_limit(2_000_000, tmp_path) == 1_000_000
    assert memory_limit(500_000, tmp_path) is None


def test_limits_of_cgroup_v1(tmp_path):
    write(tmp_path, "proc/self/cgroup", "4:memory:/a\n3:cpu,cpuacct:/a\n0::/\n")
    write(tmp_path, "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "-1\n")
    write(tmp_path, "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n")
    write(tmp_path, "sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n")
    assert cpu_quota(tmp_path) is None
    assert memory_limit(2_000_000, tmp_path) is None
    write(tmp_path, "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "200000\n")
    assert cpu_quota(tmp_path) == 2.0


def test_a_container_that_sees_only_its_own_root(tmp_path):
    write(tmp_path, "proc/self/cgroup", "0::/host/path/not/here\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "150000 100000\n")
    assert cpu_quota(tmp_path) == 1.5


def test_without_cgroups_and_governor_there_is_no_limit(tmp_path):
    assert (cpu_quota(tmp_path), memory_limit(1, tmp_path), cpu_governor(tmp_path)) == (None, None, "")
    write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n")
    assert cpu_governor(tmp_path) == "powersave"


def test_a_machine_reads_as_one_line(here):
    assert str(dataclasses.replace(here, cpu_model="X", usable_cores=2, instruction_set="avx2")) == "X, 2 cores, avx2"
