"""The docs against the code: what one names, the other has."""

import re
import subprocess
from pathlib import Path
from typing import get_args

import msgspec
import pytest
import typer.testing

from docs import generate
from features import errors
from features.errors import Reason
from models import compact, registry
from service import catalogue, cli, codec, ingest_metrics
from service.messages import Rejection, Source
from service.settings import PREFIX, Settings

ROOT = generate.ROOT
PAGES = generate.pages()
ALL_PAGES = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs" / "adr").glob("*.md"))]
OUTSIDE_SETTINGS = {"FALCONET_CONFIG", "FALCONET_DATA", "KAFKA_LIBS"}
"""Variables that are no setting of the service."""

REJECTED_FILES = {"service/errors.py"}
"""ADR 2 names it to say why it is not there."""


def read(*names: str) -> str:
    """Return the text of some pages, one after the other."""
    return "\n".join((ROOT / name).read_text(encoding="utf-8") for name in names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_generated_tables_are_current(page: Path) -> None:
    """Every generated block says what the code says; `make docs` writes them."""
    text = page.read_text(encoding="utf-8")

    assert generate.current(text) == text


def test_every_table_stands_somewhere() -> None:
    """No generated table was lost from the docs."""
    placed = [name for page in PAGES for _, name, _ in generate.BLOCK.findall(page.read_text(encoding="utf-8"))]

    assert sorted(generate.TABLES) == sorted(placed)


def test_every_rejection_reason_has_its_sentence() -> None:
    """The reasons in docs/topics.md are the closed set."""
    section = read("docs/topics.md").split("The reasons are a closed set")[1]

    assert sorted(get_args(Reason)) == sorted(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))


def test_evaluation_is_of_the_champion() -> None:
    """docs/evaluation.md judges the model that is shipped."""
    digest = compact.read(registry.model_path("")).digest

    assert f"`{digest}`" in read("docs/evaluation.md")
    assert digest in read("docs/evaluation.json")


def test_every_error_has_its_end() -> None:
    """docs/architecture.md says how each error ends that its catchers tell apart."""
    named = set(re.findall(r"^\| `(\w+Error)` \|", read("docs/architecture.md"), re.MULTILINE))
    roots = {error.__name__ for error in errors.FalconetError.__subclasses__()}

    assert roots - named == set()
    assert {name for name in named if not hasattr(errors, name)} == set()


def test_topics_carry_their_default_names() -> None:
    """The topics' table names each topic setting with its default."""
    text = read("docs/topics.md")
    topics = {f.name: f.default for f in msgspec.structs.fields(Settings) if f.name.endswith("_topic")}

    placed = {
        name: (f"| `{default}` | `{name}` |" if default else f"| none unless set | `{name}` |") in text
        for name, default in topics.items()
    }
    assert placed == dict.fromkeys(topics, True)


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.name)
def test_named_metrics_settings_and_files_exist(page: Path) -> None:
    """A metric, an environment variable, a file and a link that a page names is there."""
    text = page.read_text(encoding="utf-8")
    known_metrics = {catalogue.PREFIX + spec.name for spec in (*catalogue.CATALOGUE, *ingest_metrics.CATALOGUE)}
    known_variables = {PREFIX + field.name.upper() for field in msgspec.structs.fields(Settings)} | OUTSIDE_SETTINGS
    files = re.findall(r"\b((?:features|models|service|tests|deploy|docs)/[\w/.-]+\.(?:py|md|json|xml|yaml))\b", text)
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in link]

    assert set(re.findall(r"\bfalconet_\w+", text)) - known_metrics == set()
    assert set(re.findall(r"\bFALCONET_[A-Z_]+\b", text)) - known_variables == set()
    assert [name for name in files if not (ROOT / name).exists() and name not in REJECTED_FILES] == []
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_topics_name_the_fields_and_headers_of_the_codec() -> None:
    """docs/topics.md has each type's required and optional fields and the dead-letter headers in the codec's order."""
    text = read("docs/topics.md")
    rejection = Rejection(b"", None, "not_json", "", Source("transactions", 0, 0))
    headers = [name for name, _ in codec.encode_rejection(rejection)[2]]

    def row(kind: str, required: tuple[str, ...], optional: tuple[str, ...]) -> str:
        return f"| `{kind}` | {', '.join(f'`{f}`' for f in required)} | {', '.join(f'`{f}`' for f in optional)} |"

    assert row("transaction", codec.TRANSACTION_REQUIRED, codec.TRANSACTION_OPTIONAL) in text
    assert row("token_transfer", codec.TOKEN_TRANSFER_REQUIRED, codec.OPTIONAL) in text
    assert headers == re.findall(r"^\| `(\w+)` \|", text.split("| Header |")[1].split("closed set")[0], re.MULTILINE)
    assert f"more than {codec.DEPTH_MAX} objects" in text


def test_commands_of_the_docs_exist() -> None:
    """Each `falconet …` that the docs show in code is a command with these options, and each `make …` a target."""
    text = read("README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")))
    snippets = re.findall(r"```sh\n(.*?)```|`([^`\n]+)`", text, re.DOTALL)
    code = " \n".join(block or inline for block, inline in snippets)
    known = {
        name: {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)}
        for name, command in generate.commands()
    }
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))

    for line in re.findall(r"\bfalconet [a-z][^\n#]*", code):
        name = max((name for name in known if f"{line} ".startswith(f"{name} ")), key=len, default=None)
        assert name is not None, line
        assert set(re.findall(r"(?<= )--[a-z-]+", line)) - known[name] == set(), line
    assert set(re.findall(r"\bmake ([a-z-]+)\b", code)) - targets == set()


def test_every_make_target_has_its_line_of_help() -> None:
    """`make` alone shows every command."""
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    named = set(re.findall(r"^make ([a-z-]+)", shown, re.MULTILINE))

    assert named == set(re.findall(r"^([a-z-]+):.*##", read("Makefile"), re.MULTILINE))
    assert {"demo", "test", "lint", "bench"} <= named


def test_every_command_explains_itself() -> None:
    """`--help` works for every command, and every option has its sentence."""
    for name, command in generate.commands():
        arguments = [*name.split()[1:], "--help"]
        assert typer.testing.CliRunner().invoke(cli.app, arguments).exit_code == 0, name
        silent = [p.name for p in command.params if p.param_type_name == "option" and not getattr(p, "help", None)]
        assert silent == [], name


def test_readme_begins_with_its_commands() -> None:
    """The first screen shows the two commands that do everything."""
    first_screen = "\n".join(read("README.md").splitlines()[:40])

    assert "make demo" in first_screen
    assert "make test" in first_screen
