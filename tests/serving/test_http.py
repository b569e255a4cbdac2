"""A real server, asked with `tritonclient.http` and with plain HTTP: every endpoint, every type, every refusal."""

import gzip
import http.client
import json
import shutil
import socket
import urllib.error
import urllib.parse
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

tritonclient = pytest.importorskip("tritonclient.http")

X = np.random.default_rng(3).standard_normal((5, 4)).astype(np.float32)
BUSY_FEEDS = {
    "x": X,
    "steps": np.array([[0], [1], [2], [1], [0]]),
    "flag": np.array([[True], [False], [True], [True], [False]]),
}
DATATYPES = {"x": "FP32", "steps": "INT64", "flag": "BOOL"}
EXACT = {"rtol": 1e-6, "atol": 1e-6}  # one operation in single precision, perhaps in another order


def ask(server, path, body=None, headers=None, method=None):
    """Return (status, document, headers)."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.loads(answer.read() or b"null"), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), error.headers


@pytest.fixture
def client(server):
    with tritonclient.InferenceServerClient(server.address) as client:
        yield client


def busy_inputs(*, binary, feeds=BUSY_FEEDS):
    inputs = []
    for name, array in feeds.items():
        tensor = tritonclient.InferInput(name, list(array.shape), DATATYPES[name])
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    return inputs


# --- the protocol, through its own client ----------------------------------------------------------------------------


def test_live_and_ready(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("busy")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("nothing")


def test_metadata(client):
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    for version in ("", "1"):
        assert client.get_model_metadata("busy", version) == {
            "name": "busy",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [-1, 4]},
                {"name": "steps", "datatype": "INT64", "shape": [-1, 1]},
                {"name": "flag", "datatype": "BOOL", "shape": [-1, 1]},
            ],
            "outputs": [
                {"name": "y", "datatype": "FP32", "shape": [-1, 4]},
                {"name": "twice", "datatype": "INT64", "shape": [-1, 1]},
                {"name": "not_flag", "datatype": "BOOL", "shape": [-1, 1]},
            ],
        }


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_infer(client, binary_in, binary_out):
    """None asks for no output by name: the client then wants all of them as binary data."""
    wanted = None if binary_out is None else [
        tritonclient.InferRequestedOutput(name, binary_data=binary_out) for name in ("y", "twice", "not_flag")
    ]  # fmt: skip
    answer = client.infer("busy", busy_inputs(binary=binary_in), outputs=wanted, request_id="seven")
    np.testing.assert_allclose(answer.as_numpy("y"), np.exp(X), **EXACT)
    np.testing.assert_array_equal(answer.as_numpy("twice"), 2 * BUSY_FEEDS["steps"])
    np.testing.assert_array_equal(answer.as_numpy("not_flag"), ~BUSY_FEEDS["flag"])
    response = answer.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("seven", "busy", "1")


def test_a_subset_of_outputs_in_the_order_asked_for_each_in_its_own_way(client):
    wanted = [
        tritonclient.InferRequestedOutput("not_flag", binary_data=False),
        tritonclient.InferRequestedOutput("y", binary_data=True),
    ]
    response = client.infer("busy", busy_inputs(binary=True), outputs=wanted).get_response()
    assert [one["name"] for one in response["outputs"]] == ["not_flag", "y"]
    assert "id" not in response


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_compressed_request(client, algorithm):
    answer = client.infer("busy", busy_inputs(binary=True), request_compression_algorithm=algorithm)
    np.testing.assert_array_equal(answer.as_numpy("twice"), 2 * BUSY_FEEDS["steps"])


def test_a_client_that_would_take_a_compressed_answer(client):
    answer = client.infer("busy", busy_inputs(binary=True), response_compression_algorithm="gzip")
    assert answer.as_numpy("y").shape == (5, 4)


def test_an_error_reaches_the_client_with_its_reason(client):
    tensor = tritonclient.InferInput("x", [1, 3], "FP32")
    tensor.set_data_from_numpy(X[:1, :3])
    with pytest.raises(tritonclient.InferenceServerException, match=r"dimension 1 must be 4: expected x float32") as e:
        client.infer("tiny", [tensor])
    assert e.value.status() == "422"
    with pytest.raises(tritonclient.InferenceServerException, match="no model 'tinny'"):
        client.infer("tinny", [tensor])


def test_a_sequence_is_refused(client):
    with pytest.raises(tritonclient.InferenceServerException, match="'sequence_id' of the request is not supported"):
        client.infer("busy", busy_inputs(binary=True), sequence_id=4, sequence_start=True)


# --- /predict, /health and the rest ----------------------------------------------------------------------------------


def test_predict(server, tiny):
    status, document, headers = ask(server, "/predict", {"inputs": {"x": X.tolist()}, "model": "tiny"})
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert document.keys() == {"outputs", "model", "latency_ms"}
    assert document["model"] == "tiny"
    assert document["latency_ms"] > 0
    import tsexport

    with tsexport.load(tiny) as session:  # the selected artifact, with the rows of this request and no others
        np.testing.assert_allclose(document["outputs"]["y"], session.run({"x": X})["y"], **EXACT)


def test_predict_takes_every_type(server):
    inputs = {name: array.tolist() for name, array in BUSY_FEEDS.items()}
    _, document, _ = ask(server, "/predict", {"inputs": inputs, "model": "busy"})
    assert document["outputs"]["twice"] == (2 * BUSY_FEEDS["steps"]).tolist()
    assert document["outputs"]["not_flag"] == (~BUSY_FEEDS["flag"]).tolist()


def test_predict_needs_no_name_where_one_model_is_served(serve, tiny):
    with serve(tiny, "--precision", "fp32", "--check") as one:
        status, document, _ = ask(one, "/predict", {"inputs": {"x": X.tolist()}})
        assert (status, document["model"]) == (200, "tiny")
        assert one.document["schema_version"] == 1
        padded = json.dumps({"inputs": {"x": X.tolist()}}).encode() + b" " * 300_000  # large: not on the event loop
        assert ask(one, "/predict", padded)[1]["outputs"] == document["outputs"]
        noise = np.random.default_rng(0).bytes(300_000).hex()
        tensor = {"name": "x", "datatype": "FP32", "shape": [5, 4], "data": X.tolist()}
        packed = gzip.compress(json.dumps({"inputs": [tensor], "ignored": noise}).encode())
        status, infer, _ = ask(one, "/v2/models/tiny/infer", packed, {"content-encoding": "gzip"})
        assert (status, infer["outputs"][0]["shape"]) == (200, [5, 3])
        (model,) = one.document["models"]
        assert (model["artifact"], model["batched"], model["threads"]) == ("fp32-onnx", True, 1)


def test_a_model_bears_its_folders_name_whatever_it_is(serve, tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "two words, é")
    with serve(folder) as one:
        path = f"/v2/models/{urllib.parse.quote(folder.name)}"
        assert ask(one, path)[1]["name"] == folder.name
        assert ask(one, "/predict", {"inputs": {"x": X.tolist()}, "model": folder.name})[1]["model"] == folder.name
        assert ask(one, "/health")[1]["models"] == {folder.name: "active"}


def test_health(server):
    status, document, _ = ask(server, "/health")
    assert status == 200
    assert document == {"status": "healthy", "models": {"tiny": "active", "busy": "active"}}


def test_what_is_computed_together(server):
    """Dynamically quantized activations depend on the whole batch: such requests are computed one at a time."""
    batched = {model["name"]: model["batched"] for model in server.document["models"]}
    assert batched == {"tiny": False, "busy": True}


def test_requests_that_wait_are_computed_together_and_answered_apart(server):
    """The first keeps the model busy while the others gather."""

    def one(number):
        feeds = {"x": [[number, 0, 0, 0]], "steps": [[300 if number == 0 else number]], "flag": [[number % 2 == 0]]}
        return ask(server, "/predict", {"inputs": feeds, "model": "busy"})[1]["outputs"]

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(one, range(12)))
    for number, answer in enumerate(answers):
        assert answer["twice"] == [[600 if number == 0 else 2 * number]]
        assert answer["y"][0][0] == pytest.approx(np.exp(number), rel=1e-6)
        assert answer["not_flag"] == [[number % 2 == 1]]
    text = urllib.request.urlopen(server.url + "/metrics").read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    inferences = float(values['tsexport_rows_together_count{model="busy"}'])
    assert float(values['tsexport_rows_together_sum{model="busy"}']) > inferences
    assert float(values['tsexport_requests_total{model="busy",route="/predict",status="200"}']) >= 12
    assert float(values['tsexport_compute_seconds_count{model="busy"}']) == inferences
    assert float(values["process_resident_memory_bytes"]) > 2**20
    assert values['tsexport_queued{model="busy"}'] == "0.0"


def test_a_request_is_logged_as_one_line_of_json(server):
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    ask(server, "/v2/models/tiny/infer", {"id": "a-request", "inputs": [tensor]})
    ask(server, "/v2/models/tiny/infer", {"id": "another", "inputs": []})
    line = server.wait_for_line(lambda line: line.get("id") == "a-request")
    assert {key: line[key] for key in ("level", "event", "method", "route", "status", "model")} == {
        "level": "info", "event": "request", "method": "POST", "route": "/v2/models/{model}/infer", "status": 200,
        "model": "tiny",
    }  # fmt: skip
    assert line["duration_ms"] > 0
    assert "error" not in line
    refused = server.wait_for_line(lambda line: "missing input 'x'" in line.get("error", ""))
    assert (refused["status"], refused["model"]) == (422, "tiny")


# --- refusals --------------------------------------------------------------------------------------------------------

TINY = "/v2/models/tiny/infer"


def test_a_body_that_is_announced_far_too_large_is_not_read(server):
    """The answer comes before the body does."""
    connection = http.client.HTTPConnection(server.address, timeout=300)
    connection.putrequest("POST", TINY)
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())) == (
        413, {"error": "the body has 1000000000000 bytes; this server takes at most 1 MiB"}
    )  # fmt: skip
    connection.close()


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "message"),
    [
        ("/predict", {"inputs": {"x": [[1, 2, 3, 4]]}}, {}, 422, '"model" is missing, and several are served: tiny, b'),
        ("/predict", {"inputs": {}, "model": "bsy"}, {}, 422, "no model 'bsy' (did you mean 'busy'?); served are tiny"),
        ("/predict", b"{", {}, 400, "the body is no JSON: EOF while parsing"),
        ("/predict", b"[" * 100_000, {}, 400, "recursion limit exceeded"),
        (
            "/predict",
            b" " * 300_000,
            {},
            413,
            "the JSON has 300000 bytes; this server takes at most 0.25 MiB of it; se",
        ),
        (TINY, b" " * 1_100_000, {}, 413, "the body is larger; this server takes at most 1 MiB"),
        (TINY, gzip.compress(b" " * 1_100_000), {"content-encoding": "gzip"}, 413, "the body, decompressed, is larger"),
        (TINY, zlib.compress(b" ")[:-3], {"content-encoding": "deflate"}, 400, "no whole deflate data: cut off"),
        (TINY, b"x", {"content-encoding": "br"}, 415, "content-encoding is 'br', allowed are identity, gzip, deflate"),
        (TINY, b"{}", {"Inference-Header-Content-Length": "3"}, 400, "is '3', allowed are 1 to 2"),
        ("/v2/models/tiny/versions/2/infer", b"{}", {}, 404, "tiny has no version '2'; its only one is 1"),
        ("/v2/models/tiny/infr", b"{}", {}, 404, "Not Found"),
        ("/health", b"{}", {}, 405, "Method Not Allowed"),
    ],
)
def test_a_refusal_says_why(server, path, body, headers, status, message):
    found, document, _ = ask(server, path, body, headers)
    assert found == status, document
    assert message in document["error"]


def test_a_batch_that_is_too_large(server):
    body = {"inputs": {"x": [[0, 0, 0, 0]] * 33}, "model": "tiny"}
    status, document, _ = ask(server, "/predict", body)
    assert status == 422
    assert document["error"] == "the batch is 33; this server takes at most 32: send it in parts"


def test_values_that_the_runtime_refuses(server):
    body = {"inputs": {"x": [[0] * 4], "steps": [[-2]], "flag": [[True]]}, "model": "busy"}
    status, document, _ = ask(server, "/predict", body)
    assert status == 422
    assert document["error"].startswith("onnxruntime failed on fp32-onnx at batch 1: ")
    assert ask(server, "/predict", body | {"inputs": body["inputs"] | {"steps": [[-1]]}})[0] == 200


def test_an_infinite_answer_is_no_json_and_comes_as_binary_data(server, client):
    """exp(1000) is infinite in single precision."""
    feeds = {"x": np.full((1, 4), 1000, np.float32), "steps": np.array([[0]]), "flag": np.array([[True]])}
    body = {"inputs": {name: array.tolist() for name, array in feeds.items()}, "model": "busy"}
    status, document, _ = ask(server, "/predict", body)
    assert status == 422
    assert "the answer 'y' holds NaN or infinity, which JSON cannot hold; ask for it as binary" in document["error"]
    answer = client.infer("busy", busy_inputs(binary=True, feeds=feeds))
    assert np.isinf(answer.as_numpy("y")).all()


def test_a_body_in_chunks_is_bounded_too(server):
    connection = http.client.HTTPConnection(server.address, timeout=300)
    connection.request("POST", TINY, iter([b" " * 65536] * 20), encode_chunked=True,
                       headers={"Transfer-Encoding": "chunked"})  # fmt: skip
    answer = connection.getresponse()
    assert answer.status == 413
    assert b"the body is larger; this server takes at most 1 MiB" in answer.read()
    connection.close()


def test_a_client_that_leaves_in_the_middle_is_no_error_of_the_server(server):
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf")
    line = server.wait_for_line(lambda line: line.get("status") == 499)
    assert line["error"] == "the client left before its request was whole"
    assert not [line for line in server.log() if line["event"] == "bug"]
