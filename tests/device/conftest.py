"""Bundles for devices with their kit, and runs of the kit's scripts under a stand-in for trtexec."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.manifest import RankedArtifact, SelectedArtifact, manifest_text, selection_text
from tsexport.bundles.staging import staged_bundle
from tsexport.device.kit import write_kit
from tsexport.targets import parse_target

STAND_IN = Path(__file__).parent / "stand_in_trtexec.py"
TOOLS = (
    "bash", "cat", "cp", "dirname", "grep", "mkdir", "mv", "rm", "rmdir", "sed", "sha256sum", "tail", "tr", "uname",
    "wc",
)  # fmt: skip
"""All that a device has in these tests besides trtexec: there is no Python and no jq on this PATH."""
DEVICES = {
    "a100": ("NVIDIA A100-SXM4-40GB", "8.0", ""),
    "t4": ("Tesla T4", "7.5", ""),
    "orin-nano": ("Orin", "8.7", "NVIDIA Jetson Orin Nano Developer Kit"),
    "xavier-nx": ("Xavier", "7.2", "NVIDIA Jetson Xavier NX Developer Kit"),
    "jetson-nano": ("NVIDIA Tegra X1", "5.3", "NVIDIA Jetson Nano Developer Kit"),
}


@dataclass(frozen=True)
class Ran:
    code: int
    output: str


@dataclass(frozen=True)
class Kit:
    """A bundle's device/ and artifacts/, copied to where a device would have them, and nothing else."""

    root: Path
    bundle: Path
    device: str
    environment: dict[str, str]

    def run(self, script, *arguments, version, cwd=None, **environment):
        ran = subprocess.run(
            ["bash", str(self.root / "device" / script), *map(str, arguments)],
            capture_output=True, text=True, cwd=cwd or self.root.parent,
            env=self.environment | {"STAND_IN_VERSION": version} | environment,
        )  # fmt: skip
        return Ran(ran.returncode, ran.stdout + ran.stderr)

    def measure(self, output, *, version, build=(), measure=(), **environment):
        """Build and measure into a folder; return it."""
        for script, given in (("build_engine.sh", build), ("measure.sh", measure)):
            ran = self.run(script, "--output", output, *given, version=version, **environment)
            assert ran.code == 0, ran.output
        return Path(output)


@pytest.fixture
def device_bundle(tmp_path, bundle_folder):
    """Return a function that writes a sealed bundle for a target, with its kit, and gives its folder.

    `graph` is the selected artifact's precision; `inputs` replaces what the manifest says of the artifacts' inputs.
    """

    def make(
        target="jetson-int8",
        device="host",
        *,
        name=None,
        graph="int8",
        cache="",
        inputs=None,
        batches=(1, 8),
        model=None,
    ):
        destination = tmp_path / "dist" / (name or f"tiny-{target}")
        with staged_bundle(destination, force=False) as staging:
            for folder in ("artifacts", "golden"):
                shutil.copytree(bundle_folder / folder, staging / folder)
            if cache:
                (staging / "artifacts" / "calibration.cache").write_text(cache)
            shutil.copy(bundle_folder / "README.md", staging)
            opened = open_bundle(bundle_folder)
            entries = tuple(replace(one, inputs=inputs or one.inputs) for one in opened.manifest.artifacts)
            chosen = f"{graph}-onnx"
            if graph not in ("fp32", "int8"):  # what the second file computes in is not looked at here
                entries = (entries[0], replace(entries[1], precision=graph, name=chosen))
            manifest = replace(
                opened.manifest,
                name=destination.name,
                model=replace(opened.manifest.model, **(model or {})),
                target=parse_target(target, device),
                artifacts=entries,
                selected=SelectedArtifact(chosen, "onnxruntime", "the smallest error"),
                candidates=(),
                accuracy=(),
            )
            selection = replace(
                opened.selection, artifact=chosen, order=(RankedArtifact(chosen, "onnxruntime"),), candidate=chosen
            )
            (staging / "manifest.json").write_text(manifest_text(manifest))
            (staging / "selection.json").write_text(selection_text(selection))
            write_kit(staging, manifest, batches, "artifacts/calibration.cache")
        return destination

    return make


@pytest.fixture
def kit_of(tmp_path):
    """Return a function that copies a bundle's kit to a 'device': a folder with spaces in its name."""
    tools = tmp_path / "the device's tools"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(shutil.which(tool))
    trtexec = tools / "trtexec"
    trtexec.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{STAND_IN}" "$@"\n')
    trtexec.chmod(0o755)

    def copy(bundle, *, milliseconds="2.5"):
        root = tmp_path / "on the device" / bundle.name
        for folder in ("device", "artifacts"):
            shutil.copytree(bundle / folder, root / folder)
        device = open_bundle(bundle).manifest.target.device
        name, capability, board = DEVICES[device]
        (root / "model").write_bytes(board.encode() + b"\0")
        environment = {
            "PATH": str(tools), "HOME": os.environ.get("HOME", "/"), "LC_ALL": "C", "STAND_IN_DEVICE": name,
            "STAND_IN_CAPABILITY": capability, "STAND_IN_MS": milliseconds,
            "KIT_MODEL_FILE": str(root / "model") if board else "/nonexistent",
        }  # fmt: skip
        return Kit(root, bundle, device, environment)

    return copy


@pytest.fixture
def add_tool(tmp_path):
    """Return a function that puts a program of the device's, as a bash script, onto its PATH."""

    def add(name, text):
        path = tmp_path / "the device's tools" / name
        path.write_text(f"#!{shutil.which('bash')}\n{text}\n")
        path.chmod(0o755)

    return add
