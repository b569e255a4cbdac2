"""Which artifacts of a bundle are timed on this machine, on which runtimes, and what the machine stands for then.

A bundle for a GPU is timed by torch on the GPU at hand, where there is one: its TorchScript artifacts, in the precision
that each is in.  Its ONNX graphs are TensorRT's, which nothing here runs.  Where there is no GPU its fp32 artifacts are
timed on this CPU; what TensorRT computes in int8, fp16 or bf16 says nothing when it is simulated, and takes minutes.
"""

from collections.abc import Collection
from dataclasses import dataclass

from tsexport.bench.fingerprint import Machine
from tsexport.bench.verdicts import CPU4
from tsexport.bundles.manifest import ArtifactEntry, Manifest
from tsexport.devices import device_of
from tsexport.errors import NoRuntimeError
from tsexport.gpus import Gpu
from tsexport.runtimes.registry import TORCH_CUDA, list_statuses


@dataclass(frozen=True)
class TimingPairs:
    """What is timed: (artifact, runtime); `device` is what the tables call the place, such as "cpu4" or "h200"."""

    pairs: tuple[tuple[ArtifactEntry, str], ...]
    device: str = CPU4

    @property
    def on_gpu(self) -> bool:
        return self.device != CPU4


def timing_pairs(manifest: Manifest, here: Collection[str], gpu: Gpu | None) -> TimingPairs:
    """Return what is timed of a bundle.

    Args:
        here: the runtimes that this machine has.
        gpu: the GPU that torch computes on, None where there is none.
    """
    if manifest.target.instruction_set != "gpu":
        return TimingPairs(_pairs(manifest.artifacts, here))
    scripts = tuple((one, TORCH_CUDA) for one in manifest.artifacts if one.format == "torchscript")
    if gpu is not None and TORCH_CUDA in here and scripts:
        return TimingPairs(scripts, device_of(gpu))
    return TimingPairs(_pairs(tuple(one for one in manifest.artifacts if one.precision == "fp32"), here))


def timing_pairs_here(manifest: Manifest, machine: Machine) -> TimingPairs:
    """Return what is timed of a bundle on this machine.

    Raises:
        NoRuntimeError: no runtime here runs any of its artifacts.
    """
    here = {status.name for status in list_statuses() if status.available}
    timed = timing_pairs(manifest, here, machine.gpu)
    if not timed.pairs:
        wanted = sorted({runtime for entry in manifest.artifacts for runtime in entry.runtimes})
        raise NoRuntimeError(
            f"no runtime here runs {manifest.name}; it needs one of {', '.join(wanted)}",
            next_step="see `tsexport runtimes` for the pip commands",
        )
    return timed


def _pairs(artifacts: tuple[ArtifactEntry, ...], here: Collection[str]) -> tuple[tuple[ArtifactEntry, str], ...]:
    return tuple((entry, runtime) for entry in artifacts for runtime in entry.runtimes if runtime in here)
