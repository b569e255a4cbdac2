"""JSON to arrays and back, /predict's bodies, and decompression: what is taken, and every refusal."""

import gzip
import json
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tsexport.serving import plain
from tsexport.serving.bodies import decompress
from tsexport.serving.datatypes import DATATYPES, datatype_of, describe, shape_of
from tsexport.serving.json_tensors import array_of, json_bytes, kind_of, listed, parse_json
from tsexport.serving.refusals import Refusal, unfit
from tsexport.types import TensorSpec

INPUTS = (TensorSpec("x", "float32", ("batch", 2)), TensorSpec("steps", "int64", ("batch",)))


@st.composite
def arrays(draw):
    dtype = np.dtype(draw(st.sampled_from(list(DATATYPES))))
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4))
    return draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(dtype, **finite)))


@given(arrays())
def test_an_array_survives_json_to_the_bit(array):
    again = array_of(parse_json(json_bytes({"x": listed(array, "x")}))["x"], array.dtype.name, "x")
    assert again.dtype == array.dtype
    assert again.shape == array.shape
    np.testing.assert_array_equal(again, array)


@given(arrays())
def test_what_is_written_is_what_pythons_json_reads(array):
    assert json.loads(json_bytes({"x": listed(array, "x")}))["x"] == array.tolist()


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (3, "float32", "the data of 'x' is a number, needed are nested lists"),
        (None, "float32", "the data of 'x' is null"),
        ({}, "float32", "the data of 'x' is an object"),
        ([[1], [1, 2]], "float32", "the lists of 'x' are not of one length and depth in dimension 1"),
        ([[1], 2], "float32", "the lists of 'x' are not of one length and depth in dimension 1"),
        ([1, [2]], "float32", "'x' holds a list among its data; float32 takes numbers"),
        ([[[1], [2, 3]]], "float32", "in dimension 2"),
        ([True, 1.5], "float32", "'x' holds true or false among its data; float32 takes numbers"),
        (["1"], "float32", "'x' holds a text among its data; float32 takes numbers"),
        ([None], "float64", "'x' holds null among its data; float64 takes numbers"),
        ([1.0], "int64", "'x' holds a number among its data; int64 takes whole numbers"),
        ([1], "bool", "'x' holds a number among its data; bool takes true and false"),
        ([300], "uint8", "'x' holds 300; uint8 takes 0 to 255"),
        ([-1], "uint64", "'x' holds -1; uint64 takes 0 to"),
        ([10**100], "int64", "'x' holds a whole number of some 101 digits; int64 takes"),
        ([1, 1e39], "float32", "'x' holds 1e+39; float32 takes numbers up to 3.403e+38"),
        ([70000], "float16", "'x' holds 70000; float16 takes numbers up to 6.55e+04"),
        ([10**400], "float64", "'x' holds a number that float64 does not"),
    ],
)
def test_values_that_do_not_fit(value, dtype, message):
    with pytest.raises(Refusal) as caught:
        array_of(value, dtype, "x")
    assert message in caught.value.message
    assert caught.value.status == 422


def test_lists_nested_too_deep():
    value = [1]
    for _ in range(16):
        value = [value]
    with pytest.raises(Refusal, match="the lists of 'x' are nested more than 16 deep"):
        array_of(value, "float32", "x")


@pytest.mark.parametrize("text", [b"NaN", b"[Infinity]", b"", b"\xff", b"[1]2", b"[" * 3000, b"9" * 5000])
def test_what_is_no_json(text):
    with pytest.raises(Refusal, match="the body is no JSON: ") as caught:
        parse_json(text)
    assert caught.value.status == 400


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_json_cannot_hold_is_not_written(value):
    with pytest.raises(Refusal, match="the answer 'y' holds NaN or infinity, which JSON cannot hold; ask for it as"):
        listed(np.array([1, value]), "y")


def test_kinds():
    found = [kind_of(value) for value in (None, True, 1, 1.5, "a", [], {})]
    assert found == ["null", "true or false", "a number", "a number", "a text", "a list", "an object"]


def test_datatypes_of_tensors():
    assert [datatype_of(spec) for spec in INPUTS] == ["FP32", "INT64"]
    assert shape_of(INPUTS[0]) == [-1, 2]
    assert describe(INPUTS[0]) == "x FP32 [-1, 2]"


# --- /predict --------------------------------------------------------------------------------------------------------


def test_predict():
    asked = plain.parse_predict(b'{"inputs": {"x": [[1, 2]], "steps": [3]}, "model": "m"}')
    fed = plain.feeds_of(asked.inputs, INPUTS)
    assert asked.model == "m"
    assert fed.rows == 1
    np.testing.assert_array_equal(fed.feeds["x"], [[1, 2]])
    assert json.loads(plain.encode_predict("m", fed.feeds, 1.23456)) == {
        "outputs": {"x": [[1.0, 2.0]], "steps": [3]}, "model": "m", "latency_ms": 1.235
    }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"[]", 400, "the body is a list, needed is a JSON object"),
        (b'{"input": {}}', 422, "unknown key 'input' (did you mean 'inputs'?); allowed are inputs, model"),
        (b"{}", 422, "inputs are missing, needed is an object of name: nested list"),
        (b'{"inputs": [1]}', 422, "inputs are a list, needed is an object"),
        (b'{"inputs": {}, "model": 1}', 422, "model is a number, needed is a text"),
        (b'{"inputs": {}, "model": null}', 422, "model is null, needed is a text"),
        (b'{"inputs": {"x": [[1, 2]]}}', 422, "missing input 'steps'"),
        (b'{"inputs": {"step": [1]}}', 422, "unknown input 'step' (did you mean 'steps'?); the model takes x FP32"),
        (b'{"inputs": {"x": [[1]], "steps": [1]}}', 422, "dimension 1 must be 2"),
        (b'{"inputs": {"x": [[1, 2]], "steps": [1.5]}}', 422, "int64 takes whole numbers"),
    ],
)
def test_a_body_of_predict_that_does_not_fit(body, status, message):
    with pytest.raises(Refusal) as caught:
        plain.feeds_of(plain.parse_predict(body).inputs, INPUTS)
    assert message in caught.value.message
    assert caught.value.status == status


# --- compressed bodies -----------------------------------------------------------------------------------------------

ENCODERS = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("encoding", ENCODERS)
@given(body=st.binary(max_size=3000))
def test_compressed_bodies(encoding, body):
    assert decompress(ENCODERS[encoding](body), encoding, 3000) == body


@pytest.mark.parametrize("encoding", ENCODERS)
@given(body=st.binary(max_size=200))
def test_whatever_is_said_to_be_compressed_is_read_or_refused(encoding, body):
    with pytest.raises(Refusal):
        decompress(body, encoding, 3000)


@pytest.mark.parametrize("encoding", ENCODERS)
def test_compressed_bodies_are_refused_before_they_are_large(encoding):
    bomb = ENCODERS[encoding](bytes(10**7))
    with pytest.raises(Refusal, match=r"decompressed, is larger; this server takes at most 0\.5 MiB") as caught:
        decompress(bomb, encoding, 2**19)
    assert caught.value.status == 413
    assert len(decompress(bomb, encoding, 10**7)) == 10**7


def test_damaged_compressed_bodies():
    whole = zlib.compress(b"text")
    for body, message in (
        (b"text", "the body is no deflate data: Error"),
        (whole[:-2], "the body is no whole deflate data: cut off"),
        (whole + b"x", "the body is no whole deflate data: more follows"),
    ):
        with pytest.raises(Refusal, match=message):
            decompress(body, "deflate", 100)


def test_a_refusals_headers():
    assert unfit("x").headers == {}
    assert Refusal(429, "x").headers == {"Retry-After": "1"}
    assert Refusal(503, "x").headers == {"Retry-After": "1", "Connection": "close"}
    assert Refusal(408, "x").headers == {"Connection": "close"}
