"""Call a server of the Open Inference Protocol (KServe V2) that serves a bundle, with numpy and tritonclient alone.

    pip install numpy "tritonclient[http]"
    tsexport serve dist/patchtst-cpu-cpu4-int8 &
    python call_v2_server.py dist/patchtst-cpu-cpu4-int8 127.0.0.1:8000

It sends the golden inputs to the model that is named as the bundle's folder, and holds the answers against the golden
outputs.  Ends with 0 where they agree and with 1 otherwise.  The format is described in docs/bundle-format.md.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.http as v2
from tritonclient.utils import np_to_triton_dtype


def infer(client, model, feeds):
    """Return the model's answers to arrays by name."""
    inputs = []
    for name, array in feeds.items():
        tensor = v2.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    result = client.infer(model, inputs)
    return {output["name"]: result.as_numpy(output["name"]) for output in result.get_response()["outputs"]}


def agrees(actual, golden, tolerance):
    """Return whether an output is within the artifact's tolerance of its golden values."""
    if actual.shape != golden.shape or actual.dtype != golden.dtype or not np.isfinite(actual).all():
        return False
    error, golden = np.abs(actual.astype(float) - golden), golden.astype(float)
    holds = True
    if tolerance["atol"] is not None:
        holds &= bool(np.all(error <= tolerance["atol"] + tolerance["rtol"] * np.abs(golden)))
    if tolerance["max_relative_rms"] is not None:
        holds &= np.sqrt(np.mean(error**2)) <= tolerance["max_relative_rms"] * np.sqrt(np.mean(golden**2))
    return holds


def main(bundle, url):
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    entry = next(one for one in manifest["artifacts"] if one["name"] == manifest["selected"]["artifact"])
    inputs = dict(np.load(bundle / "golden/inputs.npz"))
    outputs = dict(np.load(bundle / "golden/outputs.npz"))
    batch, samples = manifest["golden"]["batch"], manifest["golden"]["samples"]
    with v2.InferenceServerClient(url) as client:
        if not client.is_model_ready(bundle.name):
            sys.exit(f"{url} serves no model {bundle.name}")
        parts = [
            infer(client, bundle.name, {name: array[start : start + batch] for name, array in inputs.items()})
            for start in range(0, samples, batch)
        ]
    answers = {name: np.concatenate([part[name] for part in parts]) for name in outputs}
    held = {name: agrees(answers[name], outputs[name], entry["golden_tolerance"]) for name in outputs}
    for name in outputs:
        print(f"{bundle.name}: {name} {answers[name].shape} {'agrees' if held[name] else 'DIFFERS'}")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2]))
