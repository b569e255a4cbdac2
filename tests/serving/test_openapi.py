"""schemathesis on the server's own OpenAPI: whatever it sends, the answer is as documented and no 5xx."""

import json
import subprocess
import sys
import urllib.request

import pytest

from tsexport.serving import openapi_models
from tsexport.types import TensorSpec

pytest.importorskip("schemathesis")

EXAMPLES = 40
# What fits the schema may be refused: lists of different batches, or an answer that overflows.
LEFT_OUT = "positive_data_acceptance"
SMALL = (TensorSpec("x", "float32", ("batch", 2)), TensorSpec("on", "bool", ("batch",)))


def document_of(server):
    with urllib.request.urlopen(server.url + "/openapi.json") as answer:
        return json.loads(answer.read())


def test_openapi_names_every_endpoint_and_the_models(server):
    document = document_of(server)
    model = "/v2/models/{model}"
    for path in ("/predict", "/health", "/v2", "/v2/health/live", "/v2/health/ready", model, f"{model}/ready",
                 f"{model}/infer", f"{model}/versions/{{version}}/infer"):  # fmt: skip
        assert path in document["paths"]
    infer = document["paths"][f"{model}/versions/{{version}}/infer"]["post"]
    assert set(infer["responses"]) == {"200", "400", "404", "408", "413", "415", "422", "429", "503"}
    values = {parameter["name"]: parameter["schema"]["enum"] for parameter in infer["parameters"]}
    assert values == {"model": ["tiny", "busy"], "version": ["1"]}


def test_its_examples_are_answered(server):
    """Each as it stands, by the model that it is for."""
    paths = document_of(server)["paths"]
    bodies = {path: paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]["examples"]
              for path in ("/predict", "/v2/models/{model}/infer")}  # fmt: skip
    for path, examples in bodies.items():
        assert len(examples) == 2
        for model, example in zip(("tiny", "busy"), examples, strict=True):
            request = urllib.request.Request(server.url + path.format(model=model), json.dumps(example).encode())
            assert urllib.request.urlopen(request).status == 200


def test_a_bodys_schema_says_what_the_model_takes():
    schema = openapi_models.predict_request({"m": SMALL}, 8)
    assert schema["required"] == ["inputs"]
    x, on = schema["properties"]["inputs"]["properties"].values()
    assert (x["minItems"], x["maxItems"], x["items"]["minItems"], x["items"]["maxItems"]) == (1, 8, 2, 2)
    assert (x["items"]["items"], on["items"]) == ({"type": "number"}, {"type": "boolean"})


def test_a_large_model_has_no_example():
    large = {"m": (TensorSpec("x", "float32", ("batch", 5000)),)}
    assert "examples" not in openapi_models.predict_request(large, 8)
    assert "examples" not in openapi_models.infer_request(large)


@pytest.mark.slow
def test_schemathesis(server, tmp_path):
    """All its checks but one: documented statuses and bodies, refused nonsense, no 5xx, methods, headers."""
    command = [
        sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run",
        server.url + "/openapi.json", "--max-examples", str(EXAMPLES), "--exclude-checks", LEFT_OUT, "--no-color",
        "--generation-deterministic",  # a change is not blamed for another's luck
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "Tested: 11" in done.stdout
    lines = [line for line in server.log() if line["event"] in ("request", "bug")]
    assert len(lines) > 500
    assert not [line for line in lines if line["event"] == "bug" or line["status"] >= 500]
    answered = {(line["route"], line.get("model")) for line in lines if line["status"] == 200}
    assert {("/predict", "tiny"), ("/v2/models/{model}/infer", "busy")} <= answered
