"""The exports that a user writes without tsexport, made in a process of their own.

`python -m tsexport.bench.suites.plain_exports EAGER.json FOLDER FILE...` writes those named, as far as each works:

plain.pt              torch.jit.trace in eval mode under no_grad, fast path on, saved as it is
plain.onnx            torch.onnx.export, opset 17, dynamo=False, dynamic batch, fast path off (it cannot be exported)
quantize_dynamic.onnx onnxruntime.quantization.quantize_dynamic on plain.onnx, all defaults
failures.json         {file: why it could not be made}

The example input is random and of batch 2.  A failing torch.onnx.export prints the whole graph to the process's stdout,
which is why the caller runs this in a subprocess and drops its output.
"""

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

TORCHSCRIPT, ONNX, QUANTIZED = "plain.pt", "plain.onnx", "quantize_dynamic.onnx"
EVERY = (TORCHSCRIPT, ONNX, QUANTIZED)
OPSET = 17
EXAMPLE_BATCH = 2


def make_plain_exports(eager: Path, folder: Path, names: Sequence[str] = EVERY) -> dict[str, str]:
    """Make the plain exports of a model in a fresh process; return why those that are missing could not be made.

    Args:
        eager: the file of an `EagerSource`.
        names: the files to make; the quantized one needs the ONNX file before it.
    """
    command = [sys.executable, "-P", "-m", "tsexport.bench.suites.plain_exports", str(eager), str(folder), *names]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        failures: dict[str, str] = json.loads((folder / "failures.json").read_text())
    except FileNotFoundError:
        tail = " ".join(done.stderr.strip().splitlines()[-1:])
        failures = {name: f"the exporting process ended: {tail}" for name in names}
    return failures


def _export(eager: Path, folder: Path, names: Sequence[str]) -> dict[str, str]:
    import torch

    from tsexport.bench.suites.plain_runtimes import EagerSource
    from tsexport.models.sources import identify
    from tsexport.types import random_feeds

    source = EagerSource.read(eager)
    identity = identify(source.model, settings=source.settings, seed=source.seed)
    module = source.module()
    inputs = identity.inputs
    assert identity.config is not None, "registered models only"
    outputs = identity.config.outputs
    feeds = random_feeds(inputs, EXAMPLE_BATCH, seed=1)
    example = tuple(torch.from_numpy(feeds[spec.name]) for spec in inputs)

    def trace() -> None:
        torch.backends.mha.set_fastpath_enabled(True)
        with torch.no_grad():
            torch.jit.trace(module, example).save(str(folder / TORCHSCRIPT))  # type: ignore[no-untyped-call]

    def export() -> None:
        torch.backends.mha.set_fastpath_enabled(False)
        names = [spec.name for spec in (*inputs, *outputs)]
        torch.onnx.export(
            module,
            example,
            str(folder / ONNX),
            opset_version=OPSET,
            dynamo=False,
            input_names=[spec.name for spec in inputs],
            output_names=[spec.name for spec in outputs],
            dynamic_axes={name: {0: "batch"} for name in names},
        )

    def quantize() -> None:
        from onnxruntime.quantization import quantize_dynamic

        logging.disable(logging.WARNING)
        quantize_dynamic(folder / ONNX, folder / QUANTIZED)

    steps: dict[str, Callable[[], None]] = {TORCHSCRIPT: trace, ONNX: export, QUANTIZED: quantize}
    failures = {}
    for name in names:
        try:
            steps[name]()
        except Exception as error:  # whatever a tool raises is what its user would meet
            (folder / name).unlink(missing_ok=True)
            failures[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
    return failures


def main() -> None:
    warnings.simplefilter("ignore")
    eager, folder = Path(sys.argv[1]), Path(sys.argv[2])
    (folder / "failures.json").write_text(json.dumps(_export(eager, folder, sys.argv[3:])))


if __name__ == "__main__":
    main()
