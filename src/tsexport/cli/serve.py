"""`tsexport serve`: bundles over HTTP, until a signal ends it."""

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tsexport.cli.output import echo, print_json, print_table, verbosity
from tsexport.errors import UsageError

if TYPE_CHECKING:
    from tsexport.serving.server import Listening

_FILE = click.Path(path_type=Path, dir_okay=False)
_MIB = 2**20


@click.command("serve", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0 for all.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="The port; 0 takes a free one."
)
@click.option("--precision", help="Serve the fastest artifact of this precision, not the selected one.")
@click.option("--runtime", help="Serve the fastest artifact on this runtime, not the selected one.")
@click.option("--threads", type=int, help="Of one inference; by default as many as the artifact was measured with.")
@click.option("--check", is_flag=True, help="Hold golden outputs against the golden ones first, as verify does.")
@click.option("--key", type=_FILE, help="The Ed25519 public key, a PEM file, that each BUNDLE must be signed by.")
@click.option("--max-batch", default=32, show_default=True, help="Rows computed together, and rows of one request.")
@click.option(
    "--max-queue", default=64, show_default=True, help="Requests that wait for a model; more are answered 429."
)
@click.option(
    "--batch-delay-ms", default=0.0, show_default=True, help="How long a request waits for others to join it."
)
@click.option("--timeout", default=30.0, show_default=True, help="Seconds until a request is answered 408.")
@click.option("--max-request-mib", default=16.0, show_default=True, help="Size of a request's body; more is 413.")
@click.option("--max-json-mib", default=4.0, show_default=True, help="Size of its JSON; tensors may follow as bytes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout once requests are taken.")
def serve(
    bundles: tuple[Path, ...],
    host: str,
    port: int,
    precision: str | None,
    runtime: str | None,
    threads: int | None,
    check: bool,
    key: Path | None,
    max_batch: int,
    max_queue: int,
    batch_delay_ms: float,
    timeout: float,
    max_request_mib: float,
    max_json_mib: float,
    as_json: bool,
) -> None:
    """Serve each BUNDLE over HTTP: Open Inference Protocol (KServe V2), /predict, /health and /metrics.

    Every file is held against its SHA-256 first; with --key the list of them must be signed by that key.  A model's
    name is its bundle's folder name.  The log is JSON lines on stderr: with --quiet warnings only.  SIGTERM or Ctrl-C
    finishes what is in flight, within 10 s.

    \b
    Exit codes: 0 ended by a signal, 2 a bundle that is damaged or not signed by the key, a missing runtime or a port
    that is taken, 3 golden outputs missed.
    """
    from tsexport.extras import require

    require("serve", "tsexport serve")
    from tsexport.serving.limits import Limits
    from tsexport.serving.served import Choice
    from tsexport.serving.server import serve_bundles

    limits = Limits(
        max_batch=max_batch,
        max_queue=max_queue,
        batch_delay_ms=batch_delay_ms,
        timeout_s=timeout,
        max_request_bytes=_bytes_of("--max-request-mib", max_request_mib),
        max_json_bytes=_bytes_of("--max-json-mib", max_json_mib),
    )
    flags = verbosity()
    serve_bundles(
        bundles,
        host=host,
        port=port,
        choice=Choice(precision, runtime, threads, check, key),
        limits=limits,
        announce=_show_json if as_json else _show,
        log_level=logging.WARNING if flags.quiet else logging.DEBUG if flags.verbose else logging.INFO,
    )


def _bytes_of(option: str, mib: float) -> int:
    if not (math.isfinite(mib) and mib * _MIB >= 1):
        raise UsageError(f"{option} is {mib:g}; allowed are sizes above 0, for example 16")
    return int(mib * _MIB)


def _show_json(listening: "Listening") -> None:
    from tsexport.codec import to_plain

    print_json({"url": listening.url, "models": [to_plain(model) for model in listening.models]})


def _show(listening: "Listening") -> None:
    print_table(
        ("model", "artifact", "runtime", "precision", "threads", "requests", "inputs", "outputs"),
        [
            (
                model.name,
                model.artifact,
                model.runtime,
                model.precision,
                str(model.threads),
                "batched" if model.batched else "one at a time",
                ", ".join(map(str, model.inputs)),
                ", ".join(map(str, model.outputs)),
            )
            for model in listening.models
        ],
    )
    echo(f"serving on {listening.url}; Ctrl-C ends it")  # on stdout: stderr has nothing but JSON lines
