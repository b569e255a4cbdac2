"""Training that gives the same bytes again: fixed kernels, what the last bits depend on, and the comparison.

A script calls `restart_with` first: the libraries read which kernels they may use when they are loaded, so it starts
itself again with one thread and with kernels that other machines have too.  Everything random must come from a seed.
"""

import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"
TASK_ERROR_TOLERANCE = 0.05
"""Relative: how far the metrics of two trainings on other machines may be apart."""


def restart_with(kernels: Mapping[str, str]) -> None:
    """Replace this process by one with the environment variables `kernels`, unless it has them."""
    if any(os.environ.get(name) != value for name, value in kernels.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **kernels})


def kind_of_machine() -> dict[str, str]:
    """Return what the last bits of a training run may depend on."""
    import cpuinfo
    import numpy as np
    import torch

    flags = set(cpuinfo.get_cpu_info().get("flags", ()))
    vectors = [name for name in ("avx2", "fma", "avx512f", "avx512_vnni", "amx_tile", "asimd") if name in flags]
    versions = {"torch": torch.__version__.split("+")[0], "numpy": np.__version__}
    return {"architecture": platform.machine(), "vectors": " ".join(vectors), **versions}


def write_checkpoint(module: "nn.Module", output: Path, metadata: Mapping[str, object]) -> None:
    """Write the weights, with `metadata` and the kind of machine, under a temporary name that is then renamed."""
    from safetensors.torch import save_file

    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    temporary = output.with_name(f".{output.name}.part")
    # One key: safetensors writes several in no fixed order.
    text = json.dumps({**metadata, "made_on": kind_of_machine()}, sort_keys=True)
    save_file(state, temporary, metadata={"tsexport": text})
    temporary.chmod(0o644)
    temporary.replace(output)


def read_metadata(path: Path) -> dict[str, object]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        found: dict[str, object] = json.loads(file.metadata()["tsexport"])
    return found


def reproduces(committed: Path, train: Callable[[Path], None], metric: str) -> bool:
    """Train again and return whether the committed file is reproduced: to the bit on the same kind of machine.

    On another, training takes another path through the same loss: the metadata's `metric` must then agree.
    """
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder) / committed.name
        train(again)
        if again.read_bytes() == committed.read_bytes():
            print(f"{committed.name} is reproduced bit by bit")
            return True
        old, new = read_metadata(committed), read_metadata(again)
    reached = float(str(old[metric])), float(str(new[metric]))
    print(f"the bytes of {committed.name} differ: made on {old['made_on']} with {metric} {reached[0]},")
    print(f"now on {new['made_on']} with {reached[1]}")
    return old["made_on"] != new["made_on"] and abs(reached[1] - reached[0]) <= TASK_ERROR_TOLERANCE * reached[0]
