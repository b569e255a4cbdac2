"""The report and the README: self-contained, escaped, and without a number that stands nowhere."""

import base64
import hashlib
import itertools
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from tsexport.bench.records import read_record
from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import check_sums
from tsexport.errors import BundleError, MissingDependencyError, UsageError
from tsexport.reports.writing import render_readme, render_report, report_bundles
from tsexport.wording import compact_json, count_text, markdown_cell, percent_text, size_text


class Page(HTMLParser):
    """What a page refers to, its tags, its text, and the rows of its tables."""

    VOID = ("meta", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.tags, self.text, self.rows = [], [], [], [], []
        self.policy = ""
        self.feed(text)
        self.close()
        assert self.open == [], "unclosed tags"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        given = dict(attributes)
        self.references += [given[name] for name in ("src", "href", "srcset", "data", "action") if name in given]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        assert not any(name == "style" or name.startswith("on") for name in given), "the policy refuses these"
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        self.text.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


@pytest.fixture
def page(measured_folder):
    return Page((measured_folder / "report.html").read_text())


def test_the_bundle_is_whole(measured_folder):
    check_sums(measured_folder)
    assert open_bundle(measured_folder).verify().passed


def test_self_contained_and_small(measured_folder, page):
    assert all(reference.startswith("#bundle-1-") for reference in page.references)
    assert not {"link", "img", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    text = (measured_folder / "report.html").read_text()
    assert "url(" not in text
    assert "@import" not in text
    assert "://" not in text
    assert len(text) < 200_000


def test_nothing_but_the_page_s_own_style_and_script_is_allowed(measured_folder, page):
    """The policy names them by digest, so that what a bundle's text might smuggle in could not run."""
    text = (measured_folder / "report.html").read_text()
    assert page.policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        (found,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(found.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in page.policy
        assert page.tags.count(tag) == 1


def test_every_table_has_a_name_and_every_plot_says_what_it_is(measured_folder, page):
    text = (measured_folder / "report.html").read_text()
    assert page.tags.count("table") == page.tags.count("caption") > 5
    assert (
        text.count('<svg class="plot"')
        == len(re.findall(r'<svg class="plot"[^>]* role="img" aria-label="[^"]+">', text))
        > 1
    )
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), "a level was left out"
    anchors = re.findall(r' id="([^"]+)"', text)
    assert len(set(anchors)) == len(anchors)
    assert {reference[1:] for reference in page.references} <= set(anchors)


def test_says_what_a_reader_needs(page):
    text = " ".join(page.text)
    for expected in (
        "tiny-cpu4-int8", "fastest candidate within the accuracy budget", "Example CPU", "2 usable of 4 logical cores",
        "mse 8 % worse, allowed 5 %", "nncf raised: no such operator", "int8 answers depend on the rest of the batch",
        "a caveat of the model", "the reference checkpoint was used", "fuse-qkv", "no: slower on onnxruntime",
        "No openvino: not asked for",
        "onnxruntime: 1.31.1",
        "by regime: level 1 of 2: 40, level 2 of 2: 24",
        "x float32[batch, 4]", "1 published budget that nothing here can judge",
    ):  # fmt: skip
        assert expected in text, expected


def row(page, name, cell):
    """Return the one row whose first cell holds `name` and that has the cell `cell`."""
    (found,) = (cells for cells in page.rows if cells and name in cells[0] and cell in cells)
    return found


def test_numbers_are_those_of_the_measurements(page, measured_folder):
    record = read_record(next((measured_folder / "measurements").glob("*.json")))
    samples = np.array(record.measurements[0].samples_ms)
    (found,) = (cells for cells in page.rows if cells[:3] == ["fp32-onnx", "onnxruntime", "1"])
    for quantile, shown in ((0.5, found[3]), (0.9, found[4]), (0.99, found[5])):
        assert shown == f"{np.quantile(samples, quantile, method='inverted_cdf'):.3g} ms"
    assert found[10:] == ["fp32", "2", "700"]


def test_verdicts_say_how_they_were_obtained(page):
    met = row(page, "Example Plan", "cpu4")
    assert met[6:8] == ["measured", "pass"]
    assert "2 threads, batch 1, 700 samples, on 2 cores (Example CPU, avx2)" in met[8]
    other = row(page, "Example Plan", "orin-nano")
    assert other[5:8] == ["n/a", "not measured", "not measured"]
    assert "an old figure" in other[8]


def test_candidates_have_their_race(page):
    selected = row(page, "ort-dynamic-u8", "selected fastest")
    assert re.fullmatch(r"0\.\d+ ms", selected[2])
    assert re.fullmatch(r"1\.\d+x \(1\.\d+-\d\.\d+\)", selected[3])
    failed = row(page, "nncf", "failed nncf raised: no such operator")
    assert failed[2:7] == ["not measured", "not measured", "n/a", "n/a", "n/a"]


def test_not_measured_is_said(bundle):
    text = " ".join(Page(render_report([bundle])).text)
    assert "not measured" in text
    assert "No latency was measured" in text


def test_no_number_of_another_place(bundle):
    """Every number of two digits or more on an unmeasured page stands in the manifest, as it is or rounded.

    The page's own are "95 %", the confidence in a heading, and "0.001 %", the bound of what is shown.
    """
    page = Page(render_report([bundle]))
    known = {
        abs(float(n)) for n in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", (bundle.path / "manifest.json").read_text())
    }
    known |= {95.0, 0.001}
    known |= {100 * value for value in known} | {value / 1000 for value in known}
    visible = re.sub(r"\s+", " ", " ".join(text for text in page.text if "{" not in text))
    for number in re.findall(r"(?<![\w.-])\d+\.?\d+(?:e-\d+)?(?![\w.])", visible):
        value = float(number)
        assert any(abs(value - other) <= 0.006 * max(other, 1e-12) for other in known), number


def test_several_bundles(measured_folder, torchscript_bundle):
    text = render_report([open_bundle(measured_folder), open_bundle(torchscript_bundle)])
    assert text.count("<article ") == 2
    assert "fp32-torchscript" in text


def test_text_is_escaped(bundle_folder):
    path = bundle_folder / "manifest.json"
    evil = "</style><script>alert(1)</script>"
    text = path.read_text()
    for plain in (
        "a caveat of the model",
        "nncf raised: no such operator",
        "4-core CPU without a GPU, int8",
        "int8-onnx",
        "onnx.parser",
    ):
        assert plain in text
        text = text.replace(json.dumps(plain), json.dumps(plain + evil))
    path.write_text(text)
    selection = bundle_folder / "selection.json"
    selection.write_text(selection.read_text().replace('"int8-onnx"', json.dumps("int8-onnx" + evil)))
    page = Page(render_report([open_bundle(bundle_folder)]))
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert sum(evil in text for text in page.text) >= 5


def test_measurements_that_cannot_be_shown(measured_folder):
    path = next((measured_folder / "measurements").glob("*.json"))
    document = json.loads(path.read_text())
    document["measurements"][0]["samples_ms"] = []
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match="fp32-onnx on onnxruntime has no valid samples"):
        render_report([open_bundle(measured_folder)])
    path.write_text("{}")
    with pytest.raises(BundleError, match="schema_version"):
        render_report([open_bundle(measured_folder)])


def test_a_page_that_cannot_be_written(bundle, tmp_path):
    with pytest.raises(UsageError, match=r"report\.html cannot be written: No such file or directory"):
        report_bundles([bundle], tmp_path / "nowhere" / "report.html")


def test_a_page_about_nothing(tmp_path):
    with pytest.raises(UsageError, match="no bundle is given"):
        report_bundles([], tmp_path / "report.html")


def test_without_jinja2(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(
        MissingDependencyError, match="writing a report or a README needs jinja2, not installed here"
    ) as caught:
        render_report([bundle])
    assert 'pip install "tsexport[report]"' in str(caught.value)


def test_readme_holds_no_latency_and_its_code_runs(measured_folder):
    text = (measured_folder / "README.md").read_text()
    assert not re.search(r"\d ?ms\b", text)
    assert "Selected: **int8-onnx** on onnxruntime: fastest candidate within the accuracy budget." in text
    for expected in (
        "| input | `x` | float32 | batch, 4 |",
        "- int8 answers depend on the rest of the batch",
        "Not in it: openvino",
    ):
        assert expected in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    # tsexport.load is this function under its public name.
    code = code.replace("import tsexport\n", "from tsexport.bundles.loading import load_session\n")
    code = code.replace("tsexport.load(", "load_session(")
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=measured_folder.parent, capture_output=True, text=True, check=True
    )
    assert out.stdout == "(1, 3)\n"


def test_readme_is_deterministic(measured_folder):
    """It depends on the manifest and the selection alone."""
    bundle = open_bundle(measured_folder)
    assert render_readme(bundle.manifest, bundle.selection) == (measured_folder / "README.md").read_text()


def test_texts():
    assert [size_text(n) for n in (5, 1500, 2_340_000, 3 * 10**9)] == ["5 B", "1.5 kB", "2.34 MB", "3 GB"]
    assert [percent_text(value) for value in (None, 0.0, 1e-7, -0.008)] == ["n/a", "0 %", "< 0.001 %", "-0.8 %"]
    assert [count_text(n, "process", "processes") for n in (0, 1, 2)] == ["0 processes", "1 process", "2 processes"]
    assert count_text("1", "layer") == "1 layer"
    assert compact_json({"a": (1, True, None), "b": {"c": "d"}}) == "a: [1, true, null], b: c: d"
    assert markdown_cell("a|b\\\nc") == "a\\|b\\\\ c"


def luminance(colour):
    """WCAG 2's relative luminance of "#rrggbb"."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_every_colour_of_text_can_be_read(measured_folder, scheme):
    """4.5 to 1 is what WCAG 2 asks of text, level AA."""
    style = re.search("<style>(.*?)</style>", (measured_folder / "report.html").read_text(), re.DOTALL)[1]
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(blocks) == 3
    block = blocks[("light", "dark", "print").index(scheme)]
    colours = dict(re.findall(r"--([\w-]+): (#\w{3,6})\b", block))
    colours = {name: c if len(c) == 7 else "#" + "".join(2 * part for part in c[1:]) for name, c in colours.items()}
    for ground in ("page", "card", "accent-soft"):
        for ink in ("ink", "soft", "accent", "good", "bad", "warn"):
            light, dark = sorted((luminance(colours[ground]), luminance(colours[ink])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{ink} on {ground}"
