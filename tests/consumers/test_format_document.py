"""docs/bundle-format.md: it names every key that the records have, its commands run, and its links lead somewhere."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tsexport.bundles.json_schemas import FILES, schema_of
from tsexport.bundles.signing import sign_bundle

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs/bundle-format.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
BLOCK = re.compile(
    r"^<!-- run in the bundle's folder(?P<key>, with key\.pub\.pem)? -->\n```sh\n(?P<text>.*?)^```$", re.M | re.S
)
IN_THE_SCHEMA_ALONE = {"measurements.schema.json"}
"""Schemas whose keys the page leaves to the schema."""


def section(title):
    """Return the text below a heading, up to the next of the same or a higher level."""
    match = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,3}} |\Z)", TEXT, re.M | re.S)
    assert match, title
    return match[2]


@pytest.mark.parametrize("name", [name for name in FILES if name not in IN_THE_SCHEMA_ALONE])
def test_every_key_of_every_record_is_described(name):
    prose = re.sub(r"^```.*?^```$", "", TEXT, flags=re.M | re.S)
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", prose))))
    for record, found in schema_of(FILES[name], title=name)["$defs"].items():
        assert set(found["properties"]) <= words, record


def test_the_tables_name_no_key_that_there_is_not():
    definitions = schema_of(FILES["manifest.schema.json"], title="manifest")["$defs"]
    tables = {"manifest.json": "Manifest", "Model": "ModelSpec", "Target": "Target", "Artifact": "ArtifactEntry",
              "Provenance": "Provenance"}  # fmt: skip
    for title, record in tables.items():
        first_cells = re.findall(r"^\| (`[^|]*) \|", section(title), re.M)
        keys = [key for cell in first_cells for key in re.findall(r"`(\w+)`", cell)]
        assert sorted(keys) == sorted(definitions[record]["properties"]), title
    keys = re.findall(r"^\| (`[^|]*) \|", section("selection.json"), re.M)
    named = {key for cell in keys for key in re.findall(r"`(\w+)`", cell)}
    selection = schema_of(FILES["selection.schema.json"], title="selection")["$defs"]["Selection"]
    assert named == set(selection["properties"])


def test_links_lead_somewhere():
    anchors = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", TEXT, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif "://" not in target:
            assert (DOCUMENT.parent / target).exists(), target


@pytest.fixture
def signed(bundle_of, tmp_path):
    """A signed copy of a real bundle, with the public half of the key beside its content's lists."""
    folder = shutil.copytree(bundle_of("fp32").path, tmp_path / "bundle")
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "key.pem"], check=True)
    public = ["openssl", "pkey", "-in", tmp_path / "key.pem", "-pubout", "-out", tmp_path / "key.pub.pem"]
    subprocess.run(public, check=True)
    sign_bundle(folder, tmp_path / "key.pem")
    return folder


def run(text, folder):
    script = f"set -euo pipefail\n{text.replace('key.pub.pem', '../key.pub.pem')}"
    return subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("tool", ["sha256sum", "openssl"])
def test_the_commands_run_and_find_a_change(signed, tool):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    blocks = [match["text"] for match in BLOCK.finditer(TEXT) if tool in match["text"]]
    assert len(blocks) == 1
    done = run(blocks[0], signed)
    assert done.returncode == 0, done.stdout + done.stderr
    changed = signed / ("manifest.json" if tool == "sha256sum" else "SHA256SUMS")
    changed.write_text(changed.read_text() + "\n")
    assert run(blocks[0], signed).returncode != 0


def test_both_lists_together_name_every_file(signed):
    """As the page says it, without tsexport's own readers."""
    lists = {"SHA256SUMS": signed, "measurements/SHA256SUMS": signed / "measurements"}
    named = [
        (base / line[66:]).resolve()
        for name, base in lists.items()
        for line in (signed / name).read_text().splitlines()
    ]
    there = [path.resolve() for path in signed.rglob("*") if path.is_file()]
    assert len(set(named)) == len(named)
    assert set(there) - set(named) == {(signed / name).resolve() for name in (*lists, "SHA256SUMS.sig")}
    assert set(named) <= set(there)


def test_the_sha256_of_an_artifact_of_two_files_is_as_the_page_says(bundle_of):
    folder = bundle_of("fp32").path
    entries = json.loads((folder / "manifest.json").read_text())["artifacts"]
    (entry,) = (one for one in entries if len(one["files"]) > 1)
    lines = "".join(f"{one['sha256']}  {Path(one['path']).suffix}\n" for one in entry["files"])
    assert entry["sha256"] == hashlib.sha256(lines.encode()).hexdigest()
