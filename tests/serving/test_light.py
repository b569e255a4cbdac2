"""What a serving process imports: the one runtime of the artifact, and no framework."""

import json
import subprocess
import sys
import urllib.request

from tsexport.runtimes.registry import RUNTIMES

PROBE = """
import json, os, signal, sys, threading, time, urllib.request
from tsexport.serving.limits import Limits
from tsexport.serving.served import Choice
from tsexport.serving.server import serve_bundles

def ask(listening):
    def work():
        body = json.dumps({"inputs": {"x": [[1, 2, 3, 4]]}}).encode()
        answer = json.loads(urllib.request.urlopen(listening.url + "/predict", body).read())
        print(json.dumps({"answer": answer, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=work).start()

serve_bundles([sys.argv[1]], host="127.0.0.1", port=0, choice=Choice(check=True), limits=Limits(), announce=ask)
"""


def test_a_bundle_is_served_without_torch(tiny):
    out = subprocess.run([sys.executable, "-c", PROBE, tiny], capture_output=True, text=True, check=True)
    document = json.loads(out.stdout)
    assert document["answer"]["model"] == "tiny"
    assert "onnxruntime" in document["modules"]
    others = {"torch", "onnx", "openvino", "tract", "nncf", "pyarrow", "jinja2", "scipy", "sklearn"}
    assert not others & set(document["modules"])
    assert {row.package for row in RUNTIMES} - {"onnxruntime"} <= others


def test_without_json_a_table_says_what_is_served(tiny, tmp_path):
    command = [sys.executable, "-m", "tsexport", "serve", str(tiny), "--port", "0"]
    process, out = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True), ""
    try:
        for line in process.stdout:
            out += line
            if line.startswith("serving on "):
                break
        url = line.removeprefix("serving on ").partition(";")[0]
        assert line == f"serving on {url}; Ctrl-C ends it\n"
        assert urllib.request.urlopen(f"{url}/v2/health/ready").status == 200
    finally:
        process.terminate()
        _, log = process.communicate(timeout=300)
    assert process.returncode == 0
    assert [json.loads(line)["event"] for line in log.splitlines()] == ["ready", "request", "shutting down", "closed"]
    for text in ("tiny", "int8-onnx", "onnxruntime", "one at a time", "x float32[batch, 4]", "y float32[batch, 3]"):
        assert text in out
