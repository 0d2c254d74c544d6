"""The feature table: names, positions, and what the fingerprint ties together."""

import importlib

import pytest

from features import schema
from features.screening import FLAGGED


def test_names_are_unique_and_found_at_their_position():
    """Every feature stands once, and `index` gives its column."""
    names = [feature.name for feature in schema.FEATURES]

    assert len(set(names)) == len(names) == schema.N_FEATURES
    assert [schema.index(name) for name in names] == list(range(schema.N_FEATURES))


def test_sides_have_the_same_columns():
    """The recipient's block is the sender's under other names, so one function writes both."""
    sender = [(f.name.removeprefix("from_"), f.unit, f.meaning, f.trained) for f in schema.SENDER_FEATURES]
    recipient = [(f.name.removeprefix("to_"), f.unit, f.meaning, f.trained) for f in schema.RECIPIENT_FEATURES]

    assert sender == recipient
    assert schema.side_index(sender[-1][0]) == len(sender) - 1
    assert schema.FEATURES[schema.RECIPIENT_START].name == "to_in_count_1h"
    assert schema.FEATURES[schema.PAIR_START].name == "pair_count"


def test_every_feature_says_what_it_is():
    """A feature has a unit, a meaning that ends in a full stop, and a sentence that needs no more than its value."""
    for feature in schema.FEATURES:
        assert feature.unit, feature.name
        assert feature.meaning.endswith("."), feature.name
        assert feature.sentence.format(value="3") == feature.sentence.replace("{value}", "3"), feature.name


def test_nothing_that_stems_from_a_list_is_trained():
    """Lists and labels share their origin: a model trained on exposure would have read its own answers."""
    from_lists = [f for f in schema.FEATURES if "exposure" in f.name]

    assert len(from_lists) == 4
    assert not any(feature.trained for feature in from_lists)
    assert FLAGGED


@pytest.mark.parametrize(
    ("name", "changed"),
    [("KERNEL_VERSION = ", "KERNEL_VERSION = 1"), ('"log10 ether"', '"log2 ether"'), ('"is_self"', '"is_own"')],
)
def test_fingerprint_changes_with_what_a_column_means(name: str, changed: str):
    """Another kernel version, unit or name gives another fingerprint, so that an artefact of the old one is refused."""
    source = importlib.util.find_spec("features.schema").loader.get_source("features.schema")
    assert name in source
    namespace: dict[str, object] = {"__name__": "altered"}
    exec(source.replace(name, changed), namespace)

    assert len(schema.FINGERPRINT) == 16
    assert namespace["FINGERPRINT"] != schema.FINGERPRINT


def test_table_of_the_docs_has_a_line_for_each_feature():
    """The table in docs/features.md comes from here, in the order of the columns."""
    lines = schema.markdown().splitlines()[2:]

    assert [line.split("`")[1] for line in lines] == [feature.name for feature in schema.FEATURES]
