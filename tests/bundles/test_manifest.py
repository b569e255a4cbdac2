"""manifest.json and selection.json: strict, deterministic, consistent."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.bundles.manifest import (
    ArtifactEntry,
    FileDigest,
    GoldenTolerance,
    Manifest,
    SelectedArtifact,
    Selection,
    manifest_text,
    parse_manifest,
    parse_selection,
    selection_text,
)
from tsexport.errors import BundleError
from tsexport.types import ModelSpec, TensorSpec

TEXT = st.text(st.characters(codec="utf-8"))
NAME = st.from_regex(r"[a-z][a-z0-9.-]{0,11}", fullmatch=True)
DIGEST = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
TOLERANCE = st.builds(GoldenTolerance, TEXT, TEXT, FINITE, FINITE, st.none() | FINITE)
st.register_type_strategy(float, FINITE)
st.register_type_strategy(str, TEXT)


EXAMPLE_MODEL = ModelSpec("m", "f", "forecast", (), ())


@st.composite
def manifests(draw):
    """Any consistent manifest: what the types allow, with artifacts whose names, files and sums agree."""
    inputs = tuple(draw(st.lists(st.builds(TensorSpec), max_size=2)))
    entries = []
    for name in draw(st.lists(NAME, min_size=1, max_size=3, unique=True)):
        sizes = draw(st.lists(st.integers(0, 2**40), min_size=1, max_size=2))
        files = tuple(FileDigest(f"artifacts/{name}.{i}", draw(DIGEST), size) for i, size in enumerate(sizes))
        entry = draw(st.builds(ArtifactEntry, golden_tolerance=TOLERANCE, sha256=DIGEST))
        entries.append(
            replace(
                entry, name=name, path=files[0].path, files=files, size_bytes=sum(sizes), inputs=inputs, outputs=inputs,
                runtimes=("onnxruntime", *draw(st.lists(TEXT, max_size=2))),
            )
        )  # fmt: skip
    json_values = st.dictionaries(TEXT, st.none() | st.booleans() | st.integers() | FINITE | TEXT, max_size=2)
    manifest = draw(
        st.builds(
            Manifest, schema_version=st.just(1), config=json_values, artifacts=st.just(tuple(entries)),
            selected=st.just(SelectedArtifact(entries[0].name, "onnxruntime", draw(TEXT))),
            candidates=st.just(()), model=st.just(EXAMPLE_MODEL), name=NAME,
        )
    )  # fmt: skip
    golden = replace(manifest.golden, samples=abs(manifest.golden.samples) + 1, batch=abs(manifest.golden.batch) + 1)
    return replace(manifest, golden=golden)


@settings(max_examples=40, deadline=None)
@given(manifests())
def test_any_manifest_survives_the_file(manifest):
    text = manifest_text(manifest)
    assert parse_manifest(text) == manifest
    assert manifest_text(parse_manifest(text.encode())) == text


@given(
    st.builds(Selection, schema_version=st.just(1), recipe=st.dictionaries(TEXT, st.integers()), threads=st.integers(1))
)
def test_any_selection_survives_the_file(selection):
    assert parse_selection(selection_text(selection)) == selection


@pytest.fixture
def document(bundle):
    """The example bundle's manifest as plain JSON, to spoil."""
    return json.loads((bundle.path / "manifest.json").read_text())


def refused(document):
    with pytest.raises(BundleError) as caught:
        parse_manifest(json.dumps(document))
    return str(caught.value)


def test_the_example_is_read_whole(bundle):
    text = (bundle.path / "manifest.json").read_text()
    assert manifest_text(bundle.manifest) == text
    assert str(bundle.path) not in text
    assert text.endswith("\n")
    assert json.loads(text)["artifacts"][0]["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}]


@pytest.mark.parametrize("version", [0, 2, "1", 1.0, None, True])
def test_another_schema(document, version):
    message = refused(document | {"schema_version": version, "new_key": 1})
    assert "schema_version" in message
    assert "reads schema_version 1" in message
    assert "build it again" in message


def test_no_manifest_at_all():
    assert "has no schema_version" in refused({})
    assert "has no schema_version" in refused([])


def test_unknown_key_deep_inside(document):
    document["artifacts"][1]["files"][0]["sha265"] = "x"
    message = refused(document)
    assert "artifacts[1].files[0]: unknown key 'sha265' (did you mean 'sha256'?)" in message
    assert "path, sha256, size_bytes" in message
    assert message.endswith("use the tsexport that wrote the bundle, or build it again")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("artifacts", 0, "format"), "tflite", "artifacts[0].format: is \"tflite\", allowed are 'onnx'"),
        (("artifacts", 0, "size_bytes"), 1, "not the sum over its files"),
        (("artifacts", 0, "path"), "artifacts/other", "needed is the first of its files"),
        (("artifacts", 0, "sha256"), "A" * 64, "no SHA-256 in lower-case hex"),
        (("artifacts", 1, "name"), "fp32-onnx", "the artifact name 'fp32-onnx' stands there twice"),
        (("artifacts", 1, "inputs", 0, "name"), "z", "the inputs of int8-onnx are named otherwise"),
        (("artifacts", 0, "golden_tolerance", "rtol"), None, "golden_tolerance needs"),
        (("artifacts",), [], "artifacts is empty"),
        *((("name",), name, "allowed is a folder's name, without '/'") for name in ("", "..", "../x", "a/b", "a\0")),
        (("selected", "artifact"), "fp16", "no artifact 'fp16'; it has fp32-onnx, int8-onnx"),
        (("selected", "runtime"), "tract", "selected.runtime 'tract'"),
        (("golden", "batch"), 0, "a batch of at least one"),
        (("provenance", "seed"), "0", "provenance.seed: is \"0\", needed is an integer"),
    ],
)  # fmt: skip
def test_contradictions_and_wrong_values(document, path, value, message):
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert message in refused(document)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a\\b", "", ".", "a//b", "./a", "a\nb", "a/"])
def test_paths_that_leave_or_pretend(document, path):
    document["artifacts"][0]["files"][0]["path"] = path
    document["artifacts"][0]["path"] = path
    assert "is not allowed" in refused(document)


def test_selection_threads(bundle):
    document = json.loads((bundle.path / "selection.json").read_text())
    with pytest.raises(BundleError, match="threads is 0"):
        parse_selection(json.dumps(document | {"threads": 0}))


def test_selection_names_what_the_bundle_has(bundle):
    path = bundle.path / "selection.json"
    path.write_text(path.read_text().replace("int8-onnx", "int4-onnx"))
    with pytest.raises(BundleError, match="no artifact 'int4-onnx'"):
        _ = bundle.selection


def test_selection_names_a_runtime_that_the_artifact_has(bundle):
    path = bundle.path / "selection.json"
    path.write_text(path.read_text().replace('"runtime": "onnxruntime"', '"runtime": "tract"'))
    with pytest.raises(BundleError, match=r"selection\.json names int8-onnx on tract"):
        _ = bundle.selection
