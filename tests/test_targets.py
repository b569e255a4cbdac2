"""Targets and CPUs: what flags mean, what names are taken, and how a refusal reads."""

import contextlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport import cli, targets
from tsexport.devices import facts, version_key
from tsexport.errors import UnsupportedError, UsageError
from tsexport.listing import list_targets
from tsexport.targets import caveats_of, classify, formats_of, host_cpu, parse_target, target_names
from tsexport.types import FORMATS

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


CPU = ("cpu4-fp32", "cpu4-bf16", "cpu4-int8")


def test_target_names():
    assert target_names() == (
        *CPU, "a100-fp32", "a100-fp16", "a100-bf16", "a100-int8", "t4-fp32", "t4-fp16", "t4-int8",
        "jetson-fp16", "jetson-int8", "h100-fp32", "h100-fp16", "h100-bf16", "h100-int8",
        "h200-fp32", "h200-fp16", "h200-bf16", "h200-int8",
    )  # fmt: skip


# --- CPUs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "precision"), [("cpu4-fp32", "fp32"), ("cpu4-int8", "int8")])
def test_this_machine(name, precision):
    target = parse_target(name)
    assert (target.name, target.device, target.precision, target.cores) == (name, "cpu4", precision, 4)
    assert target.instruction_set == host_cpu().instruction_set
    assert target.summary == f"4-core CPU without a GPU, {precision}"
    assert target.here
    assert target.formats == FORMATS
    assert (target.tensorrt, target.jetpack, target.compute_capability, target.caveats) == (None, None, None, ())


@pytest.fixture
def host(monkeypatch):
    """The one thing that cannot be brought along: a machine of a certain kind."""

    def make(instruction_set, *, bf16=False):
        vnni = instruction_set in ("avx512-vnni", "amx")
        cpu = replace(host_cpu(), model="Example CPU", instruction_set=instruction_set, vnni=vnni, bf16=bf16)
        monkeypatch.setattr(targets, "host_cpu", lambda: cpu)

    return make


@pytest.mark.parametrize("device", ["avx512-vnni", "amx", "arm64"])
def test_a_device_that_is_not_this_machines(host, device):
    host("avx2")
    target = parse_target("cpu4-int8", device)
    assert (target.instruction_set, target.here) == (device, False)
    assert target.summary == f"4-core CPU without a GPU, int8, {device}"
    assert target.device_name == f"{device} CPU"
    (caveat,) = caveats_of(target)
    assert caveat.startswith(f"latency was not measured, since the build ran on no {device} CPU; accuracy is that of")


@pytest.mark.parametrize("device", ["avx2", "avx512-vnni", "amx", "arm64"])
def test_this_machines_own_device(host, device):
    host(device)
    assert parse_target("cpu4-int8", device) == parse_target("cpu4-int8", "host") == parse_target("cpu4-int8")
    assert parse_target("cpu4-int8", device).here
    assert caveats_of(parse_target("cpu4-int8", device)) == ()


def test_bf16_on_a_cpu_that_has_it(host):
    host("avx512-vnni", bf16=True)
    assert parse_target("cpu4-bf16").here
    assert parse_target("cpu4-bf16", "avx512-vnni").here
    assert not parse_target("cpu4-bf16", "amx").here


@pytest.mark.parametrize(
    ("mine", "device", "reason"),
    [
        ("avx512-vnni", "host", "Example CPU has none"),
        ("avx2", "avx2", "Example CPU has none"),
        ("amx", "avx2", "avx2 has none"),
        ("amx", "avx512-vnni", "not every avx512-vnni CPU has it"),
        ("amx", "arm64", "not every arm64 CPU has it"),
    ],
)
def test_bf16_on_a_cpu_without(host, mine, device, reason):
    host(mine, bf16=mine == "amx")
    with pytest.raises(UnsupportedError) as caught:
        parse_target("cpu4-bf16", device)
    assert caught.value.exit_code == 5
    assert caught.value.message == f"cpu4-bf16 needs arithmetic in bf16 (AVX512_BF16, AMX or Arm's), and {reason}"
    assert caught.value.next_step == "build for cpu4-int8 or cpu4-fp32, or name --device amx"
    assert "cpu4-bf16" in [target.name for target in list_targets()]  # it is listed all the same


NANO_INT8 = (
    "jetson-int8 on Jetson Nano (original): compute capability 5.3 has no INT8 arithmetic, and TensorRT refuses Q/DQ "
    "there"
)


# --- GPUs and boards -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "device", "found"),
    [
        ("a100-fp32", "host", ("a100", "10.3", None, "8.0")),
        ("a100-bf16", "host", ("a100", "10.3", None, "8.0")),
        ("a100-int8", "@tensorrt-8.6", ("a100", "8.6", None, "8.0")),
        ("a100-fp16", "a100@tensorrt-11.1", ("a100", "11.1", None, "8.0")),
        ("a100-fp16", "a100", ("a100", "10.3", None, "8.0")),
        ("t4-int8", "host", ("t4", "10.3", None, "7.5")),
        ("h100-bf16", "host", ("h100", "10.3", None, "9.0")),
        ("h200-int8", "@tensorrt-8.6", ("h200", "8.6", None, "9.0")),
        ("jetson-int8", "host", ("orin-nano", "10.3", "6.2", "8.7")),
        ("jetson-fp16", "orin-nano", ("orin-nano", "10.3", "6.2", "8.7")),
        ("jetson-int8", "orin-nano@jetpack-6.2", ("orin-nano", "10.3", "6.2", "8.7")),
        ("jetson-int8", "@jetpack-6.1", ("orin-nano", "10.3", "6.1", "8.7")),
        ("jetson-int8", "@jetpack-6.0", ("orin-nano", "8.6", "6.0", "8.7")),
        ("jetson-int8", "@jetpack-5.1", ("orin-nano", "8.5", "5.1", "8.7")),
        ("jetson-int8", "@tensorrt-10.7", ("orin-nano", "10.7", None, "8.7")),
        ("jetson-int8", "agx-orin", ("agx-orin", "10.3", "6.2", "8.7")),
        ("jetson-int8", "agx-orin@jetpack-5.0.2", ("agx-orin", "8.4", "5.0.2", "8.7")),
        ("jetson-int8", "xavier-nx", ("xavier-nx", "8.5", "5.1", "7.2")),
        ("jetson-int8", "xavier-nx@jetpack-5.1", ("xavier-nx", "8.5", "5.1", "7.2")),
        ("jetson-int8", "xavier-nx@jetpack-4.6.1", ("xavier-nx", "8.2", "4.6.1", "7.2")),
        ("jetson-fp16", "jetson-nano", ("jetson-nano", "8.2", "4.6.1", "5.3")),
        ("jetson-fp16", "jetson-nano@jetpack-4.6", ("jetson-nano", "8.0", "4.6", "5.3")),
        ("jetson-fp16", "jetson-nano@jetpack-4.6.6", ("jetson-nano", "8.2", "4.6.6", "5.3")),
    ],
)
def test_a_gpu(name, device, found):
    target = parse_target(name, device)
    assert (target.device, target.tensorrt, target.jetpack, target.compute_capability) == found
    assert (target.instruction_set, target.here, target.formats) == ("gpu", False, ("onnx", "torchscript"))
    assert target.name == name
    assert target.device_name == target.device
    assert f"TensorRT {target.tensorrt}" in target.summary
    assert any("latency was not measured" in caveat for caveat in caveats_of(target))


@pytest.mark.parametrize(
    ("name", "device", "message", "way"),
    [
        (
            "t4-bf16", "host", "t4-bf16 on T4: compute capability 7.5 has no bf16 arithmetic",
            "build for t4-fp16 or t4-int8",
        ),
        (
            "jetson-int8", "jetson-nano", NANO_INT8,
            "build for jetson-fp16 --device jetson-nano",
        ),
        (
            "jetson-int8", "jetson-nano@jetpack-4.6.1", NANO_INT8,
            "build for jetson-fp16 --device jetson-nano",
        ),
        (
            "jetson-fp32", "host", "jetson-fp32 on Jetson Orin Nano 8 GB: it is built for in fp16 or int8 alone",
            "build for jetson-fp16 or jetson-int8 --device orin-nano",
        ),
        (
            "jetson-bf16", "xavier-nx",
            "jetson-bf16 on Jetson Xavier NX: compute capability 7.2 has no bf16 arithmetic",
            "build for jetson-fp16 or jetson-int8 --device xavier-nx",
        ),
        (
            "a100-bf16", "@tensorrt-8.6", "a100-bf16 with TensorRT 8.6: TensorRT computes in bf16 from 9.0 on",
            "build for a100-fp16, or name a later version, such as --device @tensorrt-10.3",
        ),
    ],
)  # fmt: skip
def test_what_a_device_cannot_compute_is_exit_5_and_names_the_way_that_works(name, device, message, way):
    with pytest.raises(UnsupportedError) as caught:
        parse_target(name, device)
    assert (caught.value.message, caught.value.next_step) == (message, way)
    assert caught.value.exit_code == 5
    for word in re.findall(r"[a-z0-9]+-(?:fp32|fp16|bf16|int8)", way):
        assert parse_target(word, device if "tensorrt" not in device else "host").name == word


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("cpu4-int9", "host", "unknown target 'cpu4-int9' (did you mean 'cpu4-int8'?)"),
        ("cpu4", "host", "unknown target 'cpu4'"),
        ("cpu4-fp16", "host", "unknown target 'cpu4-fp16' (did you mean 'cpu4-bf16'?)"),
        ("", "host", "unknown target ''; targets are cpu4-fp32, cpu4-bf16, cpu4-int8, a100-fp32"),
        ("gpu", "host", "unknown target 'gpu'; targets are cpu4-fp32, cpu4-bf16, cpu4-int8, a100-fp32"),
        ("jetsen-int8", "host", "unknown target 'jetsen-int8' (did you mean 'jetson-int8'?)"),
        ("a100-fp8", "host", "unknown target 'a100-fp8' (did you mean 'a100-"),
        ("orin-nano-int8", "host", "unknown target 'orin-nano-int8'"),
        ("cpu4-int8", "avx22", "unknown device 'avx22' for cpu4-int8 (did you mean 'avx2'?)"),
        ("cpu4-int8", "orin", "unknown device 'orin' for cpu4-int8; devices are host, avx2, avx512-vnni, amx, arm64"),
        ("cpu4-int8", "@tensorrt-8.6", "unknown device '@tensorrt-8.6' for cpu4-int8"),
        (
            "jetson-int8", "orin-nona",
            "unknown device 'orin-nona' for jetson-int8 (did you mean 'orin-nano'?); devices are orin-nano, agx-orin, "
            "xavier-nx, jetson-nano, each with or without a release such as @jetpack-6.2",
        ),
        ("a100-int8", "orin-nano", "unknown device 'orin-nano' for a100-int8; devices are a100, each with or without"),
        (
            "jetson-fp16", "jetson-nano@jetpack-6.2",
            "Jetson Nano (original) never had jetpack-6.2 (did you mean 'jetpack-4.6.2'?); it may have @jetpack-4.6, "
            "@jetpack-4.6.1, @jetpack-4.6.2, @jetpack-4.6.3, @jetpack-4.6.4, @jetpack-4.6.5, @jetpack-4.6.6",
        ),
        ("jetson-int8", "@jetpack-4.6", "Jetson Orin Nano 8 GB never had jetpack-4.6 (did you mean"),
        ("jetson-int8", "xavier-nx@jetpack-6.0", "Jetson Xavier NX never had jetpack-6.0"),
        ("jetson-int8", "xavier-nx@tensorrt-8.6", "Jetson Xavier NX never had tensorrt-8.6 (did you mean 'tensorrt-8."),
        ("h100-fp16", "@tensorrt-8.5", "H100 SXM never had tensorrt-8.5 (did you mean 'tensorrt-8.6'?); it may have"),
        ("t4-fp16", "@tensorrt-11.1", "T4 never had tensorrt-11.1"),
        ("a100-fp16", "@tensorrt-9.9", "A100 never had tensorrt-9.9"),
        ("a100-fp16", "@jetpack-6.2", "A100 has no JetPack, and --device asks for jetpack-6.2; name a TensorRT"),
        ("jetson-fp16", "@foo", "Jetson Orin Nano 8 GB never had foo; it may have @jetpack-5.1, "),
        ("jetson-fp16", "orin-nano@", "--device 'orin-nano@' names no release; orin-nano may have @jetpack-5.1, "),
        ("jetson-fp16", "@", "--device '@' names no release; orin-nano may have @jetpack-5.1, "),
        ("jetson-fp16", "", "--device '' names no release; orin-nano may have @jetpack-5.1, "),
    ],
)  # fmt: skip
def test_unknown_names_are_exit_2_and_name_what_is_allowed(name, device, message):
    with pytest.raises(UsageError) as caught:
        parse_target(name, device)
    assert caught.value.message.startswith(message)
    assert caught.value.exit_code == 2


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(
        [*(f"{one}-{p}" for one in ("a100", "t4", "jetson", "h100") for p in ("fp16", "bf16", "int8")), "x"]
    ),
    st.one_of(st.text(max_size=12), st.from_regex(r"(orin-nano|jetson-nano)?@(jetpack|tensorrt)-[0-9.]{1,6}")),
)
def test_any_device_is_a_target_or_an_error_that_says_what_is_allowed(name, device):
    with contextlib.suppress(UsageError, UnsupportedError):  # exit 2 and 5; anything else is a bug
        assert parse_target(name, device).tensorrt in facts().tensorrt


def test_an_unknown_target_says_where_to_look():
    with pytest.raises(UsageError, match=r"cpu4-int8, .*\nrun `tsexport targets`"):
        parse_target("cpu5-int8")


def test_an_unknown_release_says_what_to_leave_out():
    with pytest.raises(UsageError) as caught:
        parse_target("jetson-int8", "@jetpack-4.6")
    assert caught.value.next_step == "leave @jetpack-4.6 out for jetpack-6.2"


@pytest.mark.parametrize("asked", [("openvino",), ("openvino", "onnx")])
def test_formats_of_a_gpu(asked):
    target = parse_target("a100-fp32")
    if "onnx" in asked:
        assert formats_of(target, asked) == ("onnx",)
        return
    with pytest.raises(UsageError) as caught:
        formats_of(target, asked)
    assert caught.value.message == "a100-fp32 runs none of openvino; its formats are onnx, torchscript"


def test_formats_of_a_cpu():
    assert formats_of(parse_target("cpu4-fp32"), FORMATS) == FORMATS


# --- the table of devices --------------------------------------------------------------------------------------------


def test_every_device_of_the_table_holds_together():
    versions = [version_key(one) for one in facts().tensorrt]
    assert versions == sorted(set(versions))
    for device in facts().device:
        assert device.default in device.releases(), device.name
        assert device.tensorrt[0] in facts().tensorrt
        assert device.tensorrt[1] in facts().tensorrt
        assert all(facts().jetpack[one] in device.tensorrt_versions() for one in device.jetpacks())
        assert ("bf16" in device.precisions) <= (version_key(device.compute_capability) >= (8, 0))
        assert ("int8" in device.precisions) == all(peak.int8_tops is not None for peak in device.peak)
        assert device.peak
        for peak in device.peak:
            assert 0 < peak.fp32_tflops < peak.fp16_tflops
            assert peak.bandwidth_gb_s > 0
            assert "published" in peak.basis or "calculated" in peak.basis


def test_the_published_row_of_the_original_nano_keeps_its_caveat():
    (device,) = (one for one in facts().device if one.name == "jetson-nano")
    assert "Jetson Nano, INT8: 200 ms" in device.caveats[0]
    assert device.caveats[0] in caveats_of(parse_target("jetson-fp16", "jetson-nano"))


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--target", "cpu4-int9"), 2, "did you mean 'cpu4-int8'?"),
        (("--target", "cpu4-int8", "--device", "avx22"), 2, "did you mean 'avx2'?"),
        (("--target", "jetson-fp16", "--device", "jetson-nano@jetpack-6.2"), 2, "@jetpack-4.6.1"),
        (("--target", "jetson-int8", "--device", "jetson-nano"), 5, "build for jetson-fp16 --device jetson-nano"),
        (("--target", "t4-bf16"), 5, "build for t4-fp16 or t4-int8"),
    ],
)
def test_exit_codes_of_the_command_line(tmp_path, arguments, code, text):
    result = CliRunner().invoke(cli.main, ["build", "linear", *arguments, "-o", str(tmp_path)], prog_name="tsexport")
    assert result.exit_code == code, result.output
    assert text in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


# --- this machine ----------------------------------------------------------------------------------------------------


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
