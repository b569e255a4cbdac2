"""The device kit where things are otherwise than it is used to: shells, variables, missing tools, several GPUs."""

import shutil
import subprocess

import pytest


def test_cdpath_leads_nowhere(device_bundle, kit_of, tmp_path):
    kit = kit_of(device_bundle("a100-int8"))
    environment = kit.environment | {"STAND_IN_VERSION": "10.3.0", "CDPATH": f".:{tmp_path}"}
    for script in ("build_engine.sh", "measure.sh"):
        ran = subprocess.run(
            ["bash", f"device/{script}"], cwd=kit.root, env=environment, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
    assert (kit.root / "results" / "SHA256SUMS").is_file()


@pytest.mark.parametrize("script", ["build_engine.sh", "measure.sh"])
def test_another_shell_is_told(device_bundle, kit_of, script):
    dash = shutil.which("dash")
    if dash is None:
        pytest.skip("there is no dash here")
    kit = kit_of(device_bundle("a100-int8"))
    ran = subprocess.run([dash, kit.root / "device" / script], env=kit.environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (2, "error: this is no shell that the kit knows; run it with bash\n")


def test_a_missing_sha256sum_is_told(device_bundle, kit_of, tmp_path):
    kit = kit_of(device_bundle("a100-int8"))
    (tmp_path / "the device's tools" / "sha256sum").unlink()
    ran = kit.run("build_engine.sh", version="10.3.0")
    assert (ran.code, ran.output) == (2, "error: there is no sha256sum here\ninstall coreutils\n")


def test_trtexec_of_8_0(device_bundle, kit_of, tmp_path):
    kit = kit_of(device_bundle("jetson-fp16", "jetson-nano@jetpack-4.6", graph="fp16"))
    results = kit.measure(tmp_path / "results", version="8.0.1")
    command = (results / "build.log.command").read_text()
    assert "--workspace=" in command
    assert "--exportLayerInfo" not in command
    assert "--profilingVerbosity" not in command
    assert not (results / "layers.json").exists()


SMI = """printf '%s\\n' "$*" >>"$SMI_LOG"
case "$*" in *mig*) echo Disabled;; *) echo 70.00 W;; esac"""


@pytest.mark.parametrize(
    ("target", "device", "version", "visible", "wanted"),
    [
        ("a100-int8", "host", "10.3.0", "3,1", "GPU-7"),
        ("a100-int8", "@tensorrt-8.6", "8.6.1", "3,1", "3"),
        ("a100-int8", "@tensorrt-8.6", "8.6.1", "", "0"),
        ("jetson-int8", "host", "10.3.0", "", "0"),
    ],
    ids=["named by trtexec", "named to CUDA", "the first", "of a board"],
)
def test_what_is_told_is_of_the_gpu_that_is_measured(
    device_bundle, kit_of, add_tool, tmp_path, target, device, version, visible, wanted
):
    add_tool("nvidia-smi", SMI)
    log = tmp_path / "smi.log"
    surroundings = {"SMI_LOG": str(log), "STAND_IN_UUID": "GPU-7"}
    surroundings |= {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    kit_of(device_bundle(target, device)).measure(tmp_path / "r", version=version, **surroundings)
    asked = log.read_text().splitlines()
    assert len(asked) >= 3
    assert {f"--id={wanted}" in line.split() for line in asked} == {True}


def test_an_engine_of_another_gpu_is_not_measured(device_bundle, kit_of, tmp_path):
    kit = kit_of(device_bundle("a100-int8"))
    assert kit.run("build_engine.sh", "--output", tmp_path / "r", version="10.3.0").code == 0
    ran = kit.run("measure.sh", "--output", tmp_path / "r", version="10.3.0", STAND_IN_DEVICE="NVIDIA A30")
    assert (ran.code, "the engine was built on another GPU than this NVIDIA A30" in ran.output) == (2, True)
    assert not (tmp_path / "r" / "run.txt").exists()


def test_nothing_stays_in_a_sealed_bundle(device_bundle, kit_of):
    kit = kit_of(device_bundle("a100-int8"))
    shutil.copy(kit.bundle / "manifest.json", kit.root)
    ran = kit.run("build_engine.sh", "--output", kit.root / "a" / "b", version="10.3.0")
    assert (ran.code, "lies in the bundle, whose files are sealed" in ran.output) == (2, True)
    assert not (kit.root / "a").exists()
