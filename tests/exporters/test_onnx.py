"""ONNX: a true opset 17, a dynamic batch, the specification's names, and nothing believed that was not read back."""

import os
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tsexport.errors import ExportError, ParityError
from tsexport.exporters.capture import captured_stdout
from tsexport.exporters.formats import EXPORT_FORMATS
from tsexport.exporters.onnx import export_onnx
from tsexport.exporters.onnx_adopt import adopt_onnx
from tsexport.exporters.onnx_cleanup import remove_identities
from tsexport.exporters.onnx_file import finish_onnx, tensor_spec, validate_onnx, validate_runs
from tsexport.exporters.onnx_lowering import lower_to_opset17
from tsexport.exporters.openvino import export_openvino
from tsexport.runtimes.comparison import TOLERANCES, compare_outputs
from tsexport.runtimes.registry import get_runtime, load
from tsexport.types import ModelSpec, TensorSpec, random_feeds

SOUND = ("mlp", "encoder", "lstm", "conv", "two-inputs", "two-outputs")


def answers(module, spec, feeds):
    module.eval()
    with torch.inference_mode():
        answer = module(*(torch.from_numpy(feeds[t.name].copy()) for t in spec.inputs))
    answer = answer if isinstance(answer, tuple) else (answer,)
    return {t.name: a.numpy() for t, a in zip(spec.outputs, answer, strict=True)}


def text_model(body, opset=17, ir=8, inputs="float[batch, 6] x", outputs="float[batch, 6] y"):
    text = f'<ir_version: {ir}, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    return onnx.parser.parse_model(text)


def spec_of(*, outputs=("y", 6)):
    name, *dims = outputs
    x, y = TensorSpec("x", "float32", ("batch", 6)), TensorSpec(name, "float32", ("batch", *dims))
    return ModelSpec("m", "test", "unknown", (x,), (y,))


@pytest.mark.parametrize("name", [*SOUND, "unfold-after-pad"])
def test_exported_file_is_opset_17_and_answers_as_the_module(make, tmp_path, name):
    module, spec = make(name)
    artifact = export_onnx(module, spec, random_feeds(spec.inputs, 1, 0), tmp_path / "model.onnx")
    model = onnx.load(artifact.path)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert (model.ir_version, artifact.opset) == (8, 17)
    assert tuple(map(tensor_spec, model.graph.input)) == spec.inputs
    assert tuple(map(tensor_spec, model.graph.output)) == spec.outputs
    assert not [n for n in model.graph.node if n.op_type == "Identity"]
    assert b"site-packages" not in artifact.path.read_bytes()
    assert b"conftest" not in artifact.path.read_bytes()
    with load(artifact, "onnxruntime", threads=1) as session:
        for batch in (1, 4):
            feeds = random_feeds(spec.inputs, batch, 3)
            compared = compare_outputs(
                answers(module, spec, feeds), session.run(feeds), TOLERANCES["fp32-export"], scaled=True
            )
            assert all(c.passed for c in compared), compared


@pytest.mark.parametrize("name", ["encoder", "two-outputs"])
def test_same_module_gives_the_same_bytes(make, tmp_path, name):
    files = []
    for stem in ("a", "b"):
        module, spec = make(name)
        files.append(export_onnx(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / f"{stem}.onnx"))
    assert files[0].sha256 == files[1].sha256


@pytest.mark.parametrize("fastpath", [True, False])
@pytest.mark.parametrize("name", ["encoder", "unexportable"])
def test_fast_path_and_training_mode_are_restored_also_on_failure(make, tmp_path, name, fastpath):
    module, spec = make(name)
    assert module.training
    torch.backends.mha.set_fastpath_enabled(fastpath)
    try:
        if name == "unexportable":
            with pytest.raises(ExportError):
                export_onnx(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.onnx")
        else:
            export_onnx(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.onnx")
        assert torch.backends.mha.get_fastpath_enabled() is fastpath
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert module.training


def test_failing_export_names_both_reasons_and_prints_nothing(make, tmp_path, capfd):
    module, spec = make("unexportable")
    with pytest.raises(ExportError) as caught:
        export_onnx(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.onnx")
    assert "With dynamo=False: Exporting the operator 'aten::linalg_eigvals'" in caught.value.message
    assert "With dynamo=True: torch.export: " in caught.value.message
    assert caught.value.next_step
    assert capfd.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_graph_that_cpp_prints_is_captured(make, tmp_path, capfd):
    # this one prints "Torch IR graph at exception: ..." from C++, and is then saved by the second exporter
    module, spec = make("unfold-after-pad")
    artifact = export_onnx(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.onnx")
    assert capfd.readouterr().out == ""
    assert "dynamo=False failed: Unsupported: ONNX export of operator Unfold, input size" in artifact.provenance[0]
    assert "opset 18 to 17" in artifact.provenance[1]


def test_captured_stdout_holds_what_c_and_python_print_and_gives_stdout_back(capfd):
    with captured_stdout() as read:
        os.write(1, b"from C\n")
        assert "from C" in read()
    with pytest.raises(RuntimeError), captured_stdout():
        raise RuntimeError
    print("after")
    sys.stdout.flush()
    assert capfd.readouterr().out == "after\n"


def test_dropout_outside_eval_mode_is_an_error(make, tmp_path):
    module, spec = make("always-dropout")
    with pytest.raises(ExportError, match="answers the same input differently each time"):
        export_onnx(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.onnx")


@pytest.mark.parametrize(("name", "kind"), [("baked-reshape", ExportError), ("baked-value", ParityError)])
def test_baked_batch_size_is_explained(make, tmp_path, name, kind):
    module, spec = make(name)
    with pytest.raises(kind, match="batch size was baked in") as caught:
        export_onnx(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.onnx")
    assert "conftest.py:" in caught.value.message


def test_export_that_comes_out_as_opset_18_is_refused(make, tmp_path, monkeypatch):
    """What dynamo=True gives when it is asked for 17: the exporter is made to ask for 18."""
    module, spec = make("mlp")
    monkeypatch.setattr("tsexport.exporters.onnx.OPSET", 18)
    with pytest.raises(ExportError, match=r"imports the operator sets ai.onnx 18; it must be ai.onnx 17 alone"):
        export_onnx(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("model", "spec", "message"),
    [
        (text_model("y = Relu(x)", opset=18), spec_of(), "ai.onnx 18; it must be ai.onnx 17 alone"),
        (text_model("y = Relu(x)", ir=10), spec_of(), "IR version 10, opset 17 needs 8"),
        (text_model("y = Relu(x)"), spec_of(outputs=("forecast", 6)), r"has the tensors \(y float32"),
        (text_model("y = Relu(x)"), spec_of(outputs=("y", 5)), r"expected \(y float32\[batch, 5\]\)"),
        (text_model("y = Relu(x)", inputs="float[2, 6] x"), spec_of(), "'x' is fixed at 2, it must be dynamic"),
        (text_model("y = Relu(x)", inputs="float[N, 6] x"), spec_of(), r"x float32\[N, 6\]"),
        (text_model("y = NoSuchOperator(x)"), spec_of(), "is not valid"),
        (text_model("y = Relu(z)"), spec_of(), "is not valid"),
    ],
)
def test_invalid_models_are_refused(tmp_path, model, spec, message):
    with pytest.raises(ExportError, match=message):
        finish_onnx(model, spec, tmp_path / "model.onnx", ())
    assert list(tmp_path.iterdir()) == []


def test_model_of_another_domain_is_refused():
    model = text_model("y = Relu(x)")
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(ExportError, match=r"com.microsoft 1; it must be ai.onnx 17 alone"):
        validate_onnx(model, spec_of())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("r = RandomNormalLike(x) y = Add(x, r)", "answers the same input differently each time in 'y'"),
        ("s = Constant<value_ints=[2, 6]>() y = Reshape(x, s)", "fails in ONNX Runtime at batch 3"),
        (
            "a = Constant<value_ints=[0]>() y = ReduceSum<keepdims=1>(x, a)",
            "gives 'y' the shape",
        ),
    ],
)
def test_models_that_run_wrongly_are_refused(body, message):
    with pytest.raises(ExportError, match=message):
        validate_runs(text_model(body).SerializeToString(), spec_of())


def test_file_that_onnx_runtime_refuses_is_an_error():
    with pytest.raises(ExportError, match="does not load in ONNX Runtime"):
        validate_runs(b"not a model", spec_of())


def test_finished_models_carry_no_documentation_and_are_reproducible(tmp_path):
    sha = set()
    for stem in ("a", "b"):
        model = text_model("y = Relu(x)")
        model.graph.node[0].doc_string = f"/home/{stem}/model.py"
        model.graph.node[0].metadata_props.add(key="stack_trace", value=f"/home/{stem}/model.py")
        artifact = finish_onnx(model, spec_of(), tmp_path / f"{stem}.onnx", ("made by hand",), name="onnx-x")
        sha.add(artifact.sha256)
        assert b"/home/" not in artifact.path.read_bytes()
        assert (artifact.name, artifact.provenance, artifact.precision) == ("onnx-x", ("made by hand",), "fp32")
    assert len(sha) == 1


def test_identities_of_shared_initializers_go_and_those_that_write_outputs_stay():
    model = text_model("a = Identity(w) b = Identity(a) c = Add(x, b) y = Identity(c)")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(6, np.float32), "w"))
    assert remove_identities(model) == 2
    assert [(n.op_type, list(n.input)) for n in model.graph.node] == [("Add", ["x", "w"]), ("Identity", ["c"])]


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("a = Constant<value_ints=[1]>() m = ReduceMean<keepdims=1>(x, a) y = Sub(x, m)", ("y", 6)),
        ("a = Constant<value_ints=[-1]>() y = ReduceMax<keepdims=1>(x, a)", ("y", 1)),
        ("s, t = Split<axis=1, num_outputs=2>(x) y = Add(s, t)", ("y", 3)),
        ("p, q, y = Split<axis=-1, num_outputs=3>(x)", ("y", 2)),
        (
            "p = Constant<value_ints=[1, 2]>() v = Constant<value_float=0.5>() a = Constant<value_ints=[-1]>()"
            "y = Pad(x, p, v, a)",
            ("y", 9),
        ),
        ("y = Relu(x)", ("y", 6)),
    ],
)
def test_lowered_opset_18_graphs_answer_as_before(body, outputs):
    model = text_model(body, opset=18, ir=8, outputs=f"float[batch, {outputs[1]}] y")
    feeds = random_feeds(spec_of().inputs, 3, 0)

    def run(m):
        return onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(["y"], feeds)

    before = run(model)[0]
    lower_to_opset17(model)
    validate_onnx(model, spec_of(outputs=outputs))
    np.testing.assert_array_equal(run(model)[0], before)


def test_uneven_split_gets_its_sizes_written_out():
    model = text_model(
        "s, t = Split<axis=1, num_outputs=2>(x) y = Identity(t)",
        opset=18,
        inputs="float[batch, 5] x",
        outputs="float[batch, 2] y",
    )
    assert lower_to_opset17(model) == ("num_outputs of Split dropped (1)",)
    sizes = next(t for t in model.graph.initializer if t.name == model.graph.node[0].input[1])
    assert list(numpy_helper.to_array(sizes)) == [3, 2]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("a = Shape(x) y = ReduceMean<keepdims=1>(x, a)", "computes its axes"),
        ("y = ReduceMean<noop_with_empty_axes=1>(x)", "17 cannot say it"),
        ("s, t = Split<axis=0, num_outputs=2>(x) y = Identity(s)", "dimension of unknown size"),
        (
            "p = Shape(x) v = Constant<value_float=0.5>() a = Constant<value_ints=[-1]>() y = Pad(x, p, v, a)",
            "opset 17 needs them constant|computes its axes",
        ),
    ],
)
def test_what_opset_17_cannot_say_is_an_error(body, message):
    with pytest.raises(ExportError, match=message):
        lower_to_opset17(text_model(body, opset=18))


def test_adopted_opset_17_file_keeps_its_bytes(make, tmp_path):
    module, spec = make("mlp")
    exported = export_onnx(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "user.onnx")
    adopted = adopt_onnx(exported.path, spec, tmp_path / "model.onnx")
    assert adopted.path.read_bytes() == exported.path.read_bytes()
    assert (adopted.opset, adopted.provenance) == (17, ("adopted from user.onnx, opset 17, IR version 8",))


@pytest.mark.parametrize(
    ("model", "opset", "note"),
    [
        (text_model("y = Relu(x)", opset=13), 17, "converted from opset 13 to 17, same answers"),
        (text_model("y = Relu(x)", opset=18), 17, "converted from opset 18 to 17, same answers"),
        (text_model("y = Gelu(x)", opset=20, ir=9), 20, "kept in opset 20: "),
        (text_model("a = Shape(x) b = Size(a) c = Constant<value_ints=[1]>() d = Add(c, b) e = Sub(d, c) "
                    "f = Sub(e, c) z = ReduceMean<keepdims=1>(x, f) y = Add(x, z)", opset=18),
         18, "kept in opset 18: ReduceMean node '' computes its axes"),
        (text_model("y = Relu(x)", inputs="float[N, 6] x", outputs="float[N, 6] y"), 17, "leading dimension of x, y"),
    ],
)  # fmt: skip
def test_adopted_files_are_converted_or_say_why_not(tmp_path, model, opset, note):
    onnx.save(model, tmp_path / "user.onnx")
    artifact = adopt_onnx(tmp_path / "user.onnx", spec_of(), tmp_path / "model.onnx")
    assert artifact.opset == opset
    assert any(note in line for line in artifact.provenance), artifact.provenance
    assert max(o.version for o in onnx.load(artifact.path).opset_import) == opset
    feeds = random_feeds(artifact.inputs, 4, 0)
    with load(artifact, "onnxruntime", threads=1) as session:
        assert session.run(feeds)["y"].shape == (4, 6)


def test_adopted_file_of_another_domain_is_kept(tmp_path):
    model = text_model("y = Relu(x)", opset=18)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "user.onnx")
    artifact = adopt_onnx(tmp_path / "user.onnx", spec_of(), tmp_path / "model.onnx")
    assert (artifact.opset, artifact.provenance[-1]) == (18, "kept in opset 18: it uses operators of com.microsoft")


def test_adopted_external_data_is_embedded(tmp_path):
    model = text_model("y = Add(x, w)")
    model.graph.initializer.append(numpy_helper.from_array(np.arange(6, dtype=np.float32), "w"))
    onnx.save(model, tmp_path / "user.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    artifact = adopt_onnx(tmp_path / "user.onnx", spec_of(), tmp_path / "out" / "model.onnx")
    assert "external data embedded" in artifact.provenance
    with load(artifact, "onnxruntime", threads=1) as session:
        np.testing.assert_array_equal(session.run({"x": np.zeros((1, 6), np.float32)})["y"][0], np.arange(6))


@pytest.mark.parametrize(
    ("content", "message"), [(b"not a model", "cannot be read|has the tensors"), (None, "cannot be read")]
)
def test_file_that_is_no_model_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "user.onnx").write_bytes(content)
    with pytest.raises(ExportError, match=message):
        adopt_onnx(tmp_path / "user.onnx", spec_of(), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_adopted_file_with_other_tensors_is_refused(tmp_path):
    onnx.save(text_model("y = Relu(x)"), tmp_path / "user.onnx")
    with pytest.raises(ExportError, match=r"has the tensors \(y float32\[batch, 6\]\), expected \(forecast"):
        adopt_onnx(tmp_path / "user.onnx", spec_of(outputs=("forecast", 6)), tmp_path / "model.onnx")


@pytest.mark.parametrize("name", SOUND)
def test_openvino_ir_keeps_names_and_answers(make, tmp_path, name):
    module, spec = make(name)
    exported = export_onnx(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.onnx")
    artifact = export_openvino(exported, tmp_path / "ir" / "model.xml")
    assert artifact.files == (tmp_path / "ir" / "model.xml", tmp_path / "ir" / "model.bin")
    assert (artifact.inputs, artifact.outputs) == (spec.inputs, spec.outputs)
    assert ("INFERENCE_PRECISION_HINT", "f32") in artifact.options
    assert artifact.provenance[: len(exported.provenance)] == exported.provenance
    # half precision would store the weights in half of that
    stored = sum(
        int(np.prod(t.dims)) * 4 for t in onnx.load(exported.path).graph.initializer if t.data_type == TensorProto.FLOAT
    )
    assert artifact.files[1].stat().st_size >= 0.9 * stored
    with load(artifact, "openvino", threads=1) as session:
        for batch in (1, 4):
            feeds = random_feeds(spec.inputs, batch, 3)
            compared = compare_outputs(
                answers(module, spec, feeds), session.run(feeds), TOLERANCES["fp32-export"], scaled=True
            )
            assert all(c.passed for c in compared), compared
    assert sorted(p.name for p in (tmp_path / "ir").iterdir()) == ["model.bin", "model.xml"]


def test_openvino_ir_is_reproducible_and_holds_no_paths(make, tmp_path):
    module, spec = make("encoder")
    exported = export_onnx(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.onnx")
    artifacts = [export_openvino(exported, tmp_path / stem / "model.xml") for stem in ("a", "b")]
    assert artifacts[0].sha256 == artifacts[1].sha256
    assert str(tmp_path).encode() not in artifacts[0].path.read_bytes()
    assert b"input_model" not in artifacts[0].path.read_bytes()


def test_onnx_that_openvino_cannot_convert_is_an_error(make, tmp_path):
    module, spec = make("mlp")
    exported = export_onnx(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.onnx")
    exported.path.write_bytes(b"not a model")
    with pytest.raises(ExportError, match="cannot be converted to OpenVINO IR"):
        export_openvino(exported, tmp_path / "model.xml")


def test_table_of_formats_names_runtimes_and_tolerances_that_exist():
    assert list(EXPORT_FORMATS) == ["torchscript", "onnx", "openvino"]
    for row in EXPORT_FORMATS.values():
        assert row.tolerance in TOLERANCES
        for runtime in row.runtimes:
            assert row.name in get_runtime(runtime).formats
