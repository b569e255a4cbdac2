"""The table of models, and third parties' rows."""

import subprocess
import sys

import pytest
import torch

from tsexport.errors import ConfigurationError, UsageError
from tsexport.models.registry import get_entry, list_entries

NAMES = [entry.name for entry in list_entries()]


def test_names_are_unique_and_complete():
    assert NAMES[:4] == ["patchtst-cpu", "patchtst", "dlinear", "linear"]
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_row_agrees_with_the_model(name):
    entry = get_entry(name)
    definition = entry.definition()
    with torch.device("meta"):  # counted without memory for the weights: the largest has 2 GB of them
        module = definition.build(definition.Config())
    assert sum(p.numel() for p in module.parameters()) == entry.parameters
    assert entry.summary
    assert entry.source
    assert entry.checkpoint is None or entry.checkpoint.is_file()


def test_listing_and_identifying_load_no_torch():
    code = (
        "import sys\nfrom tsexport.models.registry import list_entries\nfrom tsexport.models.sources import identify\n"
        "for entry in list_entries(): identify(entry.name).inputs\n"
        "identify('somewhere:factory')\n"
        "print(*{'torch', 'onnx', 'onnxruntime', 'openvino', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_unknown_name_suggests_one():
    with pytest.raises(UsageError, match=r"no model 'patchst'.*did you mean 'patchtst'"):
        get_entry("patchst")


@pytest.mark.parametrize("name", ["timegpt", "TimeGPT-1", "time-gpt", "time_gpt_1"])
def test_timegpt_is_explained(name):
    with pytest.raises(UsageError, match="closed API: it has no weights"):
        get_entry(name)


def install(folder, monkeypatch, body, name="acme-net"):
    """Install a package with one entry point, as pip would lay it out."""
    info = folder / "acme_models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tsexport.models]\n{name} = acme_models_{folder.name}:entry\n")
    (folder / f"acme_models_{folder.name}.py").write_text(body)
    monkeypatch.syspath_prepend(str(folder))


ROW = """
from tsexport.models.registry import ModelEntry
entry = ModelEntry("acme-net", "linear", "forecast", "theirs", "Acme", "tsexport.models.linear", 32352)
"""


def test_third_party_row_is_listed_and_found(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, ROW)
    assert [entry.name for entry in list_entries()] == [*NAMES, "acme-net"]
    assert get_entry("acme-net").summary == "theirs"


@pytest.mark.parametrize(
    ("body", "message"),
    [("raise RuntimeError('boom')", "acme-models cannot be loaded.*boom"), ("entry = 3", "gives 3, not a ModelEntry")],
)
def test_broken_third_party_row_names_its_package(tmp_path, monkeypatch, body, message):
    install(tmp_path, monkeypatch, body)
    with pytest.raises(ConfigurationError, match=message):
        list_entries()
    assert get_entry("patchtst").name == "patchtst"  # the others still work


def test_third_party_cannot_replace_a_built_in_model(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "entry = 3", name="linear")
    assert [entry.name for entry in list_entries()] == NAMES


def test_a_published_count_says_why_it_is_not_ours():
    for entry in list_entries():
        assert (entry.published_parameters is None) == (entry.published_note == ""), entry.name
        assert entry.published_parameters != entry.parameters, entry.name
