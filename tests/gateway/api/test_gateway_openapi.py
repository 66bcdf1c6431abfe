"""Generated requests, good and bad, against what the gateway's own OpenAPI document promises."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, given, settings
from running_gateway import StartGateway
from schemathesis import Case
from schemathesis.specs.openapi.checks import positive_data_acceptance

EXAMPLES = 30
BEYOND_SCHEMAS = [positive_data_acceptance]
"""No schema can say that a file must be a picture."""


def test_every_answer_is_a_documented_one(start_gateway: StartGateway) -> None:
    gateway = start_gateway(requests_per_minute=1_000_000, credits_per_picture=0)
    document = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    checked = []
    for found in document.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy())
        @settings(max_examples=EXAMPLES, derandomize=True, suppress_health_check=list(HealthCheck))
        def check(case: Case) -> None:
            # Schemathesis sees to it that no answer is a 5xx, or of a status, type or shape that is not documented.
            headers = {"x-api-key": gateway.key}
            case.call_and_validate(gateway.url, headers=headers, excluded_checks=BEYOND_SCHEMAS, timeout=60)

        check()
        checked.append(operation.label)
    assert len(checked) > 10
