"""The HTTP interface's own description: an OpenAPI 3.1 document made from the records that the server speaks."""

import importlib.metadata
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from service.withdrawal import Answer, Withdrawal

JSON, PROBLEM, TEXT = "application/json", "application/problem+json", "text/plain"
TITLE = "Falconet"


class Problem(Struct, frozen=True):
    """Why a request was not answered as asked, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str


class Live(Struct, frozen=True):
    """The process answers."""

    status: str


class Ready(Struct, frozen=True):
    """Whether transactions are being scored, and if not, why."""

    is_ready: bool
    reasons: Annotated[list[str], Meta(description="Empty where it is ready.")]


class ModelFacts(Struct, frozen=True):
    """The model in use."""

    name: str
    version: str
    digest: str
    n_bytes: int


class Info(Struct, frozen=True):
    """What runs here."""

    version: str
    schema: Annotated[str, Meta(description="Fingerprint of the feature schema.")]
    model: ModelFacts | None
    settings: Annotated[dict[str, Any], Meta(description="The effective settings, secrets masked.")]


_RECORDS = (Withdrawal, Answer, Problem, Live, Ready, Info)

_PROBLEMS = {
    "400": "The request is no JSON.",
    "401": "The token is missing or wrong.",
    "403": "No token is configured, so nobody may ask.",
    "408": "The body did not arrive in time.",
    "413": "The request is too large.",
    "415": "The request does not say that it is JSON.",
    "422": "The request is JSON, but no withdrawal.",
    "429": "More requests came than are answered a second.",
    "503": "No transactions are being scored here.",
}


def document() -> dict[str, Any]:
    """Return the document in plain JSON types."""
    schemas, components = msgspec.json.schema_components(_RECORDS, ref_template="#/components/schemas/{name}")
    refs: dict[Any, Any] = dict(zip(_RECORDS, schemas, strict=True))

    def content(record: type, kind: str = JSON) -> dict[str, Any]:
        return {kind: {"schema": refs[record]}}

    def problems(*codes: str) -> dict[str, Any]:
        return {code: {"description": _PROBLEMS[code], "content": content(Problem, PROBLEM)} for code in codes}

    def get(name: str, summary: str, record: type, **more: Any) -> dict[str, Any]:
        ok = {"200": {"description": "As asked.", "content": content(record)}}
        return {"get": {"operationId": name, "summary": summary, "responses": ok | more.pop("answers", {}), **more}}

    locked: list[dict[str, list[str]]] = [{"token": []}]
    metrics = {"content": {TEXT: {"schema": {"type": "string"}}}, "description": "Prometheus's text format."}
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": importlib.metadata.version("falconet")},
        "paths": {
            "/live": get("live", "Whether the process answers.", Live),
            "/ready": get(
                "ready",
                "Whether transactions are being scored.",
                Ready,
                answers={"503": {"description": "They are not, and why.", "content": content(Ready)}},
            ),
            "/metrics": {
                "get": {"operationId": "metrics", "summary": "What Prometheus scrapes.", "responses": {"200": metrics}}
            },
            "/info": get("info", "What runs here.", Info, answers=problems("401", "403"), security=locked),
            "/v1/score": {
                "post": {
                    "operationId": "score",
                    "summary": "Check a withdrawal before it is signed; it does not become part of the past.",
                    "security": locked,
                    "requestBody": {"required": True, "content": content(Withdrawal)},
                    "responses": {
                        "200": {"description": "What would be decided.", "content": content(Answer)},
                        **problems(*_PROBLEMS),
                    },
                }
            },
        },
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
