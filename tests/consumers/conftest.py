"""Real bundles of several kinds, each built once a session, and validators of the documents in them."""

import json
from importlib.resources import files
from pathlib import Path

import jsonschema_rs
import numpy as np
import pytest

import tsexport
from tsexport.bundles.manifest import RankedArtifact, Selection, selection_text

ROOT = Path(__file__).resolve().parents[2]
_CYCLONEDX = "http://cyclonedx.org/schema/"
_REFERRED = ("spdx.SNAPSHOT.schema.json", "jsf-0.82.SNAPSHOT.schema.json")


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory):
    """Return a function that gives the bundle of a kind: fp32, int8 for this CPU or a board, pruned, of raw features.

    "fp32" repeats a selection, so that nothing is raced: it alone is quick.
    """
    folder = tmp_path_factory.mktemp("kinds")
    series = folder / "series.npz"
    np.savez(series, series=np.random.default_rng(0).standard_normal((400, 32, 2)).astype(np.float32))
    short = {"output": folder / "dist", "batch": [1], "seconds": 0.1}
    dlinear = {"set": {"context_length": 32, "horizon": 8, "channels": 2}, "calibration": series, **short}
    patchtst = {"width": 16, "layers": 1, "feed_forward": 32, "heads": 2}
    inception = {"filters": 16, "blocks": 1, "kernels": (5, 3), "context_length": 20}
    order = (RankedArtifact("onnx-fp32", "onnxruntime"),)
    chosen = Selection(1, "onnx-fp32", "onnxruntime", "chosen by a test", "onnx-fp32", {}, (), order, 1, (1, 4))
    selection = folder / "selection.json"
    selection.write_text(selection_text(chosen))
    builds = {
        "fp32": lambda: tsexport.build("dlinear", "cpu4-fp32", selection=selection, set=dlinear["set"], **short),
        "int8": lambda: tsexport.build("dlinear", "cpu4-int8", **dlinear),
        "jetson": lambda: tsexport.build("dlinear", "jetson-int8", **dlinear),
        "pruned": lambda: tsexport.build("inception-time", "cpu4-fp32", set=inception, prune=0.3, **short),
        "prepared": lambda: tsexport.build(
            "patchtst-cpu", "cpu4-fp32", set=patchtst, include_preprocessing=True, **short
        ),
    }
    made = {}

    def get(kind):
        if kind not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TSEXPORT_CACHE", str(folder / "cache"))
                made[kind] = builds[kind]()
        return made[kind]

    return get


@pytest.fixture(scope="session")
def schema():
    """Return a function that gives the validator of a file of docs/schemas."""
    return lambda name: jsonschema_rs.Draft202012Validator(json.loads((ROOT / "docs/schemas" / name).read_text()))


@pytest.fixture(scope="session")
def cyclonedx():
    """The validator of CycloneDX 1.6 by its own schema, which allows no unknown keys; nothing is fetched for it."""
    folder = files("cyclonedx") / "schema" / "_res"

    def read(name):
        return json.loads((folder / name).read_text(encoding="utf-8"))

    resources = [(_CYCLONEDX + name, {**read(name), "$id": _CYCLONEDX + name}) for name in _REFERRED]
    registry = jsonschema_rs.Registry(resources, draft=jsonschema_rs.Draft7)
    return jsonschema_rs.Draft7Validator(read("bom-1.6.SNAPSHOT.schema.json"), registry=registry, validate_formats=True)
