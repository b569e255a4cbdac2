"""Devices that other packages add: a real distribution on sys.path, as pip would leave it."""

import re

import pytest

from tsexport.devices import broken_devices
from tsexport.errors import ConfigurationError, UnsupportedError
from tsexport.targets import parse_target, target_names

BOARD = """
from tsexport.devices import Device, Peak
peak = Peak("30 W", 100.0, 1.0, 2.0, "calculated", 4.0)
versions = ("10.0", "10.7")
entry = Device("acme-one", "acme", "Acme One", "8.9", ("fp16", "int8"), versions, "tensorrt-10.3", (8.0,), (peak,))
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a distribution of one module, which registers a device under a name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(body, name="acme-one"):
        module = f"acme_targets_{tmp_path.name}"
        info = tmp_path / "acme_targets-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-targets\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[tsexport.targets]\n{name} = {module}:entry\n")
        (tmp_path / f"{module}.py").write_text(body)

    return write


def test_a_third_partys_device_gives_targets_of_its_family(install):
    install(BOARD)
    assert target_names()[-2:] == ("acme-fp16", "acme-int8")
    target = parse_target("acme-int8", "@tensorrt-10.5")
    assert (target.device, target.tensorrt, target.summary) == ("acme-one", "10.5", "Acme One, TensorRT 10.5, int8")
    with pytest.raises(UnsupportedError, match="acme-bf16 on Acme One: it is built for in fp16 or int8 alone"):
        parse_target("acme-bf16")


def test_a_third_partys_board_joins_a_family_that_is_there(install):
    install(BOARD.replace('"acme",', '"jetson",'))
    assert parse_target("jetson-int8").device == "orin-nano"
    assert parse_target("jetson-int8", "acme-one").device == "acme-one"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise RuntimeError('boom')", r"'acme-one' of acme-targets cannot be loaded from .*boom"),
        ("entry = 3", "gives 3, not a tsexport.devices.Device of that name"),
        (
            BOARD.replace('"tensorrt-10.3"', '"tensorrt-8.6"'),
            "has the default 'tensorrt-8.6'; it may have tensorrt-10.0",
        ),
    ],
)
def test_a_broken_third_party_hides_no_other_target(install, body, message):
    install(body)
    assert target_names()[:3] == ("cpu4-fp32", "cpu4-bf16", "cpu4-int8")
    assert re.search(message, broken_devices()["acme-one"].message)
    with pytest.raises(ConfigurationError, match=message) as caught:
        parse_target("acme-one-int8")
    assert caught.value.next_step == "repair or uninstall acme-targets"


@pytest.mark.parametrize("name", ["a100", "jetson", "orin-nano", "cpu4"])
def test_a_third_party_cannot_replace_what_is_there(install, name):
    before = target_names()
    install("entry = 3", name)
    assert target_names() == before
    assert broken_devices() == {}
