"""Use a bundle with numpy and tract (Rust) alone.

    pip install numpy tract
    python use_with_tract.py dist/patchtst-cpu-cpu4-int8

It opens the fastest artifact that tract runs, feeds it the golden inputs and holds its answers against the golden
outputs.  Ends with 0 where they agree and with 1 otherwise.  The format is described in docs/bundle-format.md.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import tract


def fastest(bundle, manifest, runtime):
    """Return the manifest's entry of the fastest artifact on a runtime, its files checked."""
    order = json.loads((bundle / "selection.json").read_text(encoding="utf-8"))["order"]
    names = [one["artifact"] for one in order if one["runtime"] == runtime]
    if not names:
        sys.exit(f"the bundle has nothing for {runtime}")
    entry = next(one for one in manifest["artifacts"] if one["name"] == names[0])
    for file in entry["files"]:
        if hashlib.sha256((bundle / file["path"]).read_bytes()).hexdigest() != file["sha256"]:
            sys.exit(f"{file['path']} is not the file that was built")
    return entry


def open_model(bundle, entry, batch):
    """Return a model of one batch size: tract is 2 to 4 times slower where the batch is free."""
    loaded = tract.onnx().load(bundle / entry["path"])
    first = {
        loaded.input_name(index): str(loaded.input_fact(index)).split(",")[0] for index in range(loaded.input_count())
    }
    # The symbol is the file's own; the manifest calls every one "batch".
    symbols = {first[spec["name"]] for spec in entry["inputs"] if spec["shape"][:1] == ["batch"]}
    model = loaded.into_model()
    model.transform(tract.SetSymbols(dict.fromkeys(symbols, batch)))
    return list(first), model.into_runnable()


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


def main(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    entry = fastest(bundle, manifest, "tract")
    inputs = dict(np.load(bundle / "golden/inputs.npz"))
    outputs = dict(np.load(bundle / "golden/outputs.npz"))
    batch, samples = manifest["golden"]["batch"], manifest["golden"]["samples"]
    names, parts = [spec["name"] for spec in entry["outputs"]], []
    models = {rows: open_model(bundle, entry, rows) for rows in {batch, samples % batch} - {0}}
    for start in range(0, samples, batch):
        order, model = models[min(batch, samples - start)]
        results = model.run([inputs[name][start : start + batch] for name in order])
        parts.append([result.to_numpy() for result in results])  # in the order of the artifact's outputs
    answers = {name: np.concatenate(arrays) for name, arrays in zip(names, zip(*parts, strict=True), strict=True)}
    held = {name: agrees(answers[name], outputs[name], entry["golden_tolerance"]) for name in names}
    for name in names:
        print(f"{entry['name']}: {name} {answers[name].shape} {'agrees' if held[name] else 'DIFFERS'}")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
