"""The report carries no number that is not in a manifest or its `measurements/`.

Every number that a reader sees, in text and in plots, is traced: it stands in a JSON document of one of the bundles, as
it is or in another unit, or it is one of what the report says it derives: a percentile or mean of samples, a
throughput, a ratio of two sizes, a node's share of a profile, a kernel's of a projection, what it reads and writes
together, an error's share of its budget, a count of records.
"""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from tsexport.bundles.bundle import open_bundle
from tsexport.reports.writing import render_report

NUMBER = re.compile(r"(?<![\w.,/])(?<![A-Za-z_]-)-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?!(?!x\b)\w|[.,]\d|-[a-z])")
"""A number that is no part of a name: not of "cpu4-int8", "p90" or "1.31.1", but of "1.65x" and "1.64-1.65"."""
UNIT = re.compile(r"\s?(%|kB|MB|GB|MiB|GiB|[kMG]\b|[kMG]B\b)")
UNITS = {"%": 100, "kB": 1e-3, "MB": 1e-6, "GB": 1e-9, "k": 1e-3, "M": 1e-6, "G": 1e-9}
UNITS |= {"MiB": 2.0**-20, "GiB": 2.0**-30}
"""What a number of a document is multiplied with where the report writes it in a unit."""
OF_THE_PAGE = {"95", "5", "120", "512", "4", "1", "0.001", "600", "24,576"}
"""What the page's own sentences hold: the confidence of intervals, the whiskers' and the dots' legend, the size of the
product that a machine's speed is measured with, the bytes that a cache is taken to hold, batch 1 of headings, the
bound below which a percentage is not written out, and how long MLPerf Inference's own runs are."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
WRITTEN_DIGITS = 5e-4
"""A throughput is written with four digits, whatever its size."""


class Text(HTMLParser):
    """What a reader sees of a page, as text nodes; the marks of axes left out, which are of no record."""

    def __init__(self, page):
        super().__init__()
        self.found, self._open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br"):
            self._open.append((tag, dict(attributes).get("class")))

    def handle_endtag(self, tag):
        self._open.pop()

    def handle_data(self, data):
        tag, kind = self._open[-1] if self._open else ("", None)
        if tag not in ("style", "script", "code") and (tag, kind) != ("text", "tick"):
            self.found.append(data)


def numbers_in(text):
    return [number for number, _ in numbers_and_units(text)]


def numbers_and_units(text):
    """Return (number, unit) for each number of a text, the unit "" where there is none that matters here."""
    found = []
    for match in NUMBER.finditer(text):
        unit = UNIT.match(text, match.end())
        found.append((match.group(), unit[1] if unit else ""))
    return found


def value_of(number):
    return float(number.replace(",", ""))


def known_numbers(document):
    """Yield every number of a document, those in its texts, and what the report derives from its records."""
    if isinstance(document, dict):
        yield from derived(document)
        for key, value in document.items():
            if key not in ("samples_ms", "blocks_ms"):
                yield from known_numbers(value)
            yield from map(value_of, numbers_in(key))
    elif isinstance(document, list):
        yield len(document)
        for value in document:
            yield from known_numbers(value)
    elif isinstance(document, str):
        yield from map(value_of, numbers_in(document))
        yield from (float(part) for part in re.findall(r"\d+(?:\.\d+)?", document))
    elif isinstance(document, (int, float)) and not isinstance(document, bool):
        yield document


def derived(record):
    """Yield what the report derives from one record; computed here by other code than the report's."""
    if "samples_ms" in record:
        samples = np.sort(record["samples_ms"])
        yield from (samples[int(np.ceil(q * len(samples))) - 1] for q in QUANTILES)
        yield from (samples.mean(), float(np.median(samples)), len(samples))
        yield 1000 * record["batch"] * len(samples) / samples.sum()
        end = 1.05 * samples[int(np.ceil(0.99 * len(samples))) - 1]
        yield int((samples > end).sum())
    if record.get("kind") == "profiled" and record["operators"]:
        total = sum(one["mean_ms"] for one in record["operators"])
        yield from (one["mean_ms"] / total for one in (*record["operators"], *record["nodes"]))
        yield from (record["rest_ms"] / total, len(record["nodes"]))
    if "peak_bytes" in record:
        yield record["peak_bytes"] - record["idle_bytes"]
    if "half_bytes" in record:
        yield record["end_bytes"] - record["half_bytes"]
    if "artifacts" in record:
        sizes = [entry["size_bytes"] for entry in record["artifacts"]]
        yield from (size / other for size in sizes for other in sizes)
        budget = record["budget"]
        accuracies = [*record["accuracy"], *(one["accuracy"] for one in record["candidates"] if one["accuracy"])]
        yield from (one["degradation"] / budget["max_degradation"] for one in accuracies)
    for key in ("verdicts", "candidates"):
        statuses = [one["status"] for one in record.get(key, ()) if "status" in one]  # rewrites have none
        yield from (statuses.count(status) for status in set(statuses))
    if "verdicts" in record:
        unjudged = ("not measured", "not possible")
        yield sum(one.get("status") in unjudged for one in record["verdicts"])
    if "projections" in record:
        for one in record["projections"]:
            parts = [one[key] for key in ("launch_ms", "memory_ms", "compute_ms")]
            yield from (part / one["total_ms"] for part in parts)
            for kernel in one["kernels"]:
                yield from (kernel["ms"] / one["total_ms"], kernel["bytes_read"] + kernel["bytes_written"])
                yield sum(kernel["macs"].values())


def records_with(document, key):
    """Yield every record within a document that has a key."""
    if isinstance(document, dict):
        if key in document:
            yield document
        document = list(document.values())
    if isinstance(document, list):
        for value in document:
            yield from records_with(value, key)


def rooflines(documents):
    """Yield what the report says of why an artifact is not faster, by the formulas of `tsexport.reports.explaining`."""
    works, balances, medians = (
        [record for document in documents for record in records_with(document, key)]
        for key in ("conversions", "fp32_gmacs_per_s", "median_ms")
    )
    for work in works:
        macs, integers = work["macs"], work["int8_macs"] + work["unknown_macs"]
        moved = work["weight_bytes"] + work["activation_bytes"]
        yield from (moved, macs / moved, work["int8_macs"] / max(macs, 1), integers / max(macs, 1))
        for balance in balances:
            products = (macs - integers) / balance["fp32_gmacs_per_s"] + integers / balance["int8_gmacs_per_s"]
            copied = balance["cached_copy_gb_per_s" if moved < 4e6 else "copy_gb_per_s"]
            least_ms = max(products, moved / copied) / 1e6
            yield from (least_ms, macs / products / copied if products else balance["fp32_gmacs_per_s"] / copied)
            yield from (median["median_ms"] / least_ms for median in medians)


def is_known(number, unit, known):
    """Return whether a number as written is the rounding of a known one, as it is or in the unit that follows."""
    value = abs(value_of(number))
    mantissa, _, exponent = number.lower().partition("e")
    decimals = len(mantissa.partition(".")[2])
    half = 0.501 * 10.0 ** (int(exponent or 0) - decimals)
    if "," in number:
        half = max(half, WRITTEN_DIGITS * value)
    factors = np.array([1.0, UNITS.get(unit, 1.0)])
    return bool(np.any(np.abs(known[:, None] * factors - value) <= half))


def documents_of(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("*.json")) if "golden" not in path.parts]


def untraced(page, folders):
    """Return the numbers that a reader of a page sees and that none of the bundles has."""
    documents = [document for folder in folders for document in documents_of(folder)]
    numbers = [float(number) for document in documents for number in known_numbers(document)]
    known = np.abs(np.array([*numbers, *rooflines(documents), len(folders)]))
    seen = {(number.lstrip("+-"), unit) for text in Text(page).found for number, unit in numbers_and_units(text)}
    assert len(seen) > 25
    return sorted(number for number, unit in seen if number not in OF_THE_PAGE and not is_known(number, unit, known))


@pytest.fixture
def page_of():
    return lambda *folders: render_report([open_bundle(folder) for folder in folders])


def test_numbers_of_one_bundle(full_folder, page_of):
    assert untraced(page_of(full_folder), [full_folder]) == []


def test_numbers_of_many_bundles(many_folders, page_of):
    assert untraced(page_of(*many_folders), many_folders) == []


def test_numbers_of_a_bundle_that_nothing_was_measured_of(many_folders, page_of):
    assert untraced(page_of(many_folders[1]), [many_folders[1]]) == []


def test_numbers_of_what_bounds_an_artifact(full_folder, page_of):
    work = {
        **{"macs": 611_000_000, "int8_macs": 307_000_000, "unknown_macs": 0, "unknown": ""},
        **{"operators": 43, "conversions": 7, "weight_bytes": 31_700_000, "activation_bytes": 10_300_000},
    }
    cached = {"int8_macs": 0, "weight_bytes": 870_000, "activation_bytes": 91_000}
    path = full_folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["coverage"] = work
    manifest["candidates"][0]["coverage"] = work
    manifest["candidates"][1]["coverage"] = work | cached
    path.write_text(json.dumps(manifest))
    (path,) = (full_folder / "measurements").glob("*.json")
    record = json.loads(path.read_text())
    record["balance"] = {"threads": 2, "fp32_gmacs_per_s": 97.3, "int8_gmacs_per_s": 311.7, "copy_gb_per_s": 19.7,
                         "cached_copy_gb_per_s": 83.1}  # fmt: skip
    path.write_text(json.dumps(record))
    page = page_of(full_folder)
    assert "Why not faster" in page
    assert untraced(page, [full_folder]) == []


@pytest.mark.parametrize("number", ["0.31415 ms", "1,234,567/s", "17.77 %", "271 MB", "2.7183x", "83.19 MiB"])
def test_a_number_of_another_place_is_found(full_folder, page_of, number):
    """The test above can fail: this number stands nowhere."""
    page = page_of(full_folder).replace("</main>", f"<p>It takes {number} elsewhere.</p></main>")
    (found,) = untraced(page, [full_folder])
    assert number.startswith(found)


def test_a_measurement_that_is_no_longer_there_is_found(full_folder, page_of):
    """Numbers are traced to the documents, not to what they were when the page was made."""
    page = page_of(full_folder)
    path = next((full_folder / "measurements").glob("*.json"))
    document = json.loads(path.read_text())
    for measurement in document["measurements"]:
        measurement["samples_ms"] = [value * 1.37 for value in measurement["samples_ms"]]
    path.write_text(json.dumps(document))
    assert len(untraced(page, [full_folder])) > 5


@pytest.mark.parametrize("folder", ["scenarios", "profiles"])
def test_a_record_that_is_no_longer_there_is_found(full_folder, page_of, folder):
    page = page_of(full_folder)
    shutil.rmtree(full_folder / "measurements" / folder)
    assert len(untraced(page, [full_folder])) > 5
