"""docs/serving.md: its endpoints, limits, statuses and metrics are those of the server."""

import json
import re
import urllib.request
from pathlib import Path

import pytest

from tsexport import cli
from tsexport.serving.limits import MAX_HELD_BYTES, MIB, Limits
from tsexport.serving.metrics import Metrics

TEXT = (Path(__file__).resolve().parents[2] / "docs/serving.md").read_text(encoding="utf-8")
NOT_IN_OPENAPI = {("get", "/metrics"), ("get", "/openapi.json")}


def rows(pattern):
    """Return what a pattern finds at the beginning of the rows of the tables."""
    return [found.groups() for found in re.finditer(rf"^\| *{pattern}", TEXT, re.M)]


def endpoints():
    """Yield (method, path) of every endpoint that the page names, with its optional part and without."""
    for (cell,) in rows(r"(`(?:GET|POST) [^|]*?) *\|"):
        for method, path in re.findall(r"`(GET|POST) ([^`]+)`", cell):
            whole = path.replace("NAME", "{model}").replace("versions/1", "versions/{version}")
            optional = re.search(r"\[(.*)\]", whole)
            yield method.lower(), whole.replace(optional[0], "") if optional else whole
            if optional:
                yield method.lower(), whole.replace(optional[0], optional[1])


def openapi_of(server):
    return json.loads(urllib.request.urlopen(server.url + "/openapi.json").read())


def test_it_names_every_endpoint_and_no_other(server):
    document = openapi_of(server)
    there = {(method, path) for path, operations in document["paths"].items() for method in operations}
    assert set(endpoints()) == there | NOT_IN_OPENAPI
    for _, path in NOT_IN_OPENAPI:
        assert urllib.request.urlopen(server.url + path).status == 200


def test_its_limits_are_the_commands():
    given = {option: float(value.split()[0]) for option, value in rows(r"`(--[\w-]+)` \| ([\d.]+(?: s)?) \|")}
    command = cli.main.get_command(None, "serve")
    defaults = {parameter.opts[-1]: parameter.default for parameter in command.params}
    limits = [option for option in defaults if option.startswith(("--max-", "--batch-delay", "--timeout"))]
    assert given == {option: defaults[option] for option in limits}
    assert Limits().max_request_bytes == given["--max-request-mib"] * MIB
    assert f"hold at most {MAX_HELD_BYTES // MIB} MiB" in TEXT


def test_its_statuses_are_those_of_the_refusals(server):
    named = {status for (cell,) in rows(r"(\d{3}(?:, \d{3})*) *\|") for status in cell.split(", ")}
    told = {
        status
        for operations in openapi_of(server)["paths"].values()
        for operation in operations.values()
        for status in operation["responses"]
    }
    assert named == (told - {"200"}) | {"405"}  # of another method OpenAPI has no word


def test_it_names_every_metric():
    text = Metrics().text().decode()
    families = set(re.findall(r"^# TYPE (tsexport_\w+) (?:counter|gauge|histogram)$", text, re.M))
    made = {name for name in families if not name.endswith("_created")}
    named = {name for (cell,) in rows(r"(`tsexport_[^|]*?) *\|") for name in re.findall(r"`(tsexport_\w+)", cell)}
    assert named == made


@pytest.mark.parametrize("word", ["ready", "request", "shutting down", "closed"])
def test_it_names_every_event_of_the_log(word):
    assert f"`{word}`" in TEXT
