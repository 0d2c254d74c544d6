"""What the journal takes back leaves no trace: the table is the bytes of one that never saw the orphaned blocks."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.accounts import Accounts
from features.errors import ReorgError, StateError
from features.journal import FORGOTTEN_MAX, Journal
from features.transaction import Transaction
from tests.property.test_features import drawn, examples, listed, packed

DEPTH = 32
STREAM = drawn(3_000, n_addresses=300)
"""In 64 slots and 64 pairs nearly every one of them evicts something."""


class Orphaned(NamedTuple):
    """An announcement."""

    number: int
    hash: str


Event = Transaction | Orphaned


def table(*, is_journaled: bool, n_transactions: int = 4_096) -> Accounts:
    """Return a table with lists that is nearly always full."""
    return listed(accounts_max=64, pairs_max=64, undo_transactions=n_transactions if is_journaled else 0)


def bits(accounts: Accounts) -> dict[str, bytes]:
    """Return every byte that is saved of a table, the journal apart."""
    return {name: array.tobytes() for name, array in accounts.arrays().items() if not name.startswith("undo")}


class Chain:
    """A chain that grows and is reorganised, as the stream of one partition tells it."""

    def __init__(self, *, reach: int = DEPTH) -> None:
        self._transactions = itertools.cycle(STREAM)
        self._hashes = itertools.count(1)
        self._reach = reach
        self.blocks: list[tuple[int, str, list[Transaction]]] = []
        self.events: list[Event] = []

    def grow(self, n: int) -> None:
        """Add a block of n transactions."""
        number = self.blocks[-1][0] + 1 if self.blocks else 100
        self.add(number, f"0x{next(self._hashes):064x}", [next(self._transactions) for _ in range(n)])

    def add(self, number: int, block_hash: str, transactions: list[Transaction]) -> None:
        """Add a block with these transactions."""
        inside = [msgspec.structs.replace(tx, block_number=number, block_hash=block_hash) for tx in transactions]
        self.blocks.append((number, block_hash, inside))
        self.events += inside

    def shrink(self, n: int) -> list[tuple[int, str, list[Transaction]]]:
        """Announce the newest n blocks as orphaned, and return them, the oldest first."""
        gone = [self.blocks.pop() for _ in range(min(n, len(self.blocks)))]
        self.events += [Orphaned(number, block_hash) for number, block_hash, _ in gone]
        return gone[::-1]

    def restore(self, gone: list[tuple[int, str, list[Transaction]]]) -> None:
        """Add orphaned blocks again: the chain has changed its mind twice."""
        for number, block_hash, transactions in gone:
            self.add(number, block_hash, transactions)

    @property
    def surviving(self) -> list[Transaction]:
        """The transactions of the chain as it is."""
        return [tx for _, _, transactions in self.blocks for tx in transactions]


def batches(events: list[tuple[int, Event]], sizes: Iterator[int]) -> Iterator[list[tuple[int, Event]]]:
    """Split events, each with its partition, into runs of transactions and single announcements."""
    run: list[tuple[int, Event]] = []
    size = next(sizes)
    for event in events:
        if isinstance(event[1], Orphaned) or len(run) >= size:
            if run:
                yield run
            run, size = [], next(sizes)
        if isinstance(event[1], Orphaned):
            yield [event]
        else:
            run.append(event)
    if run:
        yield run


class Follower:
    """A journaled table that follows a stream, and what it scored and took back."""

    def __init__(self, *, n_partitions: int = 1, depth: int = DEPTH, n_transactions: int = 4_096) -> None:
        self.accounts = table(is_journaled=True, n_transactions=n_transactions)
        self.journal = Journal(self.accounts, chain_id=1, depth=depth, n_partitions=n_partitions)
        self.rows: list[np.ndarray] = []
        self.taken: list[bytes] = []
        self.n_skipped = 0

    def follow(self, events: list[tuple[int, Event]], sizes: Iterator[int]) -> None:
        for batch in batches(events, sizes):
            partition, event = batch[0]
            if isinstance(event, Orphaned):
                self.announce(event, partition)
                continue
            kept = [tx for partition, tx in batch if not self.journal.is_orphaned(tx, partition)]  # type: ignore[arg-type]
            self.n_skipped += len(batch) - len(kept)
            self.observe(kept)  # type: ignore[arg-type]

    def announce(self, event: Orphaned, partition: int = 0) -> None:
        taken = self.journal.announce(chain_id=1, number=event.number, block_hash=event.hash, partition=partition)
        self.taken += [each.key for each in taken or ()]

    def observe(self, transactions: list[Transaction]) -> None:
        if transactions:
            self.rows += list(self.accounts.score_rows(packed(transactions))[0])
        self.journal.note(transactions, [key(tx) for tx in transactions], bytes(len(transactions)))


def key(tx: Transaction) -> bytes:
    """Name a transaction within its block, which tells publications of it apart."""
    return f"{tx.block_hash}/{STREAM_PLACES[packed([tx]).tobytes()]}".encode()


STREAM_PLACES = {packed([tx]).tobytes(): place for place, tx in enumerate(STREAM)}

MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("grow"), st.lists(st.integers(0, 5), min_size=1, max_size=20)),
        st.tuples(st.just("reorg"), st.integers(1, DEPTH)),
        st.tuples(st.just("return"), st.integers(1, 6)),
    ),
    min_size=2,
    max_size=12,
)
SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def chain_of(moves: list[tuple[str, object]]) -> Chain:
    """Return a chain that makes drawn moves: it grows, is reorganised, or leaves a branch and comes back to it."""
    chain = Chain()
    for move, size in moves:
        if move == "grow":
            for n in size:  # type: ignore[attr-defined]
                chain.grow(n)
        else:
            gone = chain.shrink(size)  # type: ignore[arg-type]
            chain.grow(3)
            if move == "return":
                chain.shrink(1)
                chain.restore(gone)
    return chain


@examples(150)
@given(MOVES, SIZES)
def test_reorganised_table_is_the_table_that_never_saw_the_branch(moves: list, sizes: list[int]) -> None:
    """Over drawn reorganisations, repeated and nested, table and later rows are those of the surviving chain alone."""
    chain = chain_of(moves)
    follower, expected = Follower(depth=200), table(is_journaled=False)
    follower.follow([(0, event) for event in chain.events], itertools.cycle(sizes))

    rows, _ = expected.score_rows(packed(chain.surviving) if chain.surviving else packed(STREAM[:1])[:0])
    assert bits(follower.accounts) == bits(expected)
    probe = packed(STREAM[-200:])
    assert follower.accounts.score_rows(probe)[0].tobytes() == expected.score_rows(probe)[0].tobytes()
    n_since = next((i for i, each in enumerate(reversed(chain.events)) if isinstance(each, Orphaned)), len(rows))
    last = [row.tobytes() for row in follower.rows[len(follower.rows) - n_since :]]
    assert last == [row.tobytes() for row in rows[len(rows) - n_since :]]


@examples(100)
@given(MOVES, SIZES, st.data())
def test_partitions_out_of_step_leave_no_trace_either(moves: list, sizes: list[int], data: st.DataObject) -> None:
    """Over two or three partitions in any step, the table is that of the same order without the orphaned ones."""
    n = data.draw(st.integers(2, 3))
    queues: list[list[Event]] = [[] for _ in range(n)]
    chain = chain_of(moves)
    for i, event in enumerate(chain.events):
        for queue in queues if isinstance(event, Orphaned) else [queues[i % n]]:
            queue.append(event)
    order = []
    strides = itertools.cycle(data.draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(1, 60)), min_size=4)))
    places = [0] * n
    while any(place < len(queue) for place, queue in zip(places, queues, strict=True)):
        partition, stride = next(strides)
        if places[partition] == len(queues[partition]):
            partition = next(i for i in range(n) if places[i] < len(queues[i]))
        found = queues[partition][places[partition] : places[partition] + stride]
        places[partition] += len(found)
        order += [(partition, event) for event in found]

    follower, expected = Follower(n_partitions=n, depth=200), table(is_journaled=False)
    follower.follow(order, itertools.cycle(sizes))

    # By identity: a block that was orphaned and came back holds the same transactions in other objects.
    alive = {id(tx) for tx in chain.surviving}
    surviving = [event for _, event in order if id(event) in alive]
    if surviving:
        expected.score_rows(packed(surviving))  # type: ignore[arg-type]
    assert bits(follower.accounts) == bits(expected)
    assert not follower.journal.is_split
    n_orphaned = sum(not isinstance(event, Orphaned) for _, event in order) - len(surviving)
    assert len(follower.taken) + follower.n_skipped == n_orphaned


@pytest.mark.parametrize("depth", range(1, DEPTH + 1))
def test_every_depth_up_to_the_limit(depth: int) -> None:
    """A reorganisation of each depth from 1 to the journal's own limit is taken back, after more blocks than that."""
    chain = Chain()
    for i in range(2 * DEPTH):
        chain.grow(1 + i % 3)
    chain.shrink(depth)
    chain.grow(4)
    follower, expected = Follower(), table(is_journaled=False)
    follower.follow([(0, event) for event in chain.events], itertools.cycle([7]))

    expected.score_rows(packed(chain.surviving))
    assert bits(follower.accounts) == bits(expected)


def test_deeper_block_is_refused_and_nothing_changes() -> None:
    """A block below the depth is refused with the limit, and the table stays as it is."""
    chain = Chain()
    for _ in range(DEPTH + 1):
        chain.grow(2)
    follower = Follower()
    follower.follow([(0, event) for event in chain.events], itertools.cycle([7]))
    before = bits(follower.accounts)
    number, block_hash, _ = chain.blocks[0]

    with pytest.raises(ReorgError, match=r"block 100 .* from block 101 on, at most 32 blocks \(reorg_depth_max\)"):
        follower.announce(Orphaned(number, block_hash))

    assert bits(follower.accounts) == before
    assert follower.journal.n_blocks == DEPTH


def test_full_log_reaches_fewer_blocks_back() -> None:
    """Where blocks hold more than was set aside, the oldest are forgotten, shown, and refused; the newest are not."""
    chain = Chain()
    for _ in range(20):
        chain.grow(10)
    follower = Follower(n_transactions=64)
    follower.follow([(0, event) for event in chain.events], itertools.cycle([9]))
    n_blocks = follower.journal.n_blocks

    assert 3 <= n_blocks <= 6
    number, block_hash, _ = chain.blocks[-n_blocks - 1]
    with pytest.raises(ReorgError, match=f"block {number} "):
        follower.announce(Orphaned(number, block_hash))
    for gone in chain.shrink(n_blocks)[::-1]:
        follower.announce(Orphaned(gone[0], gone[1]))
    expected = table(is_journaled=False)
    expected.score_rows(packed(chain.surviving))
    assert bits(follower.accounts) == bits(expected)


def test_height_out_of_proportion_is_forgotten_alone() -> None:
    """A block that claims height 2^64 - 1 is refused once the log has lost it; those around it still go back."""
    chain, stray = Chain(), Orphaned(2**64 - 1, "0x" + "ee" * 32)
    for i in range(20):
        if i == 5:
            chain.events += [msgspec.structs.replace(STREAM[0], block_number=stray.number, block_hash=stray.hash)]
        chain.grow(10)
    before, after = Follower(n_transactions=64), Follower(n_transactions=64)
    before.follow([(0, event) for event in chain.events], itertools.cycle([9]))
    after.accounts.restore(before.accounts.arrays())

    for follower in (before, after):
        with pytest.raises(ReorgError, match=f"block {stray.number} "):
            follower.announce(stray)
        with pytest.raises(ReorgError, match=f"block {chain.blocks[5][0]} "):
            follower.announce(Orphaned(*chain.blocks[5][:2]))
        follower.announce(Orphaned(*chain.blocks[-1][:2]))
        assert len(follower.taken) == 10


def test_many_heights_out_of_proportion_lift_the_floor() -> None:
    """What is remembered of such blocks is bounded; past that the lowest of them is refused, and all below it."""
    follower = Follower(n_transactions=16)
    for i in range(FORGOTTEN_MAX + 100):
        follower.observe([msgspec.structs.replace(STREAM[0], block_number=10**9 - i, block_hash=f"0x{i:064x}")])

    assert len(follower.journal._forgotten) <= FORGOTTEN_MAX
    with pytest.raises(ReorgError, match="block 7 "):
        follower.announce(Orphaned(7, "0x" + "ab" * 32))


def test_block_without_transactions_is_taken_back() -> None:
    """An announced block of which nothing was seen changes nothing."""
    follower = Follower()
    follower.announce(Orphaned(100, "0x" + "ab" * 32))

    assert follower.taken == []
    assert not follower.journal.is_split


def test_foreign_chain_and_unnamed_blocks_are_refused() -> None:
    """What cannot be told apart is refused: another chain's block, and transactions that do not name their block."""
    follower = Follower(n_partitions=2)
    nameless = msgspec.structs.replace(STREAM[0], block_number=7, block_hash=None)
    follower.observe([nameless])

    with pytest.raises(ReorgError, match="is of chain 5, the journal follows chain 1"):
        follower.journal.announce(chain_id=5, number=7, block_hash="0x1", partition=0)
    with pytest.raises(ReorgError, match=r"block 7 .* name no block_hash"):
        follower.announce(Orphaned(7, "0x1"))
    follower.announce(Orphaned(8, "0x2"))
    with pytest.raises(ReorgError, match="names no block_hash: it may belong to the orphaned block 8"):
        follower.journal.is_orphaned(msgspec.structs.replace(nameless, block_number=8), 1)
    assert not follower.journal.is_orphaned(nameless, 1)


@examples(40)
@given(MOVES, SIZES, st.integers(0, 200), st.sampled_from((1_024, 8_192)))
def test_saved_journal_goes_on(moves: list, sizes: list[int], cut: int, n_transactions: int) -> None:
    """A table that was saved and loaded in mid-stream, into a log of another size too, ends as one that never was.

    What the other table held before, as a standby does with the snapshot before, leaves no trace.
    """
    chain = chain_of(moves)
    events: list[tuple[int, Event]] = [(0, event) for event in chain.events]
    first, second = Follower(depth=200), Follower(depth=200, n_transactions=n_transactions)
    first.follow(events[:cut], itertools.cycle(sizes))
    second.follow(events[: cut // 2], itertools.cycle(sizes))

    second.accounts.restore({name: array.copy() for name, array in first.accounts.arrays().items()})
    second.follow(events[cut:], itertools.cycle(sizes))

    expected = table(is_journaled=False)
    if chain.surviving:
        expected.score_rows(packed(chain.surviving))
    assert bits(second.accounts) == bits(expected)


def test_table_saved_without_a_journal_refuses_what_it_cannot_know() -> None:
    """Blocks that may have been seen before the journal began are refused, later ones are taken back."""
    chain, plain, follower = Chain(), table(is_journaled=False), Follower(depth=2)
    plain.score_rows(packed(STREAM[:50]))
    follower.accounts.restore(plain.arrays())

    with pytest.raises(ReorgError, match="it holds nothing yet"):
        follower.announce(Orphaned(100, "0x" + f"{1:064x}"))
    for _ in range(5):
        chain.grow(3)
    follower.follow([(0, event) for event in chain.events], itertools.cycle([4]))
    with pytest.raises(ReorgError, match="from block 103 on"):
        follower.announce(Orphaned(102, chain.blocks[2][1]))
    follower.announce(Orphaned(104, chain.blocks[4][1]))
    assert len(follower.taken) == 3


def test_damaged_journal_is_refused() -> None:
    """A journal whose words lead outside of the table, or that is not whole, is no journal."""
    follower = Follower()
    chain = Chain()
    chain.grow(5)
    follower.follow([(0, event) for event in chain.events], itertools.cycle([5]))
    arrays = {name: array.copy() for name, array in follower.accounts.arrays().items()}

    for name, broken in (
        ("undo_words", arrays["undo_words"] + np.uint64(1 << 40)),
        ("undo_frames", arrays["undo_frames"] + 1),
        ("undo_frames", arrays["undo_frames"][1:]),
        ("undo_index", arrays["undo_index"][:-1]),
    ):
        with pytest.raises(StateError, match="saved journal"):
            Follower().accounts.restore(arrays | {name: broken})


def test_table_with_a_journal_does_not_merge() -> None:
    """What a merge takes over could not be taken back."""
    with pytest.raises(StateError, match="journal cannot merge"):
        Follower().accounts.merge(table(is_journaled=False))
