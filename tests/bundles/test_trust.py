"""What could be done to a bundle on its way: each is found, by name, before anything of it is run."""

import json
import shutil
import tarfile

import numpy as np
import pytest
from pickled import pickles

import tsexport
from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import seal
from tsexport.bundles.signing import sign_bundle
from tsexport.bundles.verification import verify_bundle
from tsexport.errors import BundleError
from tsexport.measurements.scenarios import ScenarioOptions, run_scenario
from tsexport.reports.writing import render_readme


def test_two_artifacts_that_changed_places(bundle_folder):
    one, other = (bundle_folder / "artifacts" / name for name in ("tiny-fp32.onnx", "tiny-int8.onnx"))
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    with pytest.raises(BundleError, match=r"changed: artifacts/tiny-fp32\.onnx; changed: artifacts/tiny-int8\.onnx"):
        verify_bundle(bundle_folder)
    seal(bundle_folder)  # whoever swapped them could do this too; the manifest knows them by name
    with pytest.raises(BundleError, match=r"manifest\.json gives another SHA-256 for artifacts/tiny-fp32\.onnx"):
        verify_bundle(bundle_folder)


SWAPPED = r"manifest\.json gives another SHA-256 for artifacts/tiny-fp32\.onnx than SHA256SUMS"


@pytest.mark.parametrize(
    "use",
    [
        lambda bundle, other: tsexport.compare(bundle, other),
        lambda bundle, other: tsexport.compare(other, bundle),
        lambda bundle, other: tsexport.benchmark(bundle),
        lambda bundle, other: tsexport.diff(other, bundle),
        lambda bundle, other: tsexport.report(bundle, output=bundle.parent / "page.html"),
        lambda bundle, other: tsexport.load(bundle, precision="fp32"),
        lambda bundle, other: run_scenario(bundle, "memory", ScenarioOptions()),
        lambda bundle, other: sign_bundle(bundle, private_key(bundle.parent / "key.pem")),
    ],
)
def test_nothing_is_done_with_a_bundle_whose_manifest_knows_other_files(bundle_folder, tmp_path, use):
    """SHA256SUMS was written anew by whoever swapped the file."""
    whole = shutil.copytree(bundle_folder, tmp_path / "whole")
    shutil.copyfile(bundle_folder / "artifacts/tiny-int8.onnx", bundle_folder / "artifacts/tiny-fp32.onnx")
    seal(bundle_folder)
    with pytest.raises(BundleError, match=SWAPPED):
        use(bundle_folder, whole)
    assert not (bundle_folder / "SHA256SUMS.sig").exists()
    assert not (bundle_folder.parent / "page.html").exists()


def test_a_bundle_whose_name_climbs_writes_nowhere(bundle_folder, tmp_path):
    """Results are kept in a folder of that name."""
    path = bundle_folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": "../../elsewhere"}))
    seal(bundle_folder)
    with pytest.raises(BundleError, match=r"name is '\.\./\.\./elsewhere'; allowed is a folder's name"):
        tsexport.benchmark(bundle_folder, record=tmp_path / "a" / "b")
    assert not (tmp_path / "elsewhere").exists()


def private_key(path):
    """Write an Ed25519 key; return its path."""
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519", reason="needs the extra sign")
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def test_a_file_of_another_bundle(bundle_folder, torchscript_bundle):
    shutil.copyfile(torchscript_bundle / "manifest.json", bundle_folder / "manifest.json")
    with pytest.raises(BundleError, match=r"changed: manifest\.json"):
        verify_bundle(bundle_folder)


def test_a_manifest_of_another_schema(bundle_folder):
    document = json.loads((bundle_folder / "manifest.json").read_text())
    (bundle_folder / "manifest.json").write_text(json.dumps(document | {"schema_version": 2}))
    seal(bundle_folder)
    with pytest.raises(BundleError, match="schema_version 2; this tsexport reads schema_version 1"):
        verify_bundle(bundle_folder)


@pytest.mark.parametrize("outer", ["zip", "tar"])
@pytest.mark.parametrize("inner", ["bundle.zip", "bundle.tar.gz", "BUNDLE.TAR"])
def test_an_archive_in_an_archive(bundle_folder, tmp_path, outer, inner):
    kind = {"bundle.zip": "zip", "bundle.tar.gz": "gztar", "BUNDLE.TAR": "tar"}[inner]
    packed = shutil.make_archive(str(tmp_path / "inner"), kind, bundle_folder.parent, bundle_folder.name)
    folder = tmp_path / "nested"
    folder.mkdir()
    shutil.copyfile(packed, folder / inner)
    archive = shutil.make_archive(str(tmp_path / "outer"), outer, folder)
    with pytest.raises(BundleError, match=f"holds another archive, {inner}; archives within archives") as caught:
        open_bundle(archive)
    assert caught.value.next_step == "unpack it, and give the archive in it"


def test_a_link_in_an_archive_of_a_bundle(bundle_folder, tmp_path):
    archive = tmp_path / "b.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(bundle_folder, arcname="b")
        link = tarfile.TarInfo("b/artifacts/more.onnx")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(BundleError, match="which is a link to '/etc/passwd'; bundles hold plain files only"):
        verify_bundle(archive)


# --- TorchScript -----------------------------------------------------------------------------------------------------


def test_a_changed_torchscript_archive_is_not_loaded(torchscript_bundle, monkeypatch):
    """It is refused by its digest: torch never sees it."""
    import torch

    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was loaded"))
    path = torchscript_bundle / "artifacts/tiny-fp32.pt"
    path.write_bytes(path.read_bytes() + b"x")
    for call in (
        lambda: tsexport.load(torchscript_bundle, runtime="torchscript"),
        lambda: verify_bundle(torchscript_bundle),
    ):
        with pytest.raises(BundleError, match=r"artifacts/tiny-fp32\.pt"):
            call()


def test_the_readme_says_that_torchscript_can_run_code(torchscript_bundle, bundle):
    warning = "A TorchScript archive can run code when it is loaded"
    with open_bundle(torchscript_bundle) as other:
        assert warning in render_readme(other.manifest, other.selection)
    assert warning not in render_readme(bundle.manifest, bundle.selection)


def test_nothing_but_torchscript_holds_a_pickle(torchscript_bundle, measured_folder, tmp_path):
    assert pickles(torchscript_bundle) == {"artifacts/tiny-fp32.pt"}
    assert pickles(measured_folder) == set()
    import pickle

    (tmp_path / "sample").mkdir()
    (tmp_path / "sample/a.bin").write_bytes(pickle.dumps({"a": 1}))
    np.savez(tmp_path / "sample/b.npz", b=np.array([{}], object))
    assert pickles(tmp_path / "sample") == {"a.bin", "b.npz"}, "the test itself sees pickles"
