"""The feature table: what each column of a row means, in order; its fingerprint ties models to it.

The kernel writes the columns, docs/features.md lists them, the naive oracle in the tests recomputes them.
"""

import hashlib
from collections.abc import Callable
from functools import partial

from msgspec import Struct

HALF_LIVES = ("1h", "1d", "7d", "30d")
"""Of the decayed sums: an event counts 1 when it happens, 1/2 a half-life later, 1/4 after two."""

KNOWN_HALF_LIVES = 2
"""A window is known once the past was watched for two half-lives: three quarters of its weight."""


class Feature(Struct, frozen=True):
    """One column of the feature row."""

    name: str
    unit: str
    meaning: str
    sentence: str
    """What an analyst reads, with `{value}` for the column's value."""

    trained: bool = True
    """False where the training data's bias makes the column give away its source, or where it stems from a list."""


def _transaction() -> list[Feature]:
    return [
        Feature("amount", "ether", "Amount moved; NaN for a token, whose worth is unknown.", "it moves {value} ETH"),
        Feature("is_token", "0 or 1", "The record is a token transfer.", "it is a token transfer", False),
        Feature("is_creation", "0 or 1", "The transaction creates a contract.", "it creates a contract", False),
        Feature("is_failed", "0 or 1", "The transaction failed; NaN without a receipt.", "it failed", False),
        Feature(
            "method_class",
            "class",
            "Called method: 1 none, 2 transfer, 3 approve, 4 permit, 5 set-approval-for-all, 6 other; NaN unknown.",
            "it calls a method of class {value}",
            False,
        ),
        Feature("input_bytes", "bytes", "Length of the input; NaN unknown.", "its input has {value} bytes", False),
        Feature("is_self", "0 or 1", "Sender and recipient are one address.", "it pays its own sender"),
        Feature(
            "digits",
            "digits",
            "Significant digits of the amount in ether, within 1e-5: 1 to 4, 5 for more; NaN without an amount.",
            "its amount is written with {value} significant digits (5: more than 4)",
        ),
    ]


def _of_side(
    side: str, who: str, name: str, unit: str, meaning: str, sentence: str, *, trained: bool = True
) -> Feature:
    return Feature(f"{side}_{name}", unit, meaning, f"the {who} {sentence}", trained)


def _side(side: str, who: str) -> list[Feature]:
    feature = partial(_of_side, side, who)
    return [*_flows(feature), *_moments(feature), *_rhythm(feature), *_habits(feature), *_minor(feature)]


def _flows(feature: Callable[..., Feature]) -> list[Feature]:
    columns = []
    for h in HALF_LIVES:
        decayed = f"decayed with half-life {h}"
        columns += [
            feature(
                f"in_count_{h}", "payments", f"Payments received, {decayed}.", f"received {{value}} payments ({h})"
            ),
            feature(f"out_count_{h}", "payments", f"Payments made, {decayed}.", f"made {{value}} payments ({h})"),
            feature(f"in_amount_{h}", "ether", f"Amount received, {decayed}.", f"received {{value}} ETH ({h})"),
            feature(f"out_amount_{h}", "ether", f"Amount paid, {decayed}.", f"paid {{value}} ETH ({h})"),
        ]
    return columns


def _moments(feature: Callable[..., Feature]) -> list[Feature]:
    columns = [_balance(feature, "1d")]
    for way, verb in (("in", "receives"), ("out", "pays")):
        columns += [
            feature(
                f"{way}_magnitude_30d",
                "log10 ether",
                "Mean of log10 of the amounts, decayed with half-life 30d.",
                f"{verb} typically 10^{{value}} ETH",
            ),
            feature(
                f"{way}_spread_30d",
                "log10 ether",
                "Standard deviation of log10 of the amounts, decayed with half-life 30d.",
                f"{verb} amounts that spread by a factor of 10^{{value}}",
            ),
        ]
    return [
        *columns,
        _balance(feature, "30d"),
        feature(
            "in_new_30d",
            "payments",
            "Payments from senders never met before, half-life 30d.",
            "got {value} payments from strangers (30d)",
        ),
        feature(
            "out_new_30d",
            "payments",
            "Payments to recipients never met before, half-life 30d.",
            "made {value} payments to strangers (30d)",
        ),
    ]


def _balance(feature: Callable[..., Feature], half_life: str) -> Feature:
    return feature(
        f"balance_{half_life}",
        "-1 to 1",
        f"(received - paid) / (received + paid), half-life {half_life}.",
        "has a received-to-paid balance of {value}",
    )


def _rhythm(feature: Callable[..., Feature]) -> list[Feature]:
    columns = []
    for way, verb, events in (("in", "receives", "receipts"), ("out", "pays", "payments")):
        columns += [
            feature(
                f"{way}_gap",
                "log10 s",
                f"Mean of log10(1 + seconds from one to the next) of the {events}, half-life 30d.",
                f"{verb} every 10^{{value}} s",
            ),
            feature(
                f"{way}_gap_spread",
                "log10 s",
                f"Standard deviation of log10(1 + seconds from one to the next) of the {events}, half-life 30d.",
                f"{verb} at intervals that spread by a factor of 10^{{value}}",
            ),
        ]
    columns.append(
        feature(
            "in_pause",
            "log10",
            "log10(1 + seconds_since_in) - in_gap.",
            "has waited 10^{value} times its usual interval since the last receipt",
        )
    )
    for way, verb, events in (("in", "receives", "receipts"), ("out", "pays", "payments")):
        columns.append(
            feature(
                f"{way}_round_share",
                "share",
                f"Share of the {events} with at most 2 significant digits, half-life 30d.",
                f"{verb} round amounts in {{value}} of cases",
            )
        )
    return columns


def _habits(feature: Callable[..., Feature]) -> list[Feature]:
    return [
        feature(
            "count_balance_30d",
            "-1 to 1",
            "(received - made) / (received + made) payments, half-life 30d.",
            "has a balance of received to made payments of {value}",
        ),
        feature("in_new_share_30d", "share", "in_new_30d / in_count_30d.", "is paid by strangers in {value} of cases"),
        feature("out_new_share_30d", "share", "out_new_30d / out_count_30d.", "pays strangers in {value} of cases"),
        feature("in_burst", "ratio", "in_count_1d / in_count_30d.", "receives in bursts ({value})"),
        feature("out_burst", "ratio", "out_count_1d / out_count_30d.", "pays in bursts ({value})"),
        feature(
            "senders",
            "accounts",
            "Distinct senders of this and the previous 30-day period, by linear counting up to 266.",
            "was paid by about {value} accounts",
        ),
        feature(
            "recipients",
            "accounts",
            "Distinct recipients of this and the previous 30-day period, by linear counting up to 266.",
            "paid about {value} accounts",
        ),
        feature(
            "seconds_since_in", "s", "Since the last receipt; NaN if none is known.", "last received {value} s ago"
        ),
        feature("seconds_since_out", "s", "Since the last payment; NaN if none is known.", "last paid {value} s ago"),
        feature("in_age", "days", "Mean age of the receipts, half-life 30d.", "received {value} days ago on average"),
        feature("out_age", "days", "Mean age of the payments, half-life 30d.", "paid {value} days ago on average"),
        feature(
            "residence",
            "days",
            "in_age - out_age: how long money stays before it moves on.",
            "keeps money for {value} days",
        ),
        feature(
            "onward",
            "log10 s",
            "Mean of log10(1 + seconds from the last receipt to a payment), half-life 30d.",
            "moves money on within 10^{value} s",
        ),
        feature(
            "in_max", "ether", "Largest receipt of this and the previous 30-day period.", "got {value} ETH at most"
        ),
        feature("out_max", "ether", "Largest payment of those periods.", "paid {value} ETH at most"),
        feature(
            "amount_over_in",
            "log10",
            "log10(amount) - in_magnitude_30d.",
            "sees 10^{value} times the amount it usually receives",
        ),
        feature(
            "amount_over_out",
            "log10",
            "log10(amount) - out_magnitude_30d.",
            "sees 10^{value} times the amount it usually pays",
        ),
        feature("amount_of_in_1d", "ratio", "amount / in_amount_1d.", "sees {value} of what it received in a day"),
    ]


def _minor(feature: Callable[..., Feature]) -> list[Feature]:
    """Return what the training data's second source lacks, and what lists tell."""
    return [
        feature("token_in_30d", "transfers", "Token transfers received.", "got {value} token transfers", trained=False),
        feature("token_out_30d", "transfers", "Token transfers sent.", "sent {value} token transfers", trained=False),
        feature("zero_in_30d", "calls", "Transactions of value 0 received.", "got {value} calls", trained=False),
        feature("zero_out_30d", "calls", "Transactions of value 0 sent.", "made {value} calls", trained=False),
        feature("failed_30d", "transactions", "Failed transactions sent.", "sent {value} failing ones", trained=False),
        feature("approvals_30d", "calls", "Approvals and permits sent.", "granted {value} approvals", trained=False),
        feature(
            "exposure_direct",
            "share",
            "Share of recent receipts (30d) that came from flagged addresses; NaN without a list or receipts.",
            "got {value} of its recent receipts from flagged addresses",
            trained=False,
        ),
        feature(
            "exposure_passed",
            "share",
            "Share of recent receipts (30d) that flagged addresses passed on through others.",
            "got {value} of its recent receipts from flagged addresses through others",
            trained=False,
        ),
    ]


def _pair() -> list[Feature]:
    return [
        Feature("pair_count", "payments", "Earlier payments of this sender to this recipient.", "{value} before it"),
        Feature("pair_amount", "ether", "Amount of those payments.", "{value} ETH were paid to this recipient before"),
        Feature("pair_seconds", "s", "Since the pair's last contact; NaN if none.", "the pair met {value} s ago"),
        Feature("reverse_count", "payments", "Earlier payments the other way.", "{value} payments came back before"),
        Feature("reverse_amount", "ether", "Amount the other way.", "{value} ETH came back before"),
        Feature("reverse_seconds", "s", "Since the last contact the other way; NaN if none.", "{value} s since then"),
        Feature(
            "to_imitates",
            "accounts",
            "Earlier recipients of the sender that share first and last four hex digits with this other recipient.",
            "the recipient looks like {value} earlier recipient(s) of the sender, but is another address",
            False,
        ),
        Feature(
            "from_imitates",
            "accounts",
            "Earlier recipients of the recipient that look like this sender.",
            "the sender looks like {value} address(es) the recipient paid before, but is another address",
            False,
        ),
    ]


TRANSACTION_FEATURES = tuple(_transaction())
SENDER_FEATURES = tuple(_side("from", "sender"))
RECIPIENT_FEATURES = tuple(_side("to", "recipient"))
PAIR_FEATURES = tuple(_pair())
FEATURES = TRANSACTION_FEATURES + SENDER_FEATURES + RECIPIENT_FEATURES + PAIR_FEATURES
N_FEATURES = len(FEATURES)

SENDER_START = len(TRANSACTION_FEATURES)
RECIPIENT_START = SENDER_START + len(SENDER_FEATURES)
PAIR_START = RECIPIENT_START + len(RECIPIENT_FEATURES)

_INDEX = {feature.name: i for i, feature in enumerate(FEATURES)}

KERNEL_VERSION = 4
"""Raised whenever the kernel computes a column differently under the same name."""

FINGERPRINT = hashlib.sha256(
    repr((KERNEL_VERSION, [(feature.name, feature.unit, feature.meaning) for feature in FEATURES])).encode()
).hexdigest()[:16]
"""16 hex digits; a model trained on another table is refused."""


def index(name: str) -> int:
    """Return the column of a feature.

    >>> FEATURES[index("to_senders")].unit
    'accounts'
    """
    return _INDEX[name]


def side_index(name: str) -> int:
    """Return the position of a feature inside either side's block, by its name without `from_` or `to_`."""
    return _INDEX[f"from_{name}"] - SENDER_START


def markdown() -> str:
    """Return the table of docs/features.md."""
    rows = ["| # | feature | unit | meaning | trained |", "| ---: | --- | --- | --- | --- |"]
    rows += [
        f"| {i} | `{f.name}` | {f.unit} | {f.meaning} | {'yes' if f.trained else 'no'} |"
        for i, f in enumerate(FEATURES)
    ]
    return "\n".join(rows)
