"""The simulated stream: the same for the same seed, in the order of time, in ethereum-etl's form, true to its truth."""

import itertools
import json
from collections import Counter, defaultdict

import pytest

from features.screening import FLAGGED
from features.transaction import method_class
from service import frauds, simulator
from service.codec import Decoder
from service.simulator import BLOCK_SECONDS, START, Simulated

SEED = 11
N = 20_000


@pytest.fixture(scope="module")
def stream() -> list[Simulated]:
    """The first days of one seed."""
    return list(itertools.islice(simulator.stream(SEED), N))


def decoded(simulated: Simulated) -> dict:
    return json.loads(simulated.value)


def test_same_seed_gives_the_same_bytes_and_another_seed_gives_others():
    """The bytes depend on the seed alone."""
    assert simulator.messages(SEED, 500) == simulator.messages(SEED, 500)
    assert simulator.messages(SEED, 500) != simulator.messages(SEED + 1, 500)


def test_a_longer_stream_begins_with_the_shorter_one(stream):
    """How much is asked for does not change what comes first."""
    assert simulator.messages(SEED, 700) == [simulated.value for simulated in stream[:700]]
    assert list(itertools.islice(simulator.stream(SEED), 700)) == stream[:700]


def test_blocks_come_in_the_order_of_time_12_seconds_apart(stream):
    """Event time never runs backwards, and number and time of a block go together."""
    messages = [decoded(simulated) for simulated in stream]
    times = [message["block_timestamp"] for message in messages]

    assert times == sorted(times)
    assert times == [START + (m["block_number"] - simulator.FIRST_BLOCK + 1) * BLOCK_SECONDS for m in messages]
    assert times == [simulated.timestamp for simulated in stream]


def test_messages_have_the_spacing_and_the_keys_of_json_dumps(stream):
    """Every message is what Python's own encoder, which ethereum-etl uses, would have written."""
    for simulated in stream:
        assert json.dumps(decoded(simulated)).encode() == simulated.value


def test_every_message_decodes_and_has_its_transactions_id(stream):
    """The service accepts all of the stream, and knows each message by the id that the truth is kept under."""
    decoder = Decoder(chain_id=1, message_bytes_max=1_048_576)

    assert [decoder.decode(simulated.value).id for simulated in stream] == [simulated.id for simulated in stream]
    assert len({simulated.id for simulated in stream}) == len(stream)


def test_nonces_of_an_account_count_up(stream):
    """Each sender's transactions are numbered without a gap."""
    nonces = defaultdict(list)
    for message in map(decoded, stream):
        if message["type"] == "transaction":
            nonces[message["from_address"]].append(message["nonce"])

    assert all(numbers == list(range(len(numbers))) for numbers in nonces.values())


def test_every_kind_of_fraud_happens_and_most_traffic_is_ordinary(stream):
    """Each kind has enough transactions for a recall, and together they are a few percent."""
    kinds = Counter(simulated.kind for simulated in stream)

    assert set(kinds) == {None, *frauds.LISTS}
    assert min(kinds.values()) >= 30
    assert 0.01 < 1 - kinds[None] / N < 0.08


def test_both_messages_of_a_token_transfer_have_the_same_truth(stream):
    """A token transfer is part of a fraud exactly when its transaction is."""
    kinds = {simulated.id: simulated.kind for simulated in stream}

    assert [
        simulated.id
        for simulated in stream
        if ":" in simulated.id and simulated.kind != kinds[simulated.id.split(":")[0]]
    ] == []


def test_poisoned_victims_pay_look_alikes_of_those_they_paid_before(stream):
    """Whoever a poisoned victim pays shares the first and last four hex digits with an earlier counterparty."""
    counterparties = defaultdict(set)
    fakes, alike = set(), []
    for simulated in stream:
        message = decoded(simulated)
        sender, to = message["from_address"], message["to_address"]
        # What a look-alike has received moves on to an address that resembles nothing.
        if simulated.kind == frauds.POISONING and message["value"] > 10**16 and sender not in fakes:
            fakes.add(to)
            alike.append(any(one != to and one[:6] + one[-4:] == to[:6] + to[-4:] for one in counterparties[sender]))
        elif simulated.kind is None and to is not None:
            counterparties[sender].add(to)

    assert len(alike) >= 10
    assert all(alike)


def test_approval_drains_take_by_every_way_of_approval(stream):
    """Drains use approve, permit and setApprovalForAll, and the tokens then leave the victim's account."""
    inputs = [decoded(s).get("input", "") for s in stream if s.kind == frauds.DRAIN]
    classes = {method_class(text[:10]) for text in inputs if len(text) > 10}

    assert classes == {method_class(selector) for selector in ("0x095ea7b3", "0xd505accf", "0xa22cb465", "0xa9059cbb")}


def test_flagged_addresses_take_part_in_fraud_and_become_known_later(stream):
    """A list never names an address before the fraud it belongs to has begun."""
    flagged = simulator.flagged(simulator.inhabited(SEED), N)
    first_seen: dict[str, int] = {}
    for one in stream:
        message = decoded(one)
        for address in (message["from_address"], message["to_address"]):
            if one.kind is not None and address is not None:
                first_seen.setdefault(address, one.timestamp)

    seen = [entry for entry in flagged if entry.address in first_seen]
    assert len(seen) >= 20
    assert {entry.list for entry in flagged} <= FLAGGED
    # A list learns of an account when the fraud is under way: at least a block after its scheme began.
    assert all(entry.known_from > START for entry in flagged)


def test_look_alikes_share_four_digits_at_each_end_and_differ():
    """A look-alike is another address that a shortened display cannot tell apart."""
    world = simulator.World(SEED)
    address = world.account()
    fake = frauds.look_alike(world, address)

    assert (fake[:6], fake[-4:], len(fake)) == (address[:6], address[-4:], 42)
    assert fake != address
