"""What Jenkins' xUnit plug-in takes (junit-10.xsd): elements, their order, attributes and the kinds of values."""

import re
from xml.etree import ElementTree

NUMBER, TIME = r"\d+", r"\d+(\.\d+)?"
TEXT = r"(?s).*"
ATTRIBUTES = {
    "testsuites": {
        "name": TEXT, "time": TIME, "tests": NUMBER, "failures": NUMBER, "disabled": NUMBER, "errors": NUMBER,
    },
    "testsuite": {
        "name": TEXT, "tests": NUMBER, "failures": NUMBER, "errors": NUMBER, "group": TEXT, "time": TIME,
        "skipped": NUMBER, "timestamp": TEXT, "hostname": TEXT, "id": TEXT, "package": TEXT, "file": TEXT, "log": TEXT,
        "url": TEXT, "version": TEXT,
    },
    "testcase": {
        "name": TEXT, "time": TIME, "classname": TEXT, "group": TEXT, "assertions": NUMBER, "status": TEXT,
        "class": TEXT, "file": TEXT, "line": TEXT, "log": TEXT, "url": TEXT,
    },
    "failure": {"type": TEXT, "message": TEXT},
    "skipped": {"type": TEXT, "message": TEXT},
    "system-out": {},
}  # fmt: skip
REQUIRED = {"testsuite": {"name", "tests", "failures", "errors"}, "testcase": {"name", "classname"}}
CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"testcase"},
    "testcase": {"failure", "skipped", "system-out"},
}


def parse(text):
    """Return the root of JUnit XML, having checked every element against the schema and every count."""
    root = ElementTree.fromstring(text.encode())
    assert root.tag == "testsuites"
    for element in root.iter():
        allowed = ATTRIBUTES[element.tag]
        assert set(element.attrib) >= REQUIRED.get(element.tag, set())
        for name, value in element.attrib.items():
            assert re.fullmatch(allowed[name], value), (element.tag, name, value)
        assert {child.tag for child in element} <= CHILDREN.get(element.tag, set())
    for suite in root:
        cases = list(suite)
        assert int(suite.get("tests")) == len(cases)
        assert int(suite.get("failures")) == sum(case.find("failure") is not None for case in cases)
        assert int(suite.get("skipped")) == sum(case.find("skipped") is not None for case in cases)
        assert all(len(case) <= 1 for case in cases)
    return root
