"""report.html and the bundle's README.md.

The report shows what stands in the manifest and in `measurements/`, and nothing else: every number is one of theirs, or
a quantile, ratio or share of them.  It is one page without any reference to the network.  The README belongs to the
signed part of a bundle, so it holds no time and no latency.
"""

import base64
import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tsexport.bench.device_records import PREFIX, DeviceRecord, read_device_record
from tsexport.bench.records import MachineRecord, read_record
from tsexport.bundles.bundle import Bundle, open_bundle
from tsexport.bundles.checksums import MEASUREMENTS
from tsexport.bundles.manifest import Manifest, Selection
from tsexport.bundles.structure import check_structure
from tsexport.bundles.triton import served_models
from tsexport.codec import write_whole
from tsexport.device.kit import graph_of
from tsexport.errors import BundleError, MissingDependencyError, UsageError
from tsexport.reports.origins import origins_of
from tsexport.reports.overview import overview_of
from tsexport.reports.views import bundle_view
from tsexport.wording import change_text, compact_json, count_text, figure_text, markdown_cell, percent_text, size_text

TEMPLATES = Path(__file__).parent.parent / "templates"


def render_report(bundles: Sequence[Bundle]) -> str:
    """Return report.html for one bundle or several.

    Raises:
        BundleError: a manifest, a selection or a measurement cannot be read.
        MissingDependencyError: jinja2 is not installed.
    """
    views = [
        bundle_view(bundle, number, read_measurements(bundle), read_attached(bundle))
        for number, bundle in enumerate(bundles, start=1)
    ]
    style, script = (_text_of(name) for name in ("report.css", "report.js"))
    values = {
        "bundles": views,
        "overview": overview_of(views),
        "origins": [origins_of(view) for view in views],
        "style": style,
        "script": script,
        "policy": _policy(style, script),
    }
    return _render("report.html.j2", values, autoescape=True)


def report_bundles(bundles: Sequence[str | Path | Bundle], output: str | Path) -> Path:
    """Write the page about bundles (folders, archives or open ones) to a file, whole or not at all; return its path.

    Raises:
        BundleError: a bundle is damaged.
        UsageError: no bundle, or the file cannot be written.
        MissingDependencyError: jinja2 is not installed.
    """
    if not bundles:
        raise UsageError("no bundle is given; a report is about at least one")
    with contextlib.ExitStack() as stack:
        opened = [b if isinstance(b, Bundle) else stack.enter_context(open_bundle(b)) for b in bundles]
        for bundle in opened:
            check_structure(bundle)
        page = render_report(opened)
    path = Path(output)
    try:
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
        write_whole(path, page)
    except OSError as error:
        raise UsageError(f"the report {path} cannot be written: {error.strerror}") from error
    return path


def render_readme(manifest: Manifest, selection: Selection) -> str:
    """Return the bundle's README.md.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    values = {
        "manifest": manifest,
        "selection": selection,
        "kit": graph_of(manifest) is not None,
        "triton": bool(served_models(manifest, selection)),
    }
    return render_markdown("README.md.j2", values)


def render_markdown(template: str, values: Mapping[str, Any]) -> str:
    """Return a template of Markdown with its values.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    return _render(template, values, autoescape=False)


def read_measurements(bundle: Bundle) -> tuple[MachineRecord, ...]:
    """Return the record of every machine the bundle was measured on, by file name.

    Raises:
        BundleError: one of them cannot be read.
    """
    paths = sorted((bundle.path / MEASUREMENTS).glob("*.json"))
    records = tuple(read_record(path) for path in paths if not path.name.startswith(PREFIX))
    for record in records:
        for measurement in record.measurements:
            if not measurement.samples_ms or min(measurement.samples_ms) <= 0:
                raise BundleError(
                    f"{MEASUREMENTS}: {measurement.artifact} on {measurement.runtime} has no valid samples"
                )
    return records


def read_attached(bundle: Bundle) -> tuple[DeviceRecord, ...]:
    """Return the record of every attached run of the device kit, by file name.

    Raises:
        BundleError: one of them cannot be read.
    """
    return tuple(read_device_record(path) for path in sorted((bundle.path / MEASUREMENTS).glob(f"{PREFIX}*.json")))


def _text_of(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8").strip()


def _policy(style: str, script: str) -> str:
    """Return the page's security policy: its own style and script, known by their digests, and nothing else at all."""
    allowed = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{allowed[0]}'; script-src 'sha256-{allowed[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _render(template: str, values: Mapping[str, Any], *, autoescape: bool) -> str:
    try:
        import jinja2
    except ImportError:
        raise MissingDependencyError(
            "reports are made with jinja2, which is not installed", next_step='pip install "tsexport[report]"'
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "size": size_text,
        "percent": percent_text,
        "cell": markdown_cell,
        "compact": compact_json,
        "change": change_text,
        "count": count_text,
        "figure": figure_text,
        "literal": json.dumps,  # a string as it is written in Python
        "shape": repr,
    }
    return environment.get_template(template).render(values)
