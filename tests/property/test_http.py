"""The HTTP server keeps what its own OpenAPI document promises, whatever is sent."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from service import openapi
from tests import sites
from tests.sites import TOKEN

with warnings.catch_warnings():
    # Of its own dependencies.
    warnings.simplefilter("ignore")
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        negative_data_rejection,
        response_schema_conformance,
        status_code_conformance,
    )

SCHEMA: Any = schemathesis.openapi.from_dict(openapi.document())

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]

SEEN: set[int] = set()
"""Status of each answered check."""


@pytest.fixture(scope="module")
def url(small_model: Path) -> Iterator[str]:
    with sites.site(sites.pipeline(small_model, review=0.0), http_requests_max=100_000.0) as address:
        yield address


@SCHEMA.parametrize()
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_described(case: Any, url: str) -> None:
    """Drawn requests, sound and unsound ones, get a described status, content and body, and never a 5xx."""
    response = case.call(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"})

    if case.path == "/v1/score":
        SEEN.add(response.status_code)
    case.validate_response(response, checks=CHECKS)


def test_sound_and_unsound_requests_were_drawn() -> None:
    """The test above has seen checks that were answered and checks that were refused."""
    if not SEEN:
        pytest.skip("the test above did not run")

    assert {200, 401, 422} <= SEEN
