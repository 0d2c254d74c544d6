"""Every setting of the service in one frozen record, read once from a TOML file, the environment and the command line.

Later sources win: default, file, `FALCONET_*` environment, command line. A name that no setting has is refused wherever
it stands, so that a misspelt limit never runs as its default.
"""

import difflib
import math
import os
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from features.errors import UsageError
from service import setting_files
from service.http_settings import HttpSettings

PREFIX = "FALCONET_"
CONFIG_VARIABLE = "FALCONET_CONFIG"
"""Names the TOML file where the command line gives none."""

DATA_VARIABLE = "FALCONET_DATA"
"""Names the folder of labelled data for training and tests; with FALCONET_CONFIG the only one that is no setting."""

DRIFT_ROWS_MIN = 500
"""As in `models.drift`, which the settings do not wait for: importing it takes a second."""

BREAKER_SHARE = 0.5
"""Real traffic has 0.4 to 4.5 % flagged, by the threshold, and the simulator's from an empty past 16 %."""

BREAKER_WINDOW = 1000
"""At most so many times the share are blocked before the breaker opens: half a second at 1,000 a second."""

KafkaClient = Literal["kafka-python", "confluent-kafka"]
KAFKA_CLIENTS: tuple[KafkaClient, ...] = get_args(KafkaClient)

SECRET = {"secret": True}
_MASK = "***"

# Kafka's own rule for topic names; a name outside it fails at the broker with a far less clear error.
Topic = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,249}\Z", extra={"range": "1 to 249 of A-Z a-z 0-9 . _ -"})]
OptionalTopic = Annotated[Topic | None, Meta(extra={"range": "1 to 249 of A-Z a-z 0-9 . _ -"})]
_NAME = Meta(min_length=1, max_length=249, extra={"range": "1 to 249 characters"})
File = Annotated[Annotated[str, Meta(min_length=1)] | None, Meta(extra={"range": "a path"})]
_HOST = Meta(min_length=1, extra={"range": "a host name or an IP address"})

# Kubernetes sets such variables for each Service of the namespace unless the pod says `enableServiceLinks: false`.
_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?$")


class Settings(HttpSettings, frozen=True, kw_only=True):
    """What an operator may change; make it with `load`, which checks types, ranges and how settings go together."""

    bootstrap_servers: Annotated[
        str,
        Meta(
            pattern=r"^[^\s,]+:\d{1,5}(,[^\s,]+:\d{1,5})*\Z",
            extra={"range": "host:port[,host:port…]"},
            description="Kafka brokers to ask first.",
        ),
    ] = "127.0.0.1:9092"
    kafka_client: Annotated[
        KafkaClient,
        Meta(description="Kafka client library; confluent-kafka is faster and needs the `confluent` extra."),
    ] = "kafka-python"
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        Meta(description="How to speak to the brokers."),
    ] = "PLAINTEXT"
    sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None,
        Meta(description="How to log in, with a SASL security protocol."),
    ] = None
    sasl_username: Annotated[str | None, Meta(description="Login name, with a SASL security protocol.")] = None
    sasl_password: Annotated[
        str | None,
        Meta(description="Password, with a SASL security protocol; never shown.", extra=SECRET),
    ] = None
    sasl_password_file: Annotated[
        File,
        Meta(description="File that holds the password, such as a mounted secret; its last newline is dropped."),
    ] = None
    ssl_cafile: Annotated[
        File, Meta(description="PEM file of the authority that signed the brokers' certificates.")
    ] = None
    ssl_certfile: Annotated[File, Meta(description="PEM file of the client certificate.")] = None
    ssl_keyfile: Annotated[File, Meta(description="PEM file of the client certificate's key.")] = None
    ssl_key_password: Annotated[
        str | None, Meta(description="Password of an encrypted `ssl_keyfile`; never shown.", extra=SECRET)
    ] = None
    ssl_key_password_file: Annotated[
        File, Meta(description="File that holds the key's password; its last newline is dropped.")
    ] = None

    group_id: Annotated[str, _NAME, Meta(description="Consumer group that holds the committed offsets.")] = "falconet"
    transactional_id: Annotated[
        str,
        _NAME,
        Meta(description="Identity of the transactional producer; a second holder fences the first."),
    ] = "falconet"
    transactions_topic: Annotated[Topic, Meta(description="Topic to read transactions from.")] = "transactions"
    scores_topic: Annotated[Topic, Meta(description="Topic to write one score per accepted transaction to.")] = "scores"
    alerts_topic: Annotated[Topic, Meta(description="Topic to write scores that are not `allow` to.")] = "alerts"
    dlq_topic: Annotated[Topic, Meta(description="Dead-letter topic for messages that are no transaction.")] = (
        "transactions.dlq"
    )
    create_topics: Annotated[bool, Meta(description="Create missing topics at start; otherwise refuse to start.")] = (
        True
    )
    partitions: Annotated[int, Meta(ge=1, le=10_000, description="Partitions of each topic that is created.")] = 1
    replication_factor: Annotated[int, Meta(ge=1, le=100, description="Copies of each topic that is created.")] = 1

    batch_records_max: Annotated[
        int, Meta(ge=1, le=100_000, description="Most records scored and committed in one Kafka transaction.")
    ] = 2000
    batch_seconds_max: Annotated[
        float,
        Meta(gt=0, le=10, description="Longest that a batch keeps collecting while records keep coming."),
    ] = 0.05
    poll_seconds: Annotated[float, Meta(gt=0, le=10, description="Longest wait for the first record of a batch.")] = 0.2
    message_bytes_max: Annotated[
        int, Meta(ge=1024, le=16_777_216, description="Largest message that is decoded; larger ones are rejected.")
    ] = 1_048_576
    chain_id: Annotated[
        int, Meta(ge=0, le=2**63 - 1, description="Chain of a transaction that names none (1 is Ethereum mainnet).")
    ] = 1

    accounts_max: Annotated[
        int, Meta(ge=64, le=100_000_000, description="Accounts kept in memory, at most 256 bytes each.")
    ] = 1_000_000
    pairs_max: Annotated[int, Meta(ge=4, le=200_000_000, description="Sender and recipient pairs kept in memory.")] = (
        2_000_000
    )
    state_dir: Annotated[Path, Meta(description="Folder of the snapshots of the account state.")] = Path("state")
    snapshot_seconds: Annotated[
        float,
        Meta(ge=0, le=86_400, description="How often to save the account state; 0 saves it at a clean stop only."),
    ] = 60.0
    missing_history: Annotated[
        Literal["refuse", "accept"],
        Meta(
            description="What to do at start where the topic no longer holds messages that the account state or the "
            "scores lack: refuse to start, or accept to go on without them."
        ),
    ] = "refuse"
    registry_dir: Annotated[
        str,
        Meta(
            description="Folder of the model registry; empty means the one in the package.", extra={"range": "a path"}
        ),
    ] = ""
    model: Annotated[
        str,
        Meta(
            description="Model to serve, a registry's NAME/VERSION or a path; empty means the registry's champion.",
        ),
    ] = ""
    model_poll_seconds: Annotated[
        float, Meta(gt=0, le=3600, description="How often to look for another champion, where `model` is empty.")
    ] = 5.0
    model_keys: Annotated[
        tuple[Path, ...],
        Meta(
            description="PEM files of Ed25519 public keys, one of which must have signed any model that is used; "
            "comma-separated in the environment. Empty wants no signature."
        ),
    ] = ()
    candidate_model: Annotated[
        str,
        Meta(
            description="Model to score beside the served one, a registry's NAME/VERSION or a path; empty means none."
        ),
    ] = ""
    candidate_topic: Annotated[
        OptionalTopic, Meta(description="Topic to write the candidate's scores to; none means metrics only.")
    ] = None
    screening_lists: Annotated[
        tuple[Path, ...],
        Meta(
            description="CSV files of listed addresses (address,list,known_from); comma-separated in the environment."
        ),
    ] = ()
    breaker_share: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="Share of the last `breaker_window` transactions that may be other than `allow`; above it "
            "nothing is blocked until the share is half of it again. 1 turns it off.",
        ),
    ] = BREAKER_SHARE
    breaker_window: Annotated[
        int, Meta(ge=100, le=1_000_000, description="Scored transactions that `breaker_share` is taken over.")
    ] = BREAKER_WINDOW
    shadow_share: Annotated[
        float, Meta(ge=0, le=1, description="Share of transactions that the large model scores in shadow.")
    ] = 0.001
    drift_rows: Annotated[
        int,
        Meta(
            ge=0,
            le=10_000_000,
            description="Sampled transactions, one in 11, that drift is told over; 0 turns it off, else at least 500.",
        ),
    ] = 10_000

    checkpoint_topic: Annotated[Topic, Meta(description="Compacted topic that holds how far `ingest` is.")] = (
        "transactions.checkpoint"
    )

    metrics_host: Annotated[str, _HOST, Meta(description="Address that the HTTP server listens on.")] = "127.0.0.1"
    metrics_port: Annotated[
        int, Meta(ge=0, le=65_535, description="Port of the HTTP server; 0 takes any free one.")
    ] = 9464
    session_seconds: Annotated[
        float,
        Meta(
            ge=6,
            le=300,
            description="How long the broker waits for a silent replica before a standby may take over; a broker "
            "allows at least group.min.session.timeout.ms.",
        ),
    ] = 6.0
    drain_seconds: Annotated[
        float, Meta(ge=0, le=600, description="Longest that a stop may spend on finishing the batch at hand.")
    ] = 8.0
    broker_retry_seconds: Annotated[
        float, Meta(ge=0, le=86_400, description="Longest outage of Kafka that is retried before the process exits.")
    ] = 60.0
    log_format: Annotated[
        Literal["auto", "text", "json"],
        Meta(description="How log lines look; auto is text on a terminal and JSON elsewhere."),
    ] = "auto"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="The least that is logged.")
    ] = "info"

    def __repr__(self) -> str:
        """Show what `effective` shows, so that no traceback and no log line can hold a secret."""
        return f"Settings({self.effective()})"

    def topics(self) -> list[str]:
        """Return every topic in use, the one that is read first."""
        topics = [self.transactions_topic, self.scores_topic, self.alerts_topic, self.dlq_topic]
        return topics if self.candidate_topic is None else [*topics, self.candidate_topic]

    def effective(self) -> dict[str, object]:
        """Return every setting in plain JSON types for the echo at start, secrets masked."""
        return {name: _plain(getattr(self, name), secret=name in _SECRETS) for name in _TYPES}


def load(
    *,
    config: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """Read the settings from file, environment and command line, the later winning.

    Args:
        config: TOML file of flat `name = value` lines; None takes the one that `FALCONET_CONFIG` names, if any.
        overrides: Settings from the command line by name; None as a value means that the option was not given.
        environment: The process environment.

    Raises:
        UsageError: An unknown name, a value out of range, settings that contradict each other, an unreadable file.
    """
    values: dict[str, object] = {}
    place = str(config)
    if config is None and environment.get(CONFIG_VARIABLE):
        config = Path(environment[CONFIG_VARIABLE])
        place = f"{config} (from {CONFIG_VARIABLE})"
    if config is not None:
        for name, value in setting_files.read_toml(config, place).items():
            _check_known(name, place)
            values[name] = _convert(name, value, f"{name} in {place}")
    for variable, text in environment.items():
        if variable.startswith(PREFIX) and variable not in (CONFIG_VARIABLE, DATA_VARIABLE):
            name = _known_variable(variable, text)
            values[name] = _convert(name, _from_text(name, text), variable)
    for name, value in (overrides or {}).items():
        if value is not None:
            option = "--" + name.replace("_", "-")
            _check_known(name, "the command line")
            values[name] = _convert(name, _from_option(name, value), option)
    return _checked(values)


def markdown_table() -> str:
    """Render every setting as the Markdown table that the operations page holds, one line each, ending in a newline."""
    lines = ["| Setting | Environment | Default | Range | Meaning |", "| --- | --- | --- | --- | --- |"]
    apart = set(HttpSettings.__struct_fields__)
    for field in sorted(msgspec.structs.fields(Settings), key=lambda field: field.name in apart):
        default = _default_text(field.default)
        cells = (f"`{field.name}`", f"`{PREFIX}{field.name.upper()}`", default, _range(field.name))
        lines.append("| " + " | ".join([*cells, _extra(field.name, "description")]) + " |")
    return "\n".join(lines) + "\n"


def _checked(values: dict[str, object]) -> Settings:
    """Make the settings after checking what concerns several of them, the password file read."""
    for name in _SECRETS:
        file = values.get(f"{name}_file")
        if file is not None:
            if values.get(name) is not None:
                raise UsageError(f"{name} and {name}_file are both set; set one of them")
            values[name] = _convert(name, setting_files.read_secret(f"{name}_file", str(file)), f"{name}_file {file}")
    settings = Settings(**values)  # type: ignore[arg-type]  # each value was converted to its field's type
    _check_login(settings)
    if 0 < settings.drift_rows < DRIFT_ROWS_MIN:
        raise UsageError(f"drift_rows is {settings.drift_rows}, allowed: 0 for off, or at least {DRIFT_ROWS_MIN}")
    topics = settings.topics()
    for topic in topics:
        # Scores written to the topic they are read from would be rejected and rewritten for ever.
        if [*topics, settings.checkpoint_topic].count(topic) > 1:
            raise UsageError(f"topic {topic!r} is set twice; each kind of record needs a topic of its own")
    if settings.candidate_topic is not None and not settings.candidate_model:
        raise UsageError(f"candidate_topic is {settings.candidate_topic!r}, but no candidate_model would write to it")
    return settings


def _check_login(settings: Settings) -> None:
    given = [name for name in ("sasl_mechanism", "sasl_username", "sasl_password") if getattr(settings, name)]
    if settings.security_protocol.startswith("SASL"):
        missing = {"sasl_mechanism", "sasl_username", "sasl_password"} - set(given)
        if missing:
            raise UsageError(f"security_protocol {settings.security_protocol} also needs {', '.join(sorted(missing))}")
    elif given:
        raise UsageError(
            f"{given[0]} is set but security_protocol {settings.security_protocol} does not log in;"
            " set SASL_SSL or SASL_PLAINTEXT"
        )
    if (settings.ssl_certfile is None) != (settings.ssl_keyfile is None):
        raise UsageError("ssl_certfile and ssl_keyfile go together; only one of them is set")
    if settings.ssl_key_password is not None and settings.ssl_keyfile is None:
        raise UsageError("ssl_key_password is set but ssl_keyfile is not")
    files = [name for name in ("ssl_cafile", "ssl_certfile") if getattr(settings, name) is not None]
    if files and settings.security_protocol not in ("SSL", "SASL_SSL"):
        # Whoever names a certificate means to be encrypted, and would not be.
        raise UsageError(
            f"{files[0]} is set but security_protocol {settings.security_protocol} does not encrypt;"
            " set SSL or SASL_SSL"
        )


def _check_known(name: str, place: str) -> None:
    """Refuse a name that no setting has, and say which is the closest."""
    if name not in _TYPES:
        raise UsageError(f"unknown setting {name!r} in {place}{_closest(name, '')}")


def _known_variable(variable: str, text: str) -> str:
    """Return the setting that an environment variable sets, refusing what Kubernetes puts there by itself."""
    # A Service called falconet-metrics sets FALCONET_METRICS_PORT to tcp://10.0.0.1:9464.
    if _SERVICE_LINK.search(variable) or (variable.endswith("_PORT") and "://" in text):
        raise UsageError(
            f"environment variable {variable}={text} is no setting but a Kubernetes service link;"
            " set `enableServiceLinks: false` in the pod"
        )
    name = variable.removeprefix(PREFIX).lower()
    if name in _TYPES and variable.isupper():
        return name
    raise UsageError(f"unknown setting {variable} in the environment{_closest(name, PREFIX)}")


def _closest(name: str, prefix: str) -> str:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), _TYPES, n=1)
    if not near:
        return ""
    return f"; did you mean {prefix + near[0].upper() if prefix else near[0]}?"


def _from_text(name: str, text: str) -> object:
    """Return the value that an environment variable's text stands for, before its type is checked."""
    bare = _bare(name)
    if type(None) in get_args(bare):
        # Compose and Helm write unset variables as empty ones.
        return text or None
    if get_origin(bare) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    return _number(bare, text)


def _from_option(name: str, value: object) -> object:
    """Return a command-line value in the plain types that a file would hold."""
    if isinstance(value, str):
        return _from_text(name, value)
    if isinstance(value, list | tuple):
        return [str(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def _number(bare: object, text: str) -> object:
    """Read a number or a truth value, leaving any other text for the type check to refuse with its range."""
    if bare is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    # `int` and `float` also take blanks, underscores and other scripts' digits, which nobody means in a setting.
    if bare is int and re.fullmatch(r"-?[0-9]{1,20}", text):
        return int(text)
    if bare is float and re.fullmatch(r"-?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?", text):
        return float(text)
    return text


def _convert(name: str, value: object, place: str) -> object:
    """Return a plain value as the field's type, in range."""
    is_finite = not isinstance(value, float) or math.isfinite(value)
    try:
        if is_finite and not (isinstance(value, str) and "\0" in value):
            return msgspec.convert(value, _TYPES[name], dec_hook=_to_path)
    except msgspec.ValidationError:
        pass
    shown = _MASK if name in _SECRETS else repr(value)
    raise UsageError(f"{place} is {shown}; allowed: {_range(name)}")


def _to_path(kind: type, value: object) -> object:
    if kind is not Path or not isinstance(value, str) or not value:
        raise ValueError("not a path")
    return Path(value)


def _bare(name: str) -> Any:
    """Return a setting's type without its annotations."""
    kind = _TYPES[name]
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return kind


def _extra(name: str, key: str) -> Any:
    """Return what a setting's annotations say under a key, empty if nothing; of several the last counts."""
    found: Any = ""
    for meta in get_args(_TYPES[name])[1:]:
        direct = getattr(meta, key, None)
        value = direct if direct is not None else (meta.extra or {}).get(key)
        found = found if value is None else value
    return found


def _range(name: str) -> str:
    """Return the values that a setting may take, as words for the table and for errors."""
    kind = _bare(name)
    stated = _extra(name, "range")
    if stated:
        return str(stated)
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(member for member in get_args(kind) if member is not type(None))
    if get_origin(kind) is Literal:
        return ", ".join(str(choice) for choice in get_args(kind))
    if kind in (int, float):
        low, high = (_extra(name, key) for key in ("ge", "le"))
        word = "integer" if kind is int else "number"
        above = _extra(name, "gt")
        return f"{word} above {above} to {high}" if low == "" else f"{word} from {low} to {high}"
    words = {bool: "true, false", Path: "a path", str: "any text"}
    return words.get(kind, "a list of paths")


def _default_text(default: object) -> str:
    if default is None:
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default}`" if default not in ("", ()) else "empty"


def _plain(value: object, *, secret: bool) -> object:
    if secret and value not in (None, ()):
        return _MASK
    if isinstance(value, tuple):
        return [str(part) for part in value]
    return str(value) if isinstance(value, Path) else value


_TYPES: dict[str, Any] = get_type_hints(Settings, include_extras=True)
_SECRETS = frozenset(name for name in _TYPES if _extra(name, "secret"))
