"""What an operator may change of the check before signing: the part of the settings that only the HTTP server uses."""

from typing import Annotated

from msgspec import Meta

from service.node_settings import NodeSettings


class HttpSettings(NodeSettings, frozen=True, kw_only=True):
    """See `service.settings.Settings`, which has these as well."""

    http_token: Annotated[
        Annotated[str, Meta(min_length=16, max_length=4096)] | None,
        Meta(
            description="Bearer token of `/v1/score` and `/info`, which answer nobody without one; never shown.",
            extra={"secret": True, "range": "16 to 4096 characters"},
        ),
    ] = None
    http_token_file: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(description="File that holds the token; its last newline is dropped.", extra={"range": "a path"}),
    ] = None
    http_requests_max: Annotated[
        float, Meta(ge=1, le=100_000, description="Checks before signing answered a second, in bursts of a second's.")
    ] = 1000.0
