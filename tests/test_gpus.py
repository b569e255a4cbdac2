"""What is read of `nvidia-smi`, and which GPU is which device."""

import pytest

from tsexport.devices import device_of
from tsexport.gpus import Gpu, is_device, read_gpus

ANSWER = """NVIDIA H200, 143771, 580.159.04, 9.0, 700.00, 1980, Disabled
NVIDIA A100-SXM4-40GB, 40960, 535.104.05, 8.0, 400.00, 1410, Enabled
Tesla T4, 15360, 470.57.02, 7.5, [N/A], [N/A], [N/A]
"""


def test_an_answer_is_read():
    h200, a100, t4 = read_gpus(ANSWER)
    assert h200 == Gpu("NVIDIA H200", 143771 * 2**20, "580.159.04", "9.0", 700.0, 1980, False)
    assert a100.is_part
    assert (t4.power_limit_w, t4.max_clock_mhz, t4.is_part) == (None, None, False)
    assert str(h200) == "NVIDIA H200, driver 580.159.04"


@pytest.mark.parametrize(
    "text", ["", "No devices were found\n", "NVIDIA H200, 143771\n", "NVIDIA H200, [N/A], 1, 9.0, 1, 1, Disabled\n"]
)
def test_what_is_no_answer_is_no_gpu(text):
    assert read_gpus(text) == ()


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-PCIE-40GB", "a100"),
        ("Tesla T4", "t4"),
    ],
)
def test_a_gpu_is_its_device(name, device):
    gpu = Gpu(name, 2**36, "1", "9.0")
    assert is_device(gpu, device)
    assert device_of(gpu) == device
    assert not is_device(Gpu(name, 2**36, "1", "9.0", is_part=True), device)


@pytest.mark.parametrize("name", ["NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H200 NVL", "NVIDIA GH200 480GB"])
def test_another_card_of_the_name_is_another_device(name):
    gpu = Gpu(name, 2**36, "1", "9.0")
    assert not is_device(gpu, "h100")
    assert not is_device(gpu, "h200")
    assert device_of(gpu).startswith("nvidia-")
