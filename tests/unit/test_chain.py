"""Order and reorganisations from headers alone."""

import msgspec
import pytest

from features.errors import NodeError
from service import chain
from service.chain import Checkpoint, Header, Place

TAIL = tuple(Place(number, f"0x{number:064x}", 1_700_000_000 + number) for number in range(5, 10))
DONE = Checkpoint(1, 2, TAIL)


def holding(**replaced: str | None) -> dict[int, str | None]:
    """Return what a node holds, by number: the tail's blocks but for those replaced."""
    return {place.number: place.hash for place in TAIL} | {int(name[1:]): to for name, to in replaced.items()}


def test_block_joins_its_parent_only() -> None:
    """The next number with the tip's hash as its parent; a first block of a fresh start joins nothing."""
    child = Header(10, "0xa", TAIL[-1].hash, 0)

    assert DONE.joins(child)
    assert not DONE.joins(child._replace(number=11))
    assert not DONE.joins(child._replace(parent_hash="0xb"))
    assert Checkpoint(1, 7, ()).joins(Header(7, "0xa", "0xb", 0))
    assert not Checkpoint(1, 7, ()).joins(Header(8, "0xa", "0xb", 0))


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (holding(), 0),
        (holding(_9="0xb"), 1),
        (holding(_9="0xb", _8="0xc", _7="0xd"), 3),
        (holding(_9=None, _8="0xc"), 2),
        (holding(_9=None, _8=None), 0),
        (holding(_9=None, _8=None, _7=None, _6=None, _5=None), 0),
    ],
)
def test_orphaned_is_what_the_node_contradicts(node: dict[int, str | None], expected: int) -> None:
    """Blocks above the newest common one; a node that has fewer blocks and no other ones is only behind."""
    assert chain.n_orphaned(DONE, node.__getitem__) == expected


def test_reorganisation_below_the_memory_is_an_alarm() -> None:
    """Nothing common is left and more was published than is remembered."""
    node = dict.fromkeys(range(5, 10), "0xb")

    with pytest.raises(NodeError, match="below block 5, deeper than the 4 blocks") as raised:
        chain.n_orphaned(DONE, node.__getitem__)
    assert raised.value.fault == "deep_reorg"
    assert chain.n_orphaned(Checkpoint(1, 5, TAIL), node.__getitem__) == 5


def test_announcements_name_the_newest_first() -> None:
    """Each says which block of which chain is taken back, and nothing else."""
    found = [msgspec.json.decode(each) for each in chain.announcements(DONE, 2)]

    assert found == [
        {
            "type": "orphaned_block",
            "chain_id": 1,
            "block_number": place.number,
            "block_hash": place.hash,
            "block_timestamp": place.timestamp,
        }
        for place in (TAIL[-1], TAIL[-2])
    ]
    assert chain.announcements(DONE, 0) == []


def test_checkpoint_is_what_it_was_after_json() -> None:
    """And remembers one block more than may be taken back."""
    after = DONE.after([Header(10, "0xa", TAIL[-1].hash, 7)], depth_max=3)

    assert after.tail == (*TAIL[-3:], Place(10, "0xa", 7))
    assert chain.decode(chain.encode(after)) == after
    assert (after.next, after.without(2).next, Checkpoint(1, 4, ()).next) == (11, 9, 4)
