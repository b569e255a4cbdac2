"""Every case in every format on every runtime answers as its source does, at three batch sizes."""

import onnx
import pytest
from cases import BY_NAME, CASES
from exceptions import EVERY, EXCEPTIONS, reason_against

from tsexport.exporters.checks import check_parity, feed_sets
from tsexport.exporters.formats import EXPORT_FORMATS
from tsexport.models.registry import list_entries
from tsexport.runtimes.comparison import TOLERANCES
from tsexport.runtimes.registry import RUNTIMES
from tsexport.types import FORMATS

BATCHES = (1, 2, 7)
PLACES = [(row.name, form) for row in RUNTIMES for form in row.formats if row.name != "tensorrt"]
"""On CPUs.  TensorRT, where each case would be an engine of minutes, has tests/runtimes/test_tensorrt.py."""


def parameters():
    for case in CASES:
        for runtime, artifact_format in PLACES:
            reason = reason_against("fp32", runtime, case.name)
            marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
            yield pytest.param(case.name, runtime, artifact_format, marks=marks)


def test_the_exceptions_name_cases_runtimes_and_reasons():
    for one in EXCEPTIONS:
        assert one.case in (*BY_NAME, EVERY), one
        assert one.runtime in (*(row.name for row in RUNTIMES), "any"), one
        assert one.precision in ("fp32", "fp16", "bf16", "int8"), one
        assert one.reason, one


def test_every_registered_model_has_a_case():
    assert {entry.name for entry in list_entries()} <= {case.model for case in CASES}


@pytest.mark.parametrize(("name", "runtime", "artifact_format"), list(parameters()))
def test_parity(exported, name, runtime, artifact_format):
    one = exported(name)
    tolerance = TOLERANCES[one.case.tolerance or EXPORT_FORMATS[artifact_format].tolerance]
    sets = feed_sets(one.source.spec.inputs, one.real, batches=BATCHES)
    assert [(chosen.name, chosen.batch) for chosen in sets] == [
        (kind, batch) for kind in ("random", "real") for batch in BATCHES
    ]
    results = check_parity(one.source, one.artifact(artifact_format), runtime, sets, tolerance, scaled=True)
    missed = [f"{p.feeds} batch {p.batch}: {p.worst.output} {p.worst.reason}" for p in results if not p.passed]
    assert not missed, missed


@pytest.mark.parametrize("name", BY_NAME)
def test_the_onnx_file_is_opset_17_with_a_dynamic_batch(exported, name):
    one = exported(name)
    model = onnx.load(one.artifact("onnx").path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    onnx.checker.check_model(model, full_check=True)
    for tensors, specs in ((model.graph.input, one.source.spec.inputs), (model.graph.output, one.source.spec.outputs)):
        assert [tensor.name for tensor in tensors] == [spec.name for spec in specs]
        assert [tensor.type.tensor_type.shape.dim[0].dim_param for tensor in tensors] == ["batch"] * len(specs)


@pytest.mark.parametrize("name", BY_NAME)
def test_the_ir_has_a_dynamic_batch_and_full_weights(exported, name):
    import openvino

    one = exported(name)
    model = openvino.Core().read_model(one.artifact("openvino").path)
    assert all(port.get_partial_shape()[0].is_dynamic for port in (*model.inputs, *model.outputs))
    halves = [op for op in model.get_ops() if op.get_type_name() == "Constant" and "f16" in str(op.get_element_type())]
    assert not halves


@pytest.mark.parametrize("name", BY_NAME)
def test_every_rewrite_proved_itself(exported, name):
    for applied in exported(name).converted("onnx").rewrites:
        assert applied.kept, str(applied)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_format_is_described_by_its_file(exported, name):
    one = exported(name)
    for artifact_format in FORMATS:
        artifact = one.artifact(artifact_format)
        assert artifact.size_bytes == sum(path.stat().st_size for path in artifact.files)
        assert (artifact.inputs, artifact.outputs) == (one.source.spec.inputs, one.source.spec.outputs)
        assert artifact.provenance


def test_another_model_is_told_apart(exported):
    linear, dlinear = exported("linear"), exported("dlinear")
    sets = feed_sets(linear.source.spec.inputs, linear.real, batches=BATCHES)
    tolerance = TOLERANCES["fp32-export"]
    results = check_parity(dlinear.source, linear.artifact("onnx"), "onnxruntime", sets, tolerance, scaled=True)
    assert len(results) == 2 * len(BATCHES)
    assert not any(parity.passed for parity in results)
