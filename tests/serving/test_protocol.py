"""Requests and answers of the protocol, made and read by tritonclient's own code; and every refusal."""

import contextlib
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tsexport.serving import protocol
from tsexport.serving.datatypes import DATATYPES
from tsexport.serving.refusals import Refusal
from tsexport.types import TensorSpec

tritonclient = pytest.importorskip("tritonclient.http")

X = TensorSpec("x", "float32", ("batch", 2))
MASK = TensorSpec("mask", "bool", ("batch", 1))
INPUTS = (X, MASK)
OUTPUTS = (TensorSpec("y", "float32", ("batch", 1)), TensorSpec("ids", "int64", ("batch", 1)))
JSON_TYPES = [dtype for dtype in DATATYPES if dtype != "float16"]  # tritonclient refuses to write FP16 as JSON


def arrays(dtype):
    finite = {"allow_nan": False, "allow_infinity": False} if np.dtype(dtype).kind == "f" else {}
    shapes = hnp.array_shapes(min_dims=2, max_dims=3, max_side=4)
    return hnp.arrays(dtype, shapes, elements=hnp.from_dtype(np.dtype(dtype), **finite))


def spec_of(name, array):
    return TensorSpec(name, array.dtype.name, ("batch", *array.shape[1:]))


def as_sent(array, *, binary):
    tensor = tritonclient.InferInput("x", list(array.shape), DATATYPES[array.dtype.name])
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tritonclient.InferenceServerClient.generate_request_body([tensor])


def check_round_trip(array, binary):
    spec = spec_of("x", array)
    body, length = as_sent(array, binary=binary)
    asked = protocol.parse_request(body, length, (spec,), (spec,))
    np.testing.assert_array_equal(asked.feeds["x"], array)
    assert asked.feeds["x"].dtype == array.dtype
    assert asked.feeds["x"].flags.aligned
    assert asked.feeds["x"].flags.writeable
    assert asked.rows == array.shape[0]
    assert asked.outputs == (protocol.WantedOutput("x", True),)  # tritonclient asks for binary data unless told
    encoded = protocol.encode_answer("m", "1", asked, asked.feeds, (spec,))
    read = tritonclient.InferenceServerClient.parse_response_body(encoded.body, header_length=encoded.header_length)
    np.testing.assert_array_equal(read.as_numpy("x"), array)


@given(st.data())
def test_what_tritonclient_writes_as_binary_data_is_read_and_written_back(data):
    check_round_trip(data.draw(st.sampled_from(list(DATATYPES)).flatmap(arrays)), binary=True)


@given(st.data())
def test_what_tritonclient_writes_as_json_is_read_and_written_back(data):
    check_round_trip(data.draw(st.sampled_from(JSON_TYPES).flatmap(arrays)), binary=False)


@given(st.data())
def test_json_answers_are_read_by_tritonclient(data):
    array = data.draw(st.sampled_from(JSON_TYPES).flatmap(arrays))
    spec = spec_of("x", array)
    asked = protocol.InferRequest("an id", {}, 1, (protocol.WantedOutput("x", False),))
    encoded = protocol.encode_answer("m", "1", asked, {"x": array}, (spec,))
    assert encoded.header_length is None
    read = tritonclient.InferenceServerClient.parse_response_body(encoded.body)
    np.testing.assert_array_equal(read.as_numpy("x"), array)
    assert read.get_response()["id"] == "an id"


def test_binary_data_may_be_nan():
    array = np.array([[math.nan, math.inf]], np.float32)
    body, length = as_sent(array, binary=True)
    np.testing.assert_array_equal(protocol.parse_request(body, length, (X,), OUTPUTS).feeds["x"], array)


# --- one whole request, and what can be wrong with it ----------------------------------------------------------------


def request(**changes):
    """A request that fits, with some keys changed or (None) left out."""
    document = {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2], [3, 4.5]]},
            {"name": "mask", "datatype": "BOOL", "shape": [2, 1], "data": [True, False]},
        ]
    }
    return {key: value for key, value in (document | changes).items() if value is not None}


def with_x(**changes):
    document = request()
    x = document["inputs"][0] | changes
    document["inputs"][0] = {key: value for key, value in x.items() if value is not None}
    return document


def parse(document, binary=None):
    head = json.dumps(document).encode()
    if binary is None:
        return protocol.parse_request(head, None, INPUTS, OUTPUTS)
    return protocol.parse_request(head + binary, len(head), INPUTS, OUTPUTS)


def test_flat_and_nested_data():
    asked = parse(request())
    np.testing.assert_array_equal(asked.feeds["x"], np.array([[1, 2], [3, 4.5]], np.float32))
    np.testing.assert_array_equal(asked.feeds["mask"], [[True], [False]])
    assert asked.rows == 2
    assert [(one.name, one.binary) for one in asked.outputs] == [("y", False), ("ids", False)]
    assert asked.timeout_s is None


def test_parameters():
    asked = parse(request(id="7", parameters={"timeout": 1500, "priority": 3, "mine": "x", "binary_data_output": True}))
    assert asked.timeout_s == 0.0015
    assert asked.request_id == "7"
    assert all(one.binary for one in asked.outputs)


def test_an_outputs_own_parameter_goes_before_the_requests():
    outputs = [{"name": "ids", "parameters": {"binary_data": False}}, {"name": "y"}]
    asked = parse(request(outputs=outputs, parameters={"binary_data_output": True}))
    assert asked.outputs == (protocol.WantedOutput("ids", False), protocol.WantedOutput("y", True))


def test_null_is_as_if_it_were_not_there():
    document = request() | dict.fromkeys(("id", "outputs", "parameters"))
    assert parse(document).outputs == parse(request()).outputs


def test_keys_of_a_later_protocol_are_ignored():
    assert parse(request(new_key=[1], parameters={"newer": {}})).rows == 2


SIZE = {"parameters": {"binary_data_size": 16}, "data": None}


@pytest.mark.parametrize(
    ("document", "binary", "status", "message"),
    [
        ([], None, 400, "the body is a list, needed is a JSON object"),
        (request(id=7), None, 422, "id is a number, needed is a text"),
        (request(inputs=None), None, 422, "inputs are missing; the model takes x FP32 [-1, 2], mask BOOL [-1, 1]"),
        (request(inputs={}), None, 422, "inputs are not a list of objects"),
        (request(inputs=[{"name": None}]), None, 422, "a name in inputs is null, needed is a text"),
        (request(inputs=[{"name": "x"}] * 2), None, 422, "'x' stands twice in inputs"),
        (request(inputs=[{"name": "mas"}]), None, 422, "unknown input 'mas' (did you mean 'mask'?); the model"),
        (request(inputs=request()["inputs"][:1]), None, 422, "missing input 'mask'"),
        (request(outputs=[{"name": "idz"}]), None, 422, "unknown output 'idz' (did you mean 'ids'?); the model"),
        (request(outputs=["y"]), None, 422, "outputs are not a list of objects"),
        (request(outputs=[{"name": "y"}] * 2), None, 422, "'y' stands twice in outputs"),
        (request(parameters=[]), None, 422, "the parameters of the request are a list, needed is an object"),
        (request(parameters={"sequence_id": 1}), None, 422, "'sequence_id' of the request is not supported"),
        (request(parameters={"timeout": 0}), None, 422, "'timeout' is no whole number of microseconds above 0"),
        (request(parameters={"binary_data_output": 1}), None, 422, "'binary_data_output' is a number, needed is true"),
        (request(outputs=[{"name": "y", "parameters": {"classification": 2}}]), None, 422,
         "the parameter 'classification' of output 'y' is not supported"),
        (with_x(parameters={"shared_memory_region": "r"}), None, 422, "'shared_memory_region' of input 'x' is not"),
        (with_x(datatype="FP64"), None, 422, "the datatype of 'x' is FP64, needed is FP32: x FP32 [-1, 2]"),
        (with_x(datatype="BYTES"), None, 422, "the datatype of 'x' is 'BYTES', needed is FP32"),
        (with_x(datatype=[]), None, 422, "the datatype of 'x' is a list, needed is FP32"),
        (with_x(shape=None), None, 422, "the shape of 'x' is no list of at most 16 whole numbers from 0 on"),
        (with_x(shape=[2, -1]), None, 422, "the shape of 'x' is no list"),
        (with_x(shape=[2, True]), None, 422, "the shape of 'x' is no list"),
        (with_x(shape=[1] * 17), None, 422, "the shape of 'x' is no list"),
        (with_x(shape=[4, 1]), None, 422, "the lists of 'x' have shape [2, 2], and its shape says [4, 1]"),
        (with_x(shape=[2**40, 2**40], data=[1]), None, 422, "'x' has 1 values; its shape [1099511627776, 10995116277"),
        (with_x(shape=[0, 2**63 - 1], data=[]), None, 422, f"the shape of 'x' is [0, {2**63 - 1}], which no array can"),
        (with_x(shape=[2**62, 2**62, 0], parameters={"binary_data_size": 0}, data=None), b"", 422, "which no array"),
        (with_x(shape=[4], data=[1, 2, 3, 4]), None, 422, "input 'x' has shape (4,) of rank 1; expected x float32"),
        (with_x(shape=[0, 2], data=[]), None, 422, "dimension 0 must be at least 1"),
        (with_x(shape=[1, 2], data=[1, 2]), None, 422, "inputs disagree on the batch: x 1, mask 2"),
        (with_x(data=None), None, 422, "input 'x' has no data, and no parameter binary_data_size"),
        (with_x(parameters={"binary_data_size": 16}), None, 422, "input 'x' has both data and binary_data_size"),
        (with_x(**SIZE), None, 400, "0 bytes are left for 'x', which needs 16; see Inference-Header-Content-Length"),
        (with_x(**SIZE), bytes(15), 400, "15 bytes are left for 'x', which needs 16"),
        (with_x(**SIZE), bytes(17), 400, "1 bytes follow the JSON that no input's binary_data_size takes"),
        (with_x(parameters={"binary_data_size": 12}, data=None), bytes(12), 422, "is 12; its shape [2, 2] needs 16 by"),
        (with_x(parameters={"binary_data_size": -16}, data=None), bytes(1), 422, "is -16; its shape [2, 2] needs 16"),
        (with_x(parameters={"binary_data_size": "16"}, data=None), bytes(16), 422, "is a text; its shape [2, 2] needs"),
    ],
)  # fmt: skip
def test_a_request_that_does_not_fit(document, binary, status, message):
    with pytest.raises(Refusal) as caught:
        parse(document, binary)
    assert message in caught.value.message
    assert caught.value.status == status


def test_a_bool_of_a_shape_that_no_array_can_have():
    document = request()
    document["inputs"][1] = {
        "name": "mask", "datatype": "BOOL", "shape": [2**62, 2**62, 0], "parameters": {"binary_data_size": 0}
    }  # fmt: skip
    with pytest.raises(Refusal, match="which no array can have"):
        parse(document, b"")


def test_a_message_is_short_however_long_what_it_quotes_is():
    """It stands in the answer and in the log; a body may have megabytes of names."""
    for document in (request(inputs=[{"name": "x" * 10**6}]), request(parameters={"sequence_" + "x" * 10**6: 1})):
        with pytest.raises(Refusal) as caught:
            parse(document)
        assert len(caught.value.message) == 1000
        assert caught.value.message.endswith("xxx...")


def test_bytes_that_are_no_bool():
    document = request()
    document["inputs"][1] = {
        "name": "mask", "datatype": "BOOL", "shape": [2, 1], "parameters": {"binary_data_size": 2}
    }  # fmt: skip
    assert parse(document, b"\1\0").feeds["mask"].tolist() == [[True], [False]]
    with pytest.raises(Refusal, match="'mask' holds bytes above 1; BOOL takes 0 and 1"):
        parse(document, b"\1\2")


@pytest.mark.parametrize("text", ["", "0", "11", "-1", "1.0", "9" * 5000, "٣", "1e1"])
def test_a_header_that_is_no_length(text):
    with pytest.raises(Refusal, match="allowed are 1 to 10, the size of the body") as caught:
        protocol.header_length_of(text, 10)
    assert caught.value.status == 400
    assert len(caught.value.message) < 200


def test_a_header_that_is_a_length():
    assert protocol.header_length_of("10", 10) == 10
    assert protocol.header_length_of(None, 10) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = ("name", "datatype", "shape", "data", "parameters")


@given(st.dictionaries(st.sampled_from(("id", "inputs", "outputs", "parameters")), JSON), st.binary(max_size=20))
def test_whatever_comes_is_read_or_refused(document, binary):
    with contextlib.suppress(Refusal):
        parse(document, binary)


@given(st.dictionaries(st.sampled_from(KEYS), JSON), st.binary(max_size=20) | st.none())
def test_whatever_stands_in_a_tensor_is_read_or_refused(tensor, binary):
    document = request()
    document["inputs"][0] |= tensor
    with contextlib.suppress(Refusal):
        parse(document, binary)


@given(st.binary(max_size=40), st.integers(1, 40) | st.none())
def test_whatever_bytes_come_are_read_or_refused(body, length):
    with pytest.raises(Refusal):
        protocol.parse_request(body, length, INPUTS, OUTPUTS)
