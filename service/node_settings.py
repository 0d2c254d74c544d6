"""What an operator may change of reading a chain: the part of the settings that only `ingest` uses."""

from typing import Annotated

from msgspec import Meta, Struct


class NodeSettings(Struct, frozen=True, kw_only=True):
    """See `service.settings.Settings`, which has these as well."""

    rpc_urls: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^(https?|wss?)://[^\s,]+\Z")], ...],
        Meta(
            description="Nodes that `ingest` asks, the first one first; WebSocket ones tell it of heads. Never shown.",
            extra={"secret": True, "range": "a list of http, https, ws and wss URLs"},
        ),
    ] = ()
    rpc_retry_seconds: Annotated[
        float, Meta(ge=0, le=86_400, description="Longest that `ingest` goes on without a usable answer of any node.")
    ] = 60.0
    rpc_poll_seconds: Annotated[
        float, Meta(gt=0, le=600, description="How often `ingest` looks for a head that it was not told of.")
    ] = 1.0
    rpc_concurrency: Annotated[
        int, Meta(ge=1, le=64, description="Most blocks that `ingest` asks for at once while it catches up.")
    ] = 4
    start_block: Annotated[
        str,
        Meta(
            pattern=r"^(latest|checkpoint|[0-9]{1,18})\Z",
            extra={"range": "latest, checkpoint, or a block's number"},
            description="Where `ingest` begins where there is no checkpoint; `checkpoint` insists on one.",
        ),
    ] = "latest"
    finality: Annotated[
        str,
        Meta(
            pattern=r"^(instant|safe|finalized|[0-9]{1,6})\Z",
            extra={"range": "instant, safe, finalized, or a number of confirmations"},
            description="Which blocks `ingest` publishes: instant ones are corrected when the chain reorganises.",
        ),
    ] = "instant"
    reorg_depth_max: Annotated[
        int,
        Meta(
            ge=0,
            le=1024,
            description="Most blocks that a reorganisation may take back, in `ingest` and in `serve`, whose journal "
            "takes 0.5 MB a block; a deeper one is an alarm. 0 keeps no journal.",
        ),
    ] = 64
