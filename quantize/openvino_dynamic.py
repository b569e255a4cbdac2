"""INT8 weights in OpenVINO, and activations quantized at run time in groups.

NNCF stores the weights of every product in int8, symmetric, one scale a channel; with
`DYNAMIC_QUANTIZATION_GROUP_SIZE` OpenVINO's CPU plugin then quantizes the activations of a fully connected layer row by
row in groups of so many values, and multiplies integers.  Nothing is calibrated, and an answer does not depend on the
rest of the batch.

OpenVINO decides by itself, for each layer, whether it does so: not for convolutions and recurrent layers, and only on
CPUs whose instructions it has a kernel for.  It says so nowhere, so the artifact is run with and without the option:
where both give the same bits nothing is quantized at run time, and the candidate is not offered under this name.

Measured on AVX512-VNNI with bf16, one thread, batch 1, CPU time of interleaved calls on a busy machine, times faster
than clean fp32 in ONNX Runtime; groups of 128, and in brackets 64:

                  rest in fp32    rest in bf16
    patchtst-cpu  1.70 (1.65)     1.59 (1.53)      (ORT dynamic-s8 1.62)
    hrm-27m       1.66            2.42 (2.29)      (ORT dynamic-s8 2.50)
    tft           1.66            2.75 (2.54)      (ORT dynamic-s8 1.16)
    itransformer  1.24            1.74 (1.65)      (ORT dynamic-s8 1.77)
    nhits         3.81            3.48 (3.15)      (ORT dynamic-s8 3.27)

Tried without gain: groups of 32 (1.57 on patchtst-cpu), weights with a zero point (the same speed and error), the
option left out or 0 (1.05 on patchtst-cpu: weights are converted back before every product), and all of it on
convolutional models (as fast as fp32).
"""

import logging
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino

from tsexport.errors import UnsupportedError
from tsexport.exporters.artifacts import describe
from tsexport.exporters.openvino import write_ir
from tsexport.quantize.nncf_quantizer import fold_constants, quiet
from tsexport.quantize.sources import NothingQuantizedError, Order
from tsexport.runtimes.registry import load
from tsexport.types import Artifact, Feeds

GROUP_SIZE = "DYNAMIC_QUANTIZATION_GROUP_SIZE"


def compress(source: Path) -> openvino.Model:
    """Return an fp32 IR file with int8 weights.

    Raises:
        NothingQuantizedError: the model has no product with constant weights.
    """
    with quiet():
        import nncf

        nncf.set_log_level(logging.ERROR)
        model = openvino.Core().read_model(source)
        fold_constants(model)
        compressed = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    kinds = {
        operation.get_element_type().to_string()
        for operation in compressed.get_ops()
        if operation.get_type_name() == "Constant"
    }
    if "i8" not in kinds:
        raise NothingQuantizedError("the model has no product with constant weights")
    return compressed


def quantizes_activations(artifact: Artifact, feeds: Feeds) -> bool:
    """Return whether OpenVINO, on this CPU, quantizes activations of an artifact that asks for it."""
    without = tuple((key, "0" if key == GROUP_SIZE else value) for key, value in artifact.options)
    answers = []
    for one in (artifact, replace(artifact, options=without)):
        with load(one, "openvino", threads=1) as session:
            answers.append(session.run(feeds))
    return any(not np.array_equal(answers[0][name], answers[1][name]) for name in answers[0])


def build(order: Order, folder: Path) -> Artifact:
    """Write the artifact of a recipe of tool "openvino-dynamic".

    Raises:
        NothingQuantizedError: the model has no product with constant weights.
        UnsupportedError: OpenVINO quantizes no activation of it on this CPU.
    """
    recipe = order.recipe
    model = compress(order.source.path)
    artifact = describe(
        write_ir(model, folder / f"{order.artifact_name}.xml", order.source),
        "openvino",
        order.spec,
        (*order.source.provenance, f"{recipe.tool}: nncf {version('nncf')}: {recipe.summary}"),
        name=order.artifact_name,
        precision=recipe.precision,
        runtimes=recipe.runtimes,
        options=recipe.options,
    )
    feeds = next(iter(order.calibration.batches(1))).feeds
    if not quantizes_activations(artifact, {spec.name: feeds[spec.name] for spec in order.spec.inputs}):
        raise UnsupportedError("OpenVINO quantizes no activation of it at run time on this CPU")
    return artifact
