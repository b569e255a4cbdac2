"""`--component`: the part that is built, its name everywhere, its own rows of the tables, and what is refused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import tsexport
from tsexport.bundles.measured import read_measurements
from tsexport.calibration.trading_days import HELD_OUT_DAYS, TRAINING_DAYS
from tsexport.errors import UsageError
from tsexport.measurements.benchmarking import benchmark_bundle
from tsexport.models import linear
from tsexport.models.definition import Component, Tensors, component_of, components_of
from tsexport.models.registry import get_entry
from tsexport.models.sources import identify, open_source
from tsexport.options import BuildOptions
from tsexport.pipeline import bundle_name
from tsexport.stages.data import plan_data
from tsexport.targets import parse_target
from tsexport.types import random_feeds

SMALL = {
    **{"days": 4, "minutes": 12, "h_width": 8, "h_layers": 1, "h_heads": 2, "h_feed_forward": 8},
    **{"l_width": 12, "l_layers": 1, "l_heads": 2, "l_feed_forward": 16},
}
COMPONENTS = ("h-module", "l-module", "conditioning-heads", "stream-step")
GOLDEN_ATOL = 1e-5
"""fp32 of one small layer on another runtime."""


def test_a_bundle_of_a_component(small_build, fresh_cache):
    bundle = small_build("hrm-27m", set=SMALL, component="h-module", formats=["onnx"])
    manifest = bundle.manifest
    assert bundle.path.name == manifest.name == "hrm-27m-h-module-cpu4-fp32"
    assert (manifest.model.name, manifest.model.component, manifest.model.task) == ("hrm-27m", "h-module", "unknown")
    assert [str(spec) for spec in manifest.model.inputs] == ["daily float32[batch, 4, 16]"]
    assert [str(spec) for spec in manifest.model.outputs] == ["history float32[batch, 4, 8]"]
    assert "component h-module of hrm-27m: the days before, as a history" in manifest.notes
    whole = open_source(identify("hrm-27m", settings=SMALL))
    assert manifest.model.parameters == sum(value.numel() for value in whole.module.h_module.parameters())
    assert json.loads((bundle.path / "manifest.json").read_text())["model"]["component"] == "h-module"
    assert "The component `h-module` of the model `hrm-27m`" in (bundle.path / "README.md").read_text()
    assert "hrm-27m, component h-module" in (bundle.path / "report.html").read_text()
    # its own row of the published tables, here and when it is measured again
    (record,) = read_measurements(bundle)
    again = benchmark_bundle(bundle, batches=(1,), max_seconds=0.05)
    for verdicts in (record.verdicts, again.record.verdicts):
        assert [(v.budget.component, v.budget.max_ms, v.status) for v in verdicts] == [
            ("h-module", 3.0, "not measured")
        ]
    # the whole is another model to the cache and to the tables
    whole_bundle = small_build("hrm-27m", set=SMALL, formats=["onnx"])
    assert whole_bundle.path.name == "hrm-27m-cpu4-fp32"
    assert whole_bundle.manifest.model.component is None
    assert [spec.name for spec in whole_bundle.manifest.model.outputs] == ["forecast", "q"]
    assert [v.budget.component for v in read_measurements(whole_bundle)[0].verdicts] == ["total"]
    assert "The model `hrm-27m`" in (whole_bundle.path / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("component", COMPONENTS[1:])
def test_bundles_of_the_other_components_verify(small_build, fresh_cache, component):
    bundle = small_build("hrm-27m", set={**SMALL, "causal": component == "stream-step"}, component=component)
    assert bundle.manifest.absent_formats == ()
    assert bundle.verify()
    source = open_source(identify("hrm-27m", settings=bundle.manifest.config, component=component))
    feeds = random_feeds(source.spec.inputs, 3, 5)
    expected = source.run(feeds)
    with tsexport.load(bundle) as session:
        for name, array in session.run(feeds).items():
            np.testing.assert_allclose(array, expected[name], atol=GOLDEN_ATOL, rtol=GOLDEN_ATOL)


def test_a_configuration_file_names_a_component(tmp_path, fresh_cache, one_selection):
    config = tmp_path / "build.toml"
    sizes = "\n".join(f"{name} = {value}" for name, value in SMALL.items())
    config.write_text(f'[build]\ncomponent = "conditioning-heads"\nformats = "torchscript"\n[model]\n{sizes}\n')
    selection = one_selection("torchscript-fp32", "torchscript")
    bundle = tsexport.build(
        "hrm-27m", "cpu4-fp32", output=tmp_path, config=config, selection=selection, batch=[1], seconds=0.05
    )
    assert bundle.path.name == "hrm-27m-conditioning-heads-cpu4-fp32"
    assert [spec.name for spec in bundle.manifest.model.outputs] == ["forecast", "q", "scale", "shift"]


def test_every_component_is_another_source():
    settings = {**SMALL, "causal": True}
    identities = [identify("hrm-27m", settings=settings, component=name) for name in (None, *COMPONENTS)]
    assert len({identity.digest for identity in identities}) == len(identities)
    assert {identity.name for identity in identities} == {"hrm-27m"}


def test_the_components_of_a_model_are_those_of_its_definition():
    definition = get_entry("hrm-27m").definition()
    assert tuple(component.name for component in components_of(definition)) == COMPONENTS
    assert component_of(definition, "l-module", model="hrm-27m").name == "l-module"
    assert components_of(get_entry("linear").definition()) == ()


def test_a_third_partys_model_may_have_components():
    first = Component(
        "map", "the map", lambda config: Tensors(config.inputs, config.outputs), lambda whole: whole.Linear
    )
    theirs = SimpleNamespace(Config=linear.Config, build=linear.build, COMPONENTS=(first,))
    part = component_of(theirs, "map", model="theirs")
    whole = theirs.build(linear.Config())
    assert part.take(whole) is whole.Linear
    assert part.tensors(linear.Config()).inputs == linear.Config().inputs


@pytest.mark.parametrize(
    ("component", "name"),
    [(None, "hrm-27m-cpu4-int8-avx2"), ("l-module", "hrm-27m-l-module-cpu4-int8-avx2")],
)
def test_names(component, name):
    assert bundle_name("hrm-27m", "cpu4-int8", "avx2", component) == name


@pytest.mark.parametrize(
    ("model", "component", "message", "next_step"),
    [
        (
            "hrm-27m",
            "h-modul",
            "hrm-27m has no component 'h-modul' (did you mean 'h-module'?); it has h-module, l-module, "
            "conditioning-heads, stream-step",
            "Write for example --component h-module, or leave it out for the whole model.",
        ),
        (
            "linear",
            "h-module",
            "--component h-module does not apply to linear: it is built whole, it has no components",
            "Leave --component out.",
        ),
        (
            "mine:make",
            "h-module",
            "--component h-module does not apply to mine:make: only registered models have components",
            "Leave --component out.",
        ),
    ],
)
def test_components_that_are_not_there(model, component, message, next_step):
    with pytest.raises(UsageError) as caught:
        identify(model, component=component)
    assert (caught.value.message, caught.value.next_step) == (message, next_step)
    assert caught.value.exit_code == 2


def test_a_file_has_no_components(tmp_path):
    (tmp_path / "net.onnx").touch()
    with pytest.raises(UsageError, match=r"does not apply to .*net.onnx: only registered models have components"):
        identify(str(tmp_path / "net.onnx"), component="h-module")


@pytest.mark.slow
def test_int8_of_the_whole_is_calibrated_and_judged_on_trading_days(small_build, fresh_cache):
    bundle = small_build("hrm-27m", "cpu4-int8", races=True, set=SMALL)
    provenance = bundle.manifest.provenance
    for data, windows in ((provenance.calibration, TRAINING_DAYS), (provenance.evaluation, HELD_OUT_DAYS)):
        assert (data.source, data.windows) == ("the reference trading days", windows)
    judged = [candidate for candidate in bundle.manifest.candidates if candidate.accuracy is not None]
    assert judged, [(c.name, c.status, c.reason) for c in bundle.manifest.candidates]
    assert all(candidate.accuracy.metric == "mse" for candidate in judged)
    assert any(candidate.status == "eligible" for candidate in judged)


def test_int8_of_a_component_needs_data_of_its_own(tmp_path):
    options = BuildOptions(model="hrm-27m", target="cpu4-int8", output=tmp_path, component="l-module")
    target, identity = parse_target("cpu4-int8"), identify("hrm-27m", component="l-module")
    with pytest.raises(UsageError, match="no reference series for the component l-module of hrm-27m") as caught:
        plan_data(options, target, identity)
    assert "scale float32[batch, 544]" in caught.value.next_step
    whole = BuildOptions(model="hrm-27m", target="cpu4-int8", output=tmp_path)
    assert plan_data(whole, target, identify("hrm-27m")).reference
