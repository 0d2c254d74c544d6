"""The seam of ADR 7: transactions of several inputs and outputs fit record, kernel and scorer as they are."""

import hashlib
from typing import NamedTuple

import numpy as np

from features.accounts import Accounts
from features.transaction import WEI_PER_ETHER, Transaction, pack, records
from models import registry
from models.scorer import Scorer

NOBODY = "0x" + "00" * 20
SATOSHI = 10**8


class Coin(NamedTuple):
    """An output, spent as an input or made: its script and what it holds in satoshi."""

    script: str
    value: int


class Payment(NamedTuple):
    """A transaction as Bitcoin Core's `getblock` tells it with verbosity 3."""

    id: str
    inputs: list[Coin]
    outputs: list[Coin]


def p2pkh(who: str) -> str:
    return "76a914" + who * 20 + "88ac"


def p2wpkh(who: str) -> str:
    return "0014" + who * 20


def p2sh(who: str) -> str:
    return "a914" + who * 20 + "87"


def p2wsh(who: str) -> str:
    return "0020" + who * 32


def p2tr(who: str) -> str:
    return "5120" + who * 32


OP_RETURN = "6a" + "14" + "00" * 20

WITH_CHANGE = Payment(
    "a1" * 32, [Coin(p2wpkh("01"), 700_000)], [Coin(p2tr("02"), 450_000), Coin(p2wpkh("01"), 249_000)]
)
CONSOLIDATION = Payment(
    "a2" * 32,
    [Coin(p2pkh("03"), 10_000), Coin(p2sh("04"), 90_000), Coin(p2pkh("05"), 90_000)],
    [Coin(p2wsh("06"), 185_000)],
)
BATCH = Payment(
    "a3" * 32,
    [Coin(p2wpkh("07"), 5 * SATOSHI), Coin(p2wpkh("08"), SATOSHI)],
    [
        *(Coin(p2pkh(f"{n:02x}"), 1_000_000 + n) for n in range(16, 216)),
        Coin(p2wpkh("09"), 390_000_000),
        Coin(OP_RETURN, 0),
    ],
)
COINBASE = Payment("a4" * 32, [], [Coin(p2wpkh("0a"), 312_500_000), Coin(OP_RETURN, 0)])
PAYMENTS = [WITH_CHANGE, CONSOLIDATION, BATCH, COINBASE]


def account(script: str) -> str:
    """Return the account that a script stands for."""
    return "0x" + hashlib.sha256(bytes.fromhex(script)).hexdigest()[:40]


def movements(payment: Payment, *, place: int) -> list[Transaction]:
    """Return a payment's records, one for each output that goes to somebody else."""
    own = {coin.script for coin in payment.inputs}
    sender = NOBODY
    if payment.inputs:
        sender = account(max(payment.inputs, key=lambda coin: coin.value).script)
    return [
        Transaction(
            type="transaction",
            hash="0x" + payment.id,
            log_index=n,
            chain_id=0,
            block_number=840_000,
            block_hash="0x" + "00" * 32,
            block_timestamp=1_713_571_767,
            transaction_index=place,
            from_address=sender,
            to_address=account(coin.script),
            value=coin.value,
        )
        for n, coin in enumerate(payment.outputs)
        if coin.script not in own and not coin.script.startswith("6a")
    ]


def test_every_coin_goes_somewhere_once() -> None:
    """What is paid, kept as change and left as the fee is what was spent."""
    fees = []
    for payment in PAYMENTS[:3]:
        paid = sum(movement.value for movement in movements(payment, place=1))
        kept = sum(coin.value for coin in payment.outputs if coin.script in {each.script for each in payment.inputs})
        fees.append(sum(coin.value for coin in payment.inputs) - paid - kept)

    assert fees == [1_000, 5_000, 9_976_900]
    assert [len(movements(payment, place=0)) for payment in PAYMENTS] == [1, 1, 201, 1]


def test_identities_are_unique_and_senders_the_same_everywhere() -> None:
    """Hash and output tell records apart; the largest input, the first of equals, is the sender."""
    found = [movement for place, payment in enumerate(PAYMENTS) for movement in movements(payment, place=place)]

    assert len({movement.id for movement in found}) == len(found)
    senders = {movement.hash[2:4]: movement.from_address for movement in found}
    assert senders == {
        "a1": account(p2wpkh("01")),
        "a2": account(p2sh("04")),
        "a3": account(p2wpkh("07")),
        "a4": NOBODY,
    }


def test_kernel_and_scorer_take_them_as_they_are() -> None:
    """Each record is 80 bytes, makes both sides part of the past, and gets a margin, alone as in a batch."""
    found = [movement for place, payment in enumerate(PAYMENTS) for movement in movements(payment, place=place)]
    packed = [pack(movement) for movement in found]
    scorer = Scorer.load(registry.model_path(""))
    together = Accounts(accounts_max=1_024, pairs_max=2_048)
    alone = Accounts(accounts_max=1_024, pairs_max=2_048)

    _, _, margins = scorer.score(together, records(packed))
    one_by_one = [scorer.score(alone, records([each]))[2][0] for each in packed]

    assert {len(each) for each in packed} == {80}
    assert np.isfinite(margins).all()
    assert margins.tolist() == [float(each) for each in one_by_one]
    assert together.n_accounts == len({side for each in found for side in (each.from_address, each.to_address)})
    # In whole coins a satoshi is 1e-8; today's divisor is ether's, and the chain's own takes its place.
    assert np.frombuffer(packed[0], dtype=np.float64)[6] == 450_000 / WEI_PER_ETHER
