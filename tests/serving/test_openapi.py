"""schemathesis on the server's own OpenAPI: whatever it sends, the answer is as documented and no 5xx."""

import pytest
from hypothesis import HealthCheck, settings

schemathesis = pytest.importorskip("schemathesis")

from schemathesis.checks import CHECKS  # noqa: E402

EXAMPLES = 60
# The schema cannot say which names and shapes the loaded models take, so that much of what fits it is refused.
LEFT_OUT = ("positive_data_acceptance",)


@pytest.fixture
def api(server):
    return schemathesis.openapi.from_url(server.url + "/openapi.json")


schema = schemathesis.pytest.from_fixture("api")


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_operation(case):
    case.call_and_validate(excluded_checks=[CHECKS.get_one(name) for name in LEFT_OUT])


@pytest.mark.slow
def test_nothing_of_it_was_a_bug(server):
    """Runs after the others of this file, on the same server."""
    assert not [line for line in server.log() if line["event"] == "bug" or line.get("status", 0) >= 500]
