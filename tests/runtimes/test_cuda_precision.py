"""What is refused of a cast module, what stays in fp32, and why torch cannot compute on a GPU here."""

import pytest
import torch
from torch import nn

from tsexport.errors import ConfigurationError
from tsexport.runtimes import cuda_build
from tsexport.runtimes.cuda_build import NO_GPU, cuda_obstacle, cuda_of_torch
from tsexport.runtimes.cuda_precision import narrowed, narrowed_model
from tsexport.runtimes.registry import TORCH_CUDA, get_runtime


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.film, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.film(self.body(x)))


def kinds(module):
    return {name.removeprefix("inner.").split(".")[0]: value.dtype for name, value in module.named_parameters()}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_is_kept_stays_in_fp32(precision):
    narrow = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    source = Net().eval()
    cast = narrowed(source, precision, keep=["film"])
    assert kinds(cast) == {"body": narrow, "film": torch.float32, "head": narrow}
    x = torch.randn(3, 4)
    assert cast(x).dtype == torch.float32
    assert torch.allclose(cast(x), source(x), atol=0.1)
    assert {value.dtype for value in source.parameters()} == {torch.float32}  # it is a copy


def test_only_what_is_named_is_cast():
    cast = narrowed(Net(), "bf16", within=["head"])
    assert kinds(cast) == {"body": torch.float32, "film": torch.float32, "head": torch.bfloat16}


def test_fp32_is_the_module_itself():
    assert isinstance(narrowed(Net(), "fp32", keep=["nothing"]), Net)


def test_a_part_may_lack_what_its_model_keeps():
    assert set(kinds(narrowed_model(Net(), "bf16", keep=["film", "q_head"]))) == {"body", "film", "head"}


@pytest.mark.parametrize(
    ("precision", "options", "message"),
    [
        ("int8", {}, "torch on a GPU computes in fp32, fp16, bf16; given int8"),
        ("fp16", {"keep": ["flim"]}, "Net has no module 'flim' (did you mean 'film'?); it has body, film, head"),
        ("fp16", {"within": ["haed"]}, "Net has no module 'haed' (did you mean 'head'?); it has body, film, head"),
    ],
)
def test_what_is_refused(precision, options, message):
    with pytest.raises(ConfigurationError) as caught:
        narrowed(Net(), precision, **options)
    assert message in caught.value.message


@pytest.fixture
def torch_folder(tmp_path):
    """Return a function that writes torch's version file for a CUDA, and returns the folder."""

    def write(line):
        (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\n{line}\nhip: Optional[str] = None\n")
        return tmp_path

    return write


def test_the_cuda_of_torch_is_read_and_not_imported(torch_folder, tmp_path):
    assert cuda_of_torch(torch_folder("cuda: Optional[str] = '13.0'")) == "13.0"
    assert cuda_of_torch(torch_folder("cuda = '12.8'")) == "12.8"
    assert cuda_of_torch(torch_folder("cuda: Optional[str] = None")) is None
    assert cuda_of_torch(tmp_path / "nowhere") is None


def test_why_there_is_no_gpu(torch_folder, monkeypatch):
    monkeypatch.setattr(cuda_build, "list_gpus", lambda: ())
    assert cuda_obstacle(torch_folder("cuda: Optional[str] = None")) == "the installed torch is a build without CUDA"
    folder = torch_folder("cuda: Optional[str] = '13.0'")
    assert cuda_obstacle(folder) == NO_GPU == "this machine has no NVIDIA GPU that nvidia-smi or the driver shows"
    monkeypatch.setattr(cuda_build, "list_gpus", lambda: ("a GPU",))
    assert cuda_obstacle(folder) == ""


def test_the_runtime_says_why_it_is_not_here():
    status = get_runtime(TORCH_CUDA).check()
    assert status.reason == cuda_obstacle()
    assert status.available == (not status.reason)
