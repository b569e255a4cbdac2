"""Which graph of a bundle TensorRT engines are built of, and by which versions."""

from dataclasses import dataclass

from tsexport.bundles.manifest import ArtifactEntry, Manifest
from tsexport.devices import list_devices, version_key
from tsexport.targets import Target


@dataclass(frozen=True)
class VersionRange:
    """The versions of TensorRT that a kit takes, both included, such as "10.3" and "10.7"."""

    first: str
    last: str

    def holds(self, version: str) -> bool:
        """Return whether a version such as "10.3.0" is one of them, whatever its patch."""
        return version_key(self.first) <= version_key(version)[:2] <= version_key(self.last)

    def __str__(self) -> str:
        return f"{self.first} to {self.last}"


def tensorrt_range(target: Target) -> VersionRange:
    """Return the versions that a target's kit takes: from the target's own to the last that the device may have."""
    assert target.tensorrt is not None, "callers ask for GPUs and boards alone"
    device = next((one for one in list_devices() if one.name == target.device), None)
    return VersionRange(target.tensorrt, device.tensorrt[1] if device else target.tensorrt)


def graph_of(manifest: Manifest) -> ArtifactEntry | None:
    """Return the graph that engines are built of: the selected artifact, or the ONNX file of its precision.

    None for a CPU's bundle, and for one without such an ONNX file.
    """
    if manifest.target.tensorrt is None:
        return None
    selected = manifest.artifact(manifest.selected.artifact)
    onnx = [entry for entry in manifest.artifacts if entry.format == "onnx" and entry.precision == selected.precision]
    return selected if selected in onnx else next(iter(onnx), None)
