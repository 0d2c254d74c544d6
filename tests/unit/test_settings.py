"""Settings: where they come from, what wins, and what is refused with which words."""

from pathlib import Path

import msgspec
import pytest

from docs import generate
from features.errors import UsageError
from service import settings
from service.settings import Settings, load


def refusal(**arguments: object) -> str:
    """Return the message with which `load` refuses."""
    with pytest.raises(UsageError) as caught:
        load(**{"environment": {}, **arguments})
    return str(caught.value)


@pytest.fixture
def write(tmp_path: Path):
    """Return a function that writes a settings file and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "falconet.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_defaults_hold_without_file_and_environment():
    """An empty environment gives the defaults."""
    assert Settings() == load(environment={"PATH": "/bin"})


def test_every_default_is_in_its_range():
    """Each default passes the check that a given value must pass."""
    for field in msgspec.structs.fields(Settings):
        if field.default is not None:
            plain = Settings().effective()[field.name]
            assert field.default == getattr(load(environment={}, overrides={field.name: plain}), field.name)


def test_later_sources_win(write):
    """The command line wins over the environment, the environment over the file, the file over the default."""
    config = write("partitions = 2\nbatch_records_max = 20\nmetrics_port = 2000\n")

    loaded = load(
        config=config,
        environment={"FALCONET_BATCH_RECORDS_MAX": "30", "FALCONET_METRICS_PORT": "3000"},
        overrides={"metrics_port": 4000, "accounts_max": None},
    )

    assert loaded.partitions == 2
    assert loaded.batch_records_max == 30
    assert loaded.metrics_port == 4000
    assert loaded.accounts_max == 1_000_000


def test_environment_names_the_file(write):
    """FALCONET_CONFIG is read where the command line names no file."""
    config = write('group_id = "exchange"\n')

    assert load(environment={"FALCONET_CONFIG": str(config)}).group_id == "exchange"


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("CREATE_TOPICS", "false", False),
        ("CREATE_TOPICS", "1", True),
        ("POLL_SECONDS", "1e-3", 0.001),
        ("POLL_SECONDS", "2", 2.0),
        ("SHADOW_SHARE", "0", 0.0),
        ("SCREENING_LISTS", "a.csv, b.csv", (Path("a.csv"), Path("b.csv"))),
        ("SCREENING_LISTS", "", ()),
        ("STATE_DIR", "/var/lib/falconet", Path("/var/lib/falconet")),
        ("SSL_CAFILE", "", None),
        ("MODEL", "", ""),
        ("GROUP_ID", "null", "null"),
        ("GROUP_ID", "12", "12"),
    ],
)
def test_environment_text_becomes_the_type(variable, text, expected):
    """An environment variable is read as its setting's type, and an empty optional one as not set."""
    loaded = load(environment={f"FALCONET_{variable}": text})

    assert expected == getattr(loaded, variable.lower())


@pytest.mark.parametrize(
    ("variable", "text", "allowed"),
    [
        ("METRICS_PORT", "65536", "integer from 0 to 65535"),
        ("METRICS_PORT", "-1", "integer from 0 to 65535"),
        ("METRICS_PORT", "9_464", "integer from 0 to 65535"),
        ("METRICS_PORT", " 9464", "integer from 0 to 65535"),
        ("METRICS_PORT", "٩", "integer from 0 to 65535"),
        ("METRICS_PORT", "", "integer from 0 to 65535"),
        ("SHADOW_SHARE", "nan", "number from 0 to 1"),
        ("SHADOW_SHARE", "1.01", "number from 0 to 1"),
        ("POLL_SECONDS", "0", "number above 0 to 10"),
        ("POLL_SECONDS", "inf", "number above 0 to 10"),
        ("CREATE_TOPICS", "yes", "true, false"),
        ("KAFKA_CLIENT", "librdkafka", "kafka-python, confluent-kafka"),
        ("DLQ_TOPIC", "a b", "1 to 249 of A-Z a-z 0-9 . _ -"),
        ("DLQ_TOPIC", "dlq\n", "1 to 249 of A-Z a-z 0-9 . _ -"),
        ("BOOTSTRAP_SERVERS", "broker", "host:port[,host:port…]"),
        ("BOOTSTRAP_SERVERS", "", "host:port[,host:port…]"),
        ("GROUP_ID", "", "1 to 249 characters"),
        ("STATE_DIR", "", "a path"),
        ("STATE_DIR", "a\0b", "a path"),
    ],
)
def test_value_out_of_range_is_refused(variable, text, allowed):
    """A refusal names the place, the value and what is allowed."""
    message = refusal(environment={f"FALCONET_{variable}": text})

    assert message.startswith(f"FALCONET_{variable} is ")
    assert message.endswith(f"; allowed: {allowed}")


@pytest.mark.parametrize("line", ['metrics_port = "9464"', "metrics_port = 1.0", "group_id = 7", "create_topics = 1"])
def test_file_holds_typed_values(write, line):
    """A file's value of another type is refused: TOML has types, so a quoted number is a mistake."""
    assert "allowed: " in refusal(config=write(line))


def test_file_number_may_be_whole_where_a_fraction_is_allowed(write):
    """`poll_seconds = 1` is a number of seconds."""
    assert load(config=write("poll_seconds = 1\n"), environment={}).poll_seconds == 1.0


def test_unknown_name_is_refused_with_the_closest(write):
    """A misspelt name is refused wherever it stands, with the name it probably means."""
    config = write("batch_record_max = 1\n")

    assert refusal(config=config).endswith("falconet.toml; did you mean batch_records_max?")
    assert "did you mean FALCONET_METRICS_PORT?" in refusal(environment={"FALCONET_METRIC_PORT": "1"})
    assert "did you mean FALCONET_METRICS_PORT?" in refusal(environment={"FALCONET_metrics_port": "1"})
    assert "did you mean accounts_max?" in refusal(overrides={"account_max": 1})
    assert "did you mean" not in refusal(environment={"FALCONET_ZZZZZZZ": "1"})


def test_table_in_the_file_is_an_unknown_name(write):
    """The file is flat."""
    assert "unknown setting 'kafka'" in refusal(config=write('[kafka]\ngroup_id = "a"\n'))


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("FALCONET_METRICS_PORT", "tcp://10.0.0.1:9464"),
        ("FALCONET_PORT", "tcp://10.0.0.1:9464"),
        ("FALCONET_SERVICE_HOST", "10.0.0.1"),
        ("FALCONET_SERVICE_PORT_METRICS", "9464"),
        ("FALCONET_PORT_9464_TCP_ADDR", "10.0.0.1"),
    ],
)
def test_kubernetes_service_link_is_named_as_such(variable, text):
    """What Kubernetes sets for a Service called falconet is refused with the way to switch it off."""
    assert "enableServiceLinks: false" in refusal(environment={variable: text})


def test_unreadable_file_is_refused(tmp_path, write):
    """A missing file, a folder and a file that is no TOML are refused with their path."""
    assert str(tmp_path / "none.toml") in refusal(config=tmp_path / "none.toml")
    assert "from FALCONET_CONFIG" in refusal(environment={"FALCONET_CONFIG": str(tmp_path / "none.toml")})
    assert str(tmp_path) in refusal(config=tmp_path)
    assert "is not TOML" in refusal(config=write("partitions = = 1\n"))


TLS = {"ssl_certfile": "cert.pem", "ssl_keyfile": "key.pem"}
LOGIN = {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "sasl_username": "falconet"}


def test_secret_is_masked_in_the_echo_and_in_errors():
    """A password is shown neither at start nor in a refusal."""
    loaded = load(environment={"FALCONET_SASL_PASSWORD": "hunter2"}, overrides=LOGIN)

    assert loaded.sasl_password == "hunter2"
    assert loaded.effective()["sasl_password"] == "***"
    assert "hunter2" not in repr(loaded.effective())
    assert Settings().effective()["sasl_password"] is None
    assert refusal(overrides={"sasl_password": 123}) == "--sasl-password is ***; allowed: any text"


def test_password_comes_from_a_file(tmp_path):
    """A mounted secret is read without its last newline, blanks inside it kept."""
    secret = tmp_path / "password"
    secret.write_text(" pass word \n", encoding="utf-8")

    loaded = load(environment={}, overrides={**LOGIN, "sasl_password_file": secret})

    assert loaded.sasl_password == " pass word "
    assert loaded.effective()["sasl_password"] == "***"


def test_password_file_that_cannot_serve_is_refused(tmp_path):
    """A missing or empty secret, or one beside a password, is refused."""
    empty = tmp_path / "empty"
    empty.write_text("\n", encoding="utf-8")

    assert "cannot read" in refusal(overrides={**LOGIN, "sasl_password_file": tmp_path / "none"})
    assert "is empty" in refusal(overrides={**LOGIN, "sasl_password_file": empty})
    assert "both set" in refusal(overrides={**LOGIN, "sasl_password_file": empty, "sasl_password": "a"})


def test_no_option_takes_a_secret_and_no_repr_shows_one():
    """Another user sees a command line; so secrets have no option, and a record printed by mistake keeps them."""
    secrets = [field.name for field in msgspec.structs.fields(Settings) if settings._extra(field.name, "secret")]
    options = {option for _, command in generate.commands() for each in command.params for option in each.opts}
    loaded = load(environment={"FALCONET_SSL_KEY_PASSWORD": "hunter2"}, overrides={**TLS, "security_protocol": "SSL"})

    assert {"sasl_password", "ssl_key_password"} <= set(secrets)
    assert [option for option in options if "password" in option or "secret" in option] == []
    assert loaded.ssl_key_password == "hunter2"
    assert "hunter2" not in repr(loaded)
    assert "'ssl_key_password': '***'" in repr(loaded)


def test_secret_file_that_is_no_password_is_refused_without_its_content(tmp_path):
    """A file that is too long or no text was named by mistake; nothing of it is told."""
    binary, long = tmp_path / "binary", tmp_path / "long"
    binary.write_bytes(b"hunter2\xff")
    long.write_text("hunter2" * 1_000, encoding="utf-8")

    for path, said in ((binary, "it is not UTF-8"), (long, "more than 4096 bytes")):
        message = refusal(overrides={**LOGIN, "sasl_password_file": path})
        assert said in message
        assert "hunter2" not in message


def test_certificates_without_encryption_are_refused():
    """Whoever names a certificate means to be encrypted: a protocol in the clear beside it is a mistake."""
    assert "does not encrypt" in refusal(overrides={"ssl_cafile": "ca.pem"})
    clear = {**TLS, **LOGIN, "sasl_password": "x", "security_protocol": "SASL_PLAINTEXT"}
    assert "does not encrypt" in refusal(overrides=clear)
    assert "ssl_keyfile is not" in refusal(overrides={"security_protocol": "SSL", "ssl_key_password": "x"})


def test_settings_that_contradict_each_other_are_refused():
    """Half a login, half a client certificate and a topic used twice are refused before anything connects."""
    assert "also needs sasl_password" in refusal(overrides=LOGIN)
    assert "does not log in" in refusal(overrides={"sasl_username": "falconet"})
    assert "go together" in refusal(overrides={"ssl_certfile": "cert.pem"})
    assert "topic 'scores' is set twice" in refusal(overrides={"alerts_topic": "scores"})
    candidate = {"candidate_model": "falconet/2", "candidate_topic": "alerts"}
    assert "topic 'alerts' is set twice" in refusal(overrides=candidate)


def test_candidate_topic_needs_a_candidate():
    """A topic that nothing would be written to is a mistake; with a candidate it is one more topic in use."""
    assert "no candidate_model" in refusal(overrides={"candidate_topic": "scores.candidate"})

    used = load(overrides={"candidate_topic": "scores.candidate", "candidate_model": "falconet/2"}, environment={})

    assert used.topics() == ["transactions", "scores", "alerts", "transactions.dlq", "scores.candidate"]


def test_effective_values_are_plain_json():
    """The echo at start can be written as JSON."""
    effective = load(environment={}, overrides={"screening_lists": [Path("a.csv")]}).effective()

    assert effective == msgspec.json.decode(msgspec.json.encode(effective))
    assert list(effective) == [field.name for field in msgspec.structs.fields(Settings)]


def test_table_has_a_sentence_for_every_setting():
    """The docs' table names each setting once, with environment variable, default, range and one sentence."""
    header, rule, *rows = settings.markdown_table().splitlines()

    assert header.count("|") == rule.count("|") == 6
    assert sorted(field.name for field in msgspec.structs.fields(Settings)) == sorted(row.split("`")[1] for row in rows)
    for row in rows:
        name, variable, default, allowed, sentence = (cell.strip() for cell in row.strip("|").split("|"))
        assert variable == f"`FALCONET_{name.strip('`').upper()}`"
        assert default
        assert allowed
        assert sentence.endswith(".")
