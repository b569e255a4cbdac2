"""Which files a definition's digest covers."""

import sys
from importlib import import_module

import pytest

from tsexport.models import inception_time, lstm
from tsexport.models.factory import user_sources
from tsexport.models.registry import ModelEntry
from tsexport.models.source_files import source_files
from tsexport.models.sources import identify

OWN = "from acme_nets.shared import Config, make\n\ndef build(config):\n    return make(config)\n"
SHARED = """
from tsexport.models.linear import Config
from acme_nets import layers

def make(config):
    return layers.LAYER
"""
ENTRY = "acme-net", "linear", "forecast", "theirs", "Acme", "acme_nets.net", 1


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A third party's package: net.py takes from shared.py, and that from layers.py; other.py stands apart."""
    folder = tmp_path / "acme_nets"
    folder.mkdir()
    files = {"__init__": "", "net": OWN, "shared": SHARED, "layers": "LAYER = 1\n", "other": "LAYER = 2\n"}
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme_nets"]:
        del sys.modules[name]


def test_own_models_share_files():
    assert [path.name for path in source_files(lstm)] == ["lstm.py", "definition.py", "recurrent.py"]
    assert {path.name for path in source_files(inception_time)} >= {"inception_time.py", "same_conv.py"}


def test_files_of_the_package_are_followed(package):
    import_module("acme_nets.other")
    found = source_files(import_module("acme_nets.net"))
    assert [path.name for path in found] == ["net.py", "layers.py", "shared.py"]


@pytest.mark.parametrize(("edited", "changes"), [("net", True), ("shared", True), ("layers", True), ("other", False)])
def test_an_edit_of_a_shared_file_changes_the_digest(package, monkeypatch, edited, changes):
    entry = ModelEntry(*ENTRY)
    monkeypatch.setattr("tsexport.models.sources.is_registered", lambda name: name == "acme-net")
    monkeypatch.setattr("tsexport.models.sources.get_entry", lambda name: entry)
    before = identify("acme-net").digest
    with (package / f"{edited}.py").open("a") as file:
        file.write("# edited\n")
    assert (identify("acme-net").digest != before) is changes


def test_packages_that_another_environment_lends_are_no_sources_of_the_user(tmp_path, monkeypatch):
    """A .pth file or PYTHONPATH lends them; following all imports of torch there took 17 s."""
    lent = tmp_path / "venv" / "lib" / "site-packages"
    lent.mkdir(parents=True)
    (lent / "lent_to_us.py").write_text("import json\n")
    (tmp_path / "of_the_user.py").write_text("import lent_to_us\n")
    monkeypatch.syspath_prepend(lent)
    monkeypatch.syspath_prepend(tmp_path)
    assert user_sources(import_module("of_the_user")) == {(tmp_path / "of_the_user.py").resolve()}
