"""report.html and the bundle's README.md.

The report shows what stands in the manifest and in `measurements/`, and nothing else: every number is one of theirs, or
a quantile, ratio or share of them.  It is one page without any reference to the network.  The README belongs to the
signed part of a bundle, so it holds no time and no latency.
"""

import base64
import contextlib
import errno
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from tsexport.bundles.bundle import Bundle, open_bundle
from tsexport.bundles.engines import graph_of
from tsexport.bundles.manifest import Manifest, Selection
from tsexport.bundles.measured import read_attached, read_measurements
from tsexport.bundles.structure import check_structure
from tsexport.bundles.triton import served_models
from tsexport.codec import write_whole
from tsexport.errors import UsageError
from tsexport.rendering import render_html, render_markdown, template_text
from tsexport.reports.origins import origins_of
from tsexport.reports.overview import overview_of
from tsexport.reports.views import bundle_view


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
    style, script = (template_text(name).strip() for name in ("report.css", "report.js"))
    values = {
        "bundles": views,
        "overview": overview_of(views),
        "origins": [origins_of(view) for view in views],
        "style": style,
        "script": script,
        "policy": _policy(style, script),
    }
    return render_html("report.html.j2", values)


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


def _policy(style: str, script: str) -> str:
    """Return the page's security policy: its own style and script, known by their digests, and nothing else at all."""
    allowed = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{allowed[0]}'; script-src 'sha256-{allowed[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
