"""Which recipes a target gets, and what every recipe says about itself."""

from dataclasses import replace

import pytest

from tsexport.quantize import recipes as tables
from tsexport.quantize.candidates import TOOLS
from tsexport.quantize.cpu_recipes import (
    ARM64,
    OPENVINO_BF16,
    OPENVINO_BF16_ELSEWHERE,
    WITH_AMX,
    WITH_VNNI,
    WITHOUT_VNNI,
)
from tsexport.quantize.recipe import MICROSOFT_DOMAIN, Recipe
from tsexport.quantize.recipes import INT8, recipes_for
from tsexport.runtimes.registry import RUNTIMES
from tsexport.targets import CpuFeatures, Target, classify, host_cpu, parse_target

AVX2 = {"avx2", "fma", "f16c"}
AVX512 = {*AVX2, "avx512f", "avx512bw", "avx512vl"}
BF16 = "openvino-bf16"


def names(recipes):
    return [recipe.name for recipe in recipes]


def this_machine(flags, machine="x86_64"):
    """Return the features of a CPU, and the target cpu4-int8 that is it."""
    cpu = CpuFeatures("a CPU", *classify(frozenset(flags), machine), flags=tuple(sorted(flags)))
    return Target("cpu4-int8", "cpu4", "int8", 4, cpu.instruction_set, "a CPU"), cpu


@pytest.mark.parametrize(
    ("machine", "flags", "expected", "with_bf16"),
    [
        pytest.param("x86_64", AVX2, WITHOUT_VNNI, False, id="AVX2 alone"),
        pytest.param("x86_64", AVX512, WITHOUT_VNNI, False, id="AVX512 without VNNI saturates too"),
        pytest.param("x86_64", set(), WITHOUT_VNNI, False, id="generic"),
        pytest.param("x86_64", {*AVX2, "avx_vnni"}, WITH_VNNI, False, id="AVX-VNNI"),
        pytest.param("x86_64", {*AVX512, "avx512_vnni"}, WITH_VNNI, False, id="AVX512-VNNI"),
        pytest.param("x86_64", {*AVX512, "avx512_vnni", "avx512_bf16"}, WITH_VNNI, True, id="with bf16"),
        pytest.param("x86_64", {*AVX512, "avx512_vnni", "amx_int8", "amx_bf16"}, WITH_AMX, True, id="AMX"),
        pytest.param("aarch64", {"asimd", "asimddp"}, ARM64, False, id="arm64"),
        pytest.param("aarch64", {"asimd", "asimddp", "bf16"}, ARM64, True, id="arm64 with bf16"),
    ],
)
def test_recipes_of_this_machine(machine, flags, expected, with_bf16):
    found = names(recipes_for(*this_machine(flags, machine)))
    assert found[: len(expected)] == names(expected)
    assert (BF16 in found) == with_bf16


HOSTS = {
    "AVX2": AVX2,
    "AVX512-VNNI": {*AVX512, "avx512_vnni", "avx512_bf16"},
    "AMX": {*AVX512, "avx512_vnni", "amx_int8", "amx_bf16"},
}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    ("instruction_set", "expected"),
    [("avx2", WITHOUT_VNNI), ("avx512-vnni", WITH_VNNI), ("amx", WITH_AMX), ("arm64", ARM64)],
)
def test_the_targets_instruction_set_decides_and_not_the_hosts(host, instruction_set, expected):
    _, cpu = this_machine(HOSTS[host])
    elsewhere = Target("cpu4-int8", "cpu4", "int8", 4, instruction_set, "a CPU", here=False)
    assert recipes_for(elsewhere, cpu) == expected


@pytest.mark.parametrize("device", ["host", "avx2", "arm64"])
def test_what_would_saturate_is_never_in_the_list_of_a_target_without_vnni(device):
    """The careless recipe: 8-bit S8 weights against U8 activations, whose products are summed in 16 bits."""
    target = parse_target("cpu4-int8", device)
    recipes = [one for one in recipes_for(target, host_cpu()) if one.precision == "int8"]
    assert recipes
    if target.instruction_set in ("avx2", "generic"):
        assert all(one.weights == "u8" or one.reduce_range for one in recipes)
        assert not {"dynamic-s8", "static-u8s8", "static-s8s8", "nncf-mixed"} & set(names(recipes))
    else:
        assert any(one.weights == "s8" and not one.reduce_range for one in recipes)


def test_arm64_is_served_by_onnxruntime_with_s8_by_s8():
    static = [one for one in ARM64 if one.activations == "static"]
    assert [(one.activation_type, one.weights) for one in static] == [("s8", "s8")] * len(static)
    assert static
    assert {runtime for one in ARM64 for runtime in one.runtimes} == {"onnxruntime"}


@pytest.mark.parametrize("name", ["cpu4-fp32", "a100-fp32", "t4-fp32"])
def test_an_fp32_target_has_no_candidates(name):
    assert recipes_for(parse_target(name), host_cpu()) == ()


def test_bf16_for_a_cpu_and_for_a_gpu():
    _, cpu = this_machine(HOSTS["AVX2"])
    here = Target("cpu4-bf16", "cpu4", "bf16", 4, "avx512-vnni", "a CPU")
    gpu = Target("a100-bf16", "a100", "bf16", 4, "gpu", "a GPU", here=False, tensorrt="10.3")
    assert OPENVINO_BF16 in recipes_for(here, cpu)
    assert {one.precision for one in recipes_for(here, cpu)} == {"bf16"}
    assert OPENVINO_BF16 not in recipes_for(gpu, cpu)
    assert recipes_for(replace(here, instruction_set="amx", here=False), cpu) == (OPENVINO_BF16_ELSEWHERE,)


def test_tensorrt_gets_nothing_that_only_x86_can_use():
    others = {one for key, recipes in INT8.items() if key != "gpu" for one in recipes}
    assert not others & set(INT8["gpu"])
    for recipe in (*INT8["gpu"], *tables.TENSORRT_FP16, *tables.TENSORRT_BF16):
        assert recipe.format == "onnx"


LISTS = [one for one in vars(tables).values() if isinstance(one, tuple) and one and isinstance(one[0], Recipe)]
ALL = tuple(dict.fromkeys(recipe for recipes in LISTS for recipe in recipes))


def test_names_differ():
    assert len({recipe.name for recipe in ALL}) == len(ALL)
    for recipes in LISTS:
        assert len(set(recipes)) == len(recipes)


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_a_recipe_runs_where_its_format_does(recipe):
    formats = {row.name: row.formats for row in RUNTIMES}
    assert recipe.tool in TOOLS
    assert recipe.runtimes
    assert all(recipe.format in formats[runtime] for runtime in recipe.runtimes)
    assert "tract" not in recipe.runtimes
    assert recipe.summary


@pytest.mark.parametrize("recipe", WITHOUT_VNNI, ids=lambda recipe: recipe.name)
def test_nothing_that_saturates_is_tried_without_vnni(recipe):
    assert recipe.weights == "u8" or recipe.reduce_range


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_only_onnxruntime_gets_operators_of_its_own(recipe):
    assert recipe.domains in ((), (MICROSOFT_DOMAIN,))
    assert not recipe.domains or recipe.runtimes == ("onnxruntime",)
