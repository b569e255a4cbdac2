"""Licences as packages declare them: real metadata files, in every form that packages use."""

import importlib
import sys

import pytest

from tsexport.bundles.licences import licences_of

CASES = {
    "an expression": (["License-Expression: BSD-3-Clause AND MIT", "License: Other"], ("BSD-3-Clause AND MIT",)),
    "an identifier": (["License: ISC"], ("ISC",)),
    "a name of one licence": (["License: MIT License"], ("MIT",)),
    "a name with a version": (
        ["License: Apache 2.0", "Classifier: License :: OSI Approved :: MIT License"],
        ("Apache-2.0",),
    ),
    "a name of its own": (["License: Our Licence"], ("Our Licence",)),
    "a classifier": (["Classifier: License :: OSI Approved :: MIT License"], ("MIT",)),
    "a classifier without a version": (
        ["Classifier: License :: OSI Approved :: Apache Software License"],
        ("Apache Software License",),
    ),
    "two classifiers": (
        ["Classifier: License :: OSI Approved :: MIT License", "Classifier: License :: OSI Approved :: BSD License"],
        ("MIT", "BSD License"),
    ),
    "unknown, and a classifier": (
        ["License: UNKNOWN", "Classifier: License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)"],
        ("MPL-2.0",),
    ),
    "the whole text, and a classifier": (
        [
            "License: MIT License",
            "        ",
            "        Permission is hereby granted",
            "Classifier: License :: OSI Approved :: MIT License",
        ],
        ("MIT",),
    ),
    "a classifier that says nothing": (["Classifier: License :: OSI Approved"], ()),
    "nothing": ([], ()),
}


@pytest.mark.parametrize(("lines", "expected"), CASES.values(), ids=CASES)
def test_what_a_package_declares(tmp_path, monkeypatch, lines, expected):
    folder = tmp_path / "some_package-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        "\n".join(["Metadata-Version: 2.4", "Name: some-package", "Version: 1.0", *lines, ""])
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    assert licences_of("some-package") == expected


def test_what_is_installed_here():
    assert licences_of("onnx") == ("Apache-2.0",)
    assert licences_of("tsexport") == ("Apache-2.0",)
    assert licences_of("python") == ("Python-2.0.1",)


def test_what_is_not_installed():
    assert licences_of("no-such-package") == ()
