"""Which recipes a CPU gets, and what every recipe says about itself."""

import pytest

from tsexport.quantize.recipes import MICROSOFT_DOMAIN, OPENVINO_BF16, WITH_VNNI, WITHOUT_VNNI, recipes_for
from tsexport.runtimes.registry import RUNTIMES
from tsexport.targets import CpuFeatures, classify

AVX2 = {"avx2", "fma", "f16c"}
AVX512 = {*AVX2, "avx512f", "avx512bw", "avx512vl"}
REDUCED = ["dynamic-u8", "dynamic-s8-reduced", "static-u8s8-reduced", "nncf-mixed-reduced"]
FULL = ["dynamic-s8", "dynamic-u8", "static-u8s8", "nncf-mixed"]


@pytest.mark.parametrize(
    ("machine", "flags", "names"),
    [
        pytest.param("x86_64", AVX2, REDUCED, id="AVX2 alone"),
        pytest.param("x86_64", AVX512, REDUCED, id="AVX512 without VNNI saturates too"),
        pytest.param("x86_64", set(), REDUCED, id="generic"),
        pytest.param("x86_64", {*AVX2, "avx_vnni"}, FULL, id="AVX-VNNI"),
        pytest.param("x86_64", {*AVX512, "avx512_vnni"}, FULL, id="AVX512-VNNI"),
        pytest.param("x86_64", {*AVX512, "avx512_vnni", "avx512_bf16"}, [*FULL, "openvino-bf16"], id="with bf16"),
        pytest.param(
            "x86_64",
            {*AVX512, "avx512_vnni", "amx_tile", "amx_int8", "amx_bf16"},
            [*FULL, "openvino-bf16"],
            id="AMX",
        ),
        pytest.param("aarch64", {"asimd", "asimddp"}, FULL, id="arm64"),
        pytest.param("aarch64", {"asimd", "asimddp", "bf16"}, [*FULL, "openvino-bf16"], id="arm64 with bf16"),
    ],
)
def test_recipes_by_cpu(machine, flags, names):
    cpu = CpuFeatures("a CPU", *classify(frozenset(flags), machine), flags=tuple(sorted(flags)))
    assert [recipe.name for recipe in recipes_for(cpu)] == names


ALL = (*dict.fromkeys((*WITHOUT_VNNI, *WITH_VNNI, OPENVINO_BF16)),)


def test_names_differ():
    assert len({recipe.name for recipe in ALL}) == len(ALL)


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_a_recipe_runs_where_its_format_does(recipe):
    formats = {row.name: row.formats for row in RUNTIMES}
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
