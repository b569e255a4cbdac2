"""INT8 by Intel Neural Compressor's PyTorch part, brought to ONNX.

Its static quantization is torch's PT2E: the module is captured by `torch.export`, observed on the calibration windows
and converted into one with quantize and dequantize operators, which torch's newer exporter writes as QuantizeLinear and
DequantizeLinear (the TorchScript-based one fails).  `quantize.integer_weights` brings that into the form that runtimes
take, and the file is held against the converted module.  Autotune tries INC's own set of static configurations
(symmetric or affine activations, KL or min-max) and stops at the first whose answers are within TOLERABLE_LOSS.

What is quantized is the module as its ONNX artifact is exported from: with the module rewrites, since INC finds no
layer inside torch's packed attention.

Measured on AVX512-VNNI, one thread, batch 1, CPU time of interleaved calls on a busy machine, against clean fp32 in
ONNX Runtime, with relative error: in OpenVINO patchtst-cpu 1.8 to 2.05 (0.8 %), unet 2.7 to 3.0 (1.3 %, autotune
1.05 %), itransformer 1.5 (0.6 %: half of its products are found); in ONNX Runtime 1.5, 1.3 and 1.1.

Limits: a torch source; weights of Linear and Conv2d only (PT2E's quantizer for x86 knows no Conv1d, so inception-time
stays in fp32 but for its head, and an LSTM or GRU keeps its own); what `torch.export` cannot capture with a dynamic
batch is listed with the reason.  Needs the extra `quantize`, which is imported when used: that takes seconds and logs
warnings.  INC's parts draw nothing at random in this use, but it may: every generator is seeded, and put back
afterwards.
"""

import copy
import io
import logging
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tsexport.calibration.datasets import Dataset, calibration_batch
from tsexport.errors import ExportError, UnsupportedError, reason_of
from tsexport.exporters.conversion import probes
from tsexport.exporters.onnx_dynamo import export_with_dynamo
from tsexport.exporters.rewrites.cleaning import DropNoOps, FoldConstants
from tsexport.exporters.rewrites.modules import rewrite_module, run_plainly
from tsexport.exporters.rewrites.order import MODULE_REWRITES
from tsexport.exporters.rewrites.proofs import rewrite_graph
from tsexport.exporters.rewrites.shapes import ConstantShapes
from tsexport.exporters.tracing import mha_fastpath
from tsexport.extras import require
from tsexport.quantize.integer_weights import store_integer_weights
from tsexport.quantize.onnx_candidate import write_candidate
from tsexport.quantize.recipe import Recipe
from tsexport.quantize.sources import NothingQuantizedError, Order
from tsexport.runtimes.comparison import relative_rms
from tsexport.runtimes.registry import load
from tsexport.types import BATCH, Artifact, Feeds, ModelSpec

TOLERABLE_LOSS = 0.01
"""Autotune stops at a configuration whose output error is at most this, as a part of the source's RMS."""
EXPORT_ERROR = 0.002
"""What the file's answers may always differ from the converted module's.  Floats that round to the next of 256 levels
change what later layers round, so it may be as much as the converted module differs from its source."""
TUNING_WINDOWS = 32
_SEED = 1978
_CLEANING = (FoldConstants(), ConstantShapes())
OPTIONS = (("optimization.disable_specified_optimizers", "MatMulAddFusion"),)
"""ONNX Runtime otherwise makes Gemm of a product and its bias before it looks for integer products, finds none of a
Gemm whose output is not quantized, and converts all weights back at every call: patchtst-cpu 0.19 times the speed of
fp32 instead of 1.46.  OpenVINO takes no notice."""


@contextmanager
def _seeded_and_quiet() -> Iterator[None]:
    """Seed every generator that INC may draw from, put them back, and keep its log and its warnings off our output."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        random.seed(_SEED)
        np.random.seed(_SEED)
        torch.manual_seed(_SEED)
        # INC and torchao warn of their own deprecated parts at import and at every call
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                yield
        finally:
            logging.disable(logging.NOTSET)
            random.setstate(states[0])
            np.random.set_state(states[1])


def _tensors(spec: ModelSpec, feeds: Feeds) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(np.ascontiguousarray(feeds[tensor.name])) for tensor in spec.inputs)


def _captured(module: nn.Module, spec: ModelSpec, feeds: Feeds) -> Any:
    """Return the module as `torch.export` captures it; INC's own `export` says only that it failed."""
    batch = torch.export.Dim(BATCH)
    shapes = tuple({0: batch} if isinstance(tensor.shape[0], str) else None for tensor in spec.inputs)
    try:
        program = torch.export.export(module, _tensors(spec, feeds), dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises dozens of types from its internals
        raise ExportError(f"torch.export cannot capture the module with a dynamic batch: {reason_of(error)}") from error
    captured: Any = program.module()
    captured._exported, captured.dynamic_shapes = True, shapes  # what INC's export leaves for its other parts
    return captured


def _feed(spec: ModelSpec, calibration: Dataset) -> Callable[[Any], None]:
    """Return a function that shows all calibration windows to a model, in a stream."""

    def feed(model: Any) -> None:
        with torch.no_grad():
            for batch in calibration.batches(calibration_batch(calibration)):
                model(*_tensors(spec, batch.feeds))

    return feed


def _loss(spec: ModelSpec, calibration: Dataset, module: nn.Module) -> Callable[[Any], float]:
    """Return INC's measure of a model: 1 minus its output error on TUNING_WINDOWS windows, so that more is better."""
    batch = next(iter(calibration.batches(min(TUNING_WINDOWS, calibration.count))))
    feeds = {tensor.name: batch.feeds[tensor.name] for tensor in spec.inputs}
    expected = run_plainly(module, feeds)

    def measure(model: Any) -> float:
        answers = run_plainly(model, feeds)
        return 1.0 - max(relative_rms(values, answers[name]) for name, values in expected.items())

    return measure


def quantize_module(module: nn.Module, spec: ModelSpec, recipe: Recipe, calibration: Dataset) -> Any:
    """Return a module converted by INC: floating point, with quantize and dequantize operators.

    Args:
        module: in eval mode; left as it is.
        spec: its inputs and outputs.
        recipe: of tool "inc"; `preset` says "autotune", or nothing for INC's default static configuration.
        calibration: windows named as the inputs; streamed, once for each configuration.

    Raises:
        ExportError: `torch.export` cannot capture the module.
        UnsupportedError: autotune found no configuration that it could carry out.
    """
    # several samples: torch.export takes a batch of one for a constant
    feeds = {name: np.concatenate([array[:1]] * 2) for name, array in next(iter(calibration.batches(1))).feeds.items()}
    with _seeded_and_quiet(), mha_fastpath(False):
        from neural_compressor.torch import quantization as inc

        captured = _captured(copy.deepcopy(module), spec, feeds)
        feed = _feed(spec, calibration)
        if recipe.preset != "autotune":
            prepared = inc.prepare(captured, inc.get_default_static_config())
            feed(prepared)
            return inc.convert(prepared)
        tuning = inc.TuningConfig(
            config_set=[inc.StaticQuantConfig.get_config_set_for_tuning()], tolerable_loss=TOLERABLE_LOSS
        )
        best = inc.autotune(captured, tuning, eval_fn=_loss(spec, calibration, module), run_fn=feed)
    if best is None:
        raise UnsupportedError("autotune found no configuration that Intel Neural Compressor could carry out")
    return best


def build(order: Order, folder: Path) -> Artifact:
    """Write the artifact of a recipe of tool "inc".

    Raises:
        MissingDependencyError: the extra `quantize` is not installed.
        UnsupportedError: the source is no torch module.
        ExportError: the module or its converted form cannot be captured or exported, or answers otherwise as ONNX.
        NothingQuantizedError: INC found no layer to quantize.
    """
    require("quantize", "Intel Neural Compressor")
    recipe, spec = order.recipe, order.spec
    if order.sources.module is None:
        raise UnsupportedError("Intel Neural Compressor quantizes torch modules, and the source is an ONNX file")
    one = next(iter(order.calibration.batches(2))).feeds
    proofs = (*probes(spec, None), {tensor.name: one[tensor.name] for tensor in spec.inputs})
    module, _ = rewrite_module(order.sources.module(), proofs, MODULE_REWRITES)
    converted = quantize_module(module, spec, recipe, order.calibration)
    example = {name: np.concatenate([array[:1]] * 2) for name, array in proofs[-1].items()}
    for part in converted.modules():
        part.training = False  # torch.export leaves the flag set, and refuses eval()
    with _seeded_and_quiet(), mha_fastpath(False):
        model, _ = export_with_dynamo(converted, spec, _tensors(spec, example))
    model, _ = rewrite_graph(model, proofs, _CLEANING)
    model, stored = store_integer_weights(model)
    if not stored:
        raise NothingQuantizedError("Intel Neural Compressor found no Linear or Conv to quantize")
    model, _ = rewrite_graph(model, proofs, (DropNoOps(),))
    done = f"{recipe.tool}: neural-compressor {version('neural-compressor')}, torch.onnx.export(dynamo=True): "
    artifact = write_candidate(order, model, folder, done + recipe.summary, options=OPTIONS)
    _require_same_answers(module, converted, artifact, proofs[-1])
    return artifact


def _require_same_answers(module: nn.Module, converted: Any, artifact: Artifact, feeds: Feeds) -> None:
    """Hold a file, its Q/DQ pairs computed as written, against the module that it was exported from."""
    source, expected = run_plainly(module, feeds), run_plainly(converted, feeds)
    as_written = replace(artifact, options=(("session.disable_quant_qdq", "1"),))
    with load(as_written, "onnxruntime", threads=1) as session:
        answers = session.run(feeds)
    for tensor, (name, values) in zip(artifact.outputs, expected.items(), strict=True):
        error = relative_rms(values, answers[tensor.name])
        allowed = max(EXPORT_ERROR, relative_rms(source[name], values))
        if not error <= allowed:
            raise ExportError(
                f"the ONNX file of what Intel Neural Compressor converted answers otherwise in {tensor.name!r}: "
                f"{error:.2%} of its RMS, allowed is {allowed:.2%}"
            )
