"""Targets and CPUs: what flags mean, what names are taken, and how a refusal reads."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tsexport import targets
from tsexport.errors import TsexportError, UnsupportedError, UsageError
from tsexport.targets import classify, host_cpu, parse_target, target_names

AVX2 = {"avx2", "fma", "f16c", "sse4_2"}
AVX512 = {*AVX2, "avx512f", "avx512bw", "avx512vl"}


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        pytest.param("x86_64", set(), ("generic", False, False), id="no flags"),
        pytest.param("x86_64", {"avx"}, ("generic", False, False), id="AVX alone"),
        pytest.param("x86_64", AVX2, ("avx2", False, False), id="Haswell, Zen 2"),
        pytest.param("AMD64", AVX2, ("avx2", False, False), id="as Windows calls x86-64"),
        pytest.param("x86_64", AVX512, ("avx2", False, False), id="Skylake-X: AVX512 without VNNI"),
        pytest.param("x86_64", {*AVX2, "avx_vnni"}, ("avx512-vnni", True, False), id="Alder Lake"),
        pytest.param("x86_64", {*AVX512, "avx512_vnni"}, ("avx512-vnni", True, False), id="Ice Lake"),
        pytest.param("x86_64", {*AVX512, "avx512vnni"}, ("avx512-vnni", True, False), id="as some systems spell it"),
        pytest.param("x86_64", {*AVX512, "avx512_vnni", "avx512_bf16"}, ("avx512-vnni", True, True), id="Zen 4"),
        pytest.param(
            "x86_64", {*AVX512, "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "amx_tile"},
            ("amx", True, True), id="Sapphire Rapids",
        ),
        pytest.param("x86_64", {*AVX512, "amx_tile", "amx_int8"}, ("amx", True, False), id="AMX for integers alone"),
        pytest.param("aarch64", {"asimd", "asimddp"}, ("arm64", False, False), id="Graviton 2"),
        pytest.param("aarch64", {"asimd", "asimddp", "i8mm", "bf16"}, ("arm64", False, True), id="Graviton 3"),
        pytest.param("arm64", set(), ("arm64", False, False), id="as macOS calls arm64"),
        pytest.param("aarch64", {"avx2", "avx512_vnni"}, ("arm64", False, False), id="x86 flags mean nothing there"),
    ],
)  # fmt: skip
def test_classify(machine, flags, expected):
    assert classify(frozenset(flags), machine) == expected


def test_target_names():
    assert target_names() == ("cpu4-fp32", "cpu4-int8")


@pytest.mark.parametrize(("name", "precision"), [("cpu4-fp32", "fp32"), ("cpu4-int8", "int8")])
def test_a_target(name, precision):
    target = parse_target(name)
    assert (target.name, target.device, target.precision, target.cores) == (name, "cpu4", precision, 4)
    assert target.instruction_set == host_cpu().instruction_set
    assert target.summary == f"4-core CPU without a GPU, {precision}"


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("cpu4-int9", "host", "unknown target 'cpu4-int9' (did you mean 'cpu4-int8'?)"),
        ("cpu4", "host", "unknown target 'cpu4'"),
        ("cpu4-fp16", "host", "unknown target 'cpu4-fp16' (did you mean 'cpu4-fp32'?)"),
        ("", "host", "unknown target ''; targets are cpu4-fp32, cpu4-int8"),
        ("gpu", "host", "unknown target 'gpu'; targets are cpu4-fp32, cpu4-int8"),
        ("cpu4-int8", "avx22", "unknown device 'avx22' for cpu4-int8 (did you mean 'avx2'?)"),
        ("cpu4-int8", "orin", "unknown device 'orin' for cpu4-int8; devices are host, avx2, avx512-vnni, amx, arm64"),
    ],
)
def test_unknown_names(name, device, message):
    with pytest.raises(UsageError) as caught:
        parse_target(name, device)
    assert caught.value.message.startswith(message)
    assert caught.value.exit_code == 2


def test_an_unknown_target_says_where_to_look():
    with pytest.raises(UsageError, match=r"targets are cpu4-fp32, cpu4-int8\nrun `tsexport targets`"):
        parse_target("cpu5-int8")


@pytest.fixture
def avx2_host(monkeypatch):
    """The one thing that cannot be brought along: a machine of a certain kind."""
    cpu = replace(host_cpu(), model="Example CPU", instruction_set="avx2", vnni=False, bf16=False)
    monkeypatch.setattr(targets, "host_cpu", lambda: cpu)
    return cpu


@pytest.mark.parametrize("device", ["avx512-vnni", "amx", "arm64"])
def test_a_device_that_is_not_this_machines(avx2_host, device):
    with pytest.raises(UnsupportedError) as caught:
        parse_target("cpu4-int8", device)
    assert caught.value.message == f"this machine is avx2 (Example CPU), and --device asks for {device}"
    assert f"build on a machine with {device}" in caught.value.next_step
    assert isinstance(caught.value, TsexportError)
    assert caught.value.exit_code == 5


def test_this_machines_own_device(avx2_host):
    assert parse_target("cpu4-int8", "avx2") == parse_target("cpu4-int8", "host") == parse_target("cpu4-int8")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--target", "cpu4-int9"), 2, "did you mean 'cpu4-int8'?"),
        (("--target", "cpu4-int8", "--device", "avx22"), 2, "did you mean 'avx2'?"),
        (("--target", "cpu4-int8", "--device", "arm64"), 5, "--device asks for arm64"),
    ],
)
def test_exit_codes_of_the_command_line(tmp_path, arguments, code, text):
    if "arm64" in arguments and host_cpu().instruction_set == "arm64":
        pytest.skip("this machine is arm64, so the device is its own")
    command = [sys.executable, "-m", "tsexport", "build", "linear", *arguments, "-o", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code
    assert text in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_host_is_detected_once():
    cpu = host_cpu()
    assert cpu is host_cpu()
    assert cpu.model
    assert cpu.instruction_set in ("avx2", "avx512-vnni", "amx", "arm64", "generic")
    assert list(cpu.flags) == sorted(set(cpu.flags))
    assert set(cpu.flags) <= set(targets._DECIDING_FLAGS)
    assert cpu.vnni == (cpu.instruction_set in ("avx512-vnni", "amx"))


def test_the_host_as_linux_sees_it():
    """/proc/cpuinfo, read without py-cpuinfo."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        pytest.skip("there is no /proc/cpuinfo")
    text = path.read_text()
    lines = [line.partition(":")[2] for line in text.splitlines() if line.startswith(("flags", "Features"))]
    flags = set(lines[0].split()) if lines else set()
    cpu = host_cpu()
    assert set(cpu.flags) == flags & set(targets._DECIDING_FLAGS)
    assert cpu.vnni == bool(flags & {"avx512_vnni", "avx_vnni"})
