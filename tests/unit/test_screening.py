"""Lists: how they are read, what is refused and where, and whom the kernel finds on them."""

from pathlib import Path

import numpy as np
import pytest

from features import screening
from features.accounts import Accounts
from features.errors import ScreeningError
from features.transaction import pack, records
from tests.transactions import transaction

T = 1_500_000_000
HEADER = "address,list,known_from\n"
BAD, MIXER, CLEAN = ("0x" + byte * 20 for byte in ("ba", "3c", "c1"))


def written(folder: Path, *lines: str) -> Path:
    """Write a list file."""
    path = folder / "list.csv"
    path.write_text(HEADER + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def hits(lists: screening.Screening, sender: str, recipient: str | None, time: int) -> tuple[list[str], list[str]]:
    """Return the lists that the kernel finds the sender and the recipient on."""
    accounts = Accounts(accounts_max=64, pairs_max=64, screening=lists)
    (found,) = accounts.score_rows(records([pack(transaction(sender, recipient, 1, time))]))[1].tolist()
    return lists.lists(found & 0xFFFF), lists.lists(found >> 16)


def test_sender_hits_stand_in_the_low_half_and_recipient_hits_in_the_high(tmp_path: Path):
    """Each side of a transaction has its own half of the hit, whichever of several lists it stands on."""
    path = written(tmp_path, f"{BAD},sanctioned,", f"{BAD},scam,0", f"{MIXER},mixer,{T}", f"{CLEAN},exchange,1")
    lists = screening.read([path])

    assert lists.names == ("exchange", "mixer", "sanctioned", "scam")
    assert hits(lists, BAD, MIXER, T) == (["sanctioned", "scam"], ["mixer"])
    assert hits(lists, MIXER, BAD, T) == (["mixer"], ["sanctioned", "scam"])
    assert hits(lists, CLEAN, None, T) == (["exchange"], [])
    assert hits(lists, "0x" + "00" * 20, "0x" + "ff" * 20, T) == ([], [])


def test_address_is_listed_from_the_time_it_was_known(tmp_path: Path):
    """A transaction before `known_from` has no hit, one at that second has; lists count each from its own time."""
    lists = screening.read([written(tmp_path, f"{BAD},sanctioned,{T}", f"{BAD},scam,{T + 10}")])

    assert hits(lists, BAD, CLEAN, T - 1) == ([], [])
    assert hits(lists, BAD, CLEAN, T) == (["sanctioned"], [])
    assert hits(lists, BAD, CLEAN, T + 10) == (["sanctioned", "scam"], [])


def test_repeated_entry_keeps_the_earliest_time(tmp_path: Path):
    """The same address on the same list twice, in two files and two spellings, is one entry of the earlier time."""
    first = written(tmp_path, f"{BAD},scam,{T}")
    second = tmp_path / "second.csv"
    second.write_text(f"note,known_from,list,address\nx,{T - 5}, scam ,{BAD.upper().replace('0X', '0x')}\n")

    for paths in ([first, second], [second, first]):
        lists = screening.read(paths)
        assert (lists.n_entries, lists.names) == (1, ("scam",))
        assert hits(lists, BAD, CLEAN, T - 5) == (["scam"], [])


def test_flagged_lists_are_the_kinds_that_taint():
    """An exchange on a list taints nobody; sanctions, scams, phishing, stolen funds and mixers do."""
    names = ("exchange", "mixer", "phishing", "sanctioned", "scam", "stolen", "tag")
    lists = screening.build((BAD, name, 0) for name in names)

    assert lists.lists(lists.flagged_bits) == ["mixer", "phishing", "sanctioned", "scam", "stolen"]
    assert screening.build([(BAD, "exchange", 0)]).flagged_bits == 0


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 100, 1000, 4096])
def test_no_table_is_more_than_half_full(n: int):
    """The lookup's table has at least twice its entries, so that a probe for an unlisted address ends."""
    lists = screening.build((f"0x{i:040x}", "tag", T) for i in range(n))

    assert len(lists.entries) & (len(lists.entries) - 1) == 0
    assert np.count_nonzero(lists.entries[:, 3]) == n <= len(lists.entries) / 2
    assert hits(lists, "0x" + "ee" * 20, None, T) == ([], [])
    if n:
        assert all(hits(lists, f"0x{i:040x}", None, T) == (["tag"], []) for i in (0, n // 2, n - 1))


def test_sixteen_lists_fit_and_seventeen_are_refused():
    """A half of a hit has 16 bits; the seventeenth list is an error that names them all."""
    entries = [(BAD, f"list {i:02}", 0) for i in range(17)]
    lists = screening.build(entries[:16])

    assert hits(lists, BAD, BAD, T) == (list(lists.names), list(lists.names))
    with pytest.raises(ScreeningError, match=r"17 lists, at most 16 fit: list 00, .*list 16"):
        screening.build(entries)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("0x1234,scam,0", "address is '0x1234', not 0x and 40 hex digits"),
        (f"{BAD[:-1]}g,scam,0", "not 0x and 40 hex digits"),
        (f"{BAD[2:]}ab,scam,0", "not 0x and 40 hex digits"),
        (f"{BAD[:-1]}٣,scam,0", "not 0x and 40 hex digits"),
        (",scam,0", "address is '', not"),
        (f"{BAD}", "the list has no name"),
        (f"{BAD}, ,0", "the list has no name"),
        (f"{BAD},scam,-1", "known_from is '-1', not Unix seconds"),
        (f"{BAD},scam,1.5", "known_from is '1.5', not Unix seconds"),
        (f"{BAD},scam,2019-01-01", "known_from is '2019-01-01', not Unix seconds"),
        (f"{BAD},scam,4102444801", "known_from is '4102444801', not Unix seconds up to 4102444800"),
        (f"{BAD},scam,{'9' * 5000}", "not Unix seconds"),
        (f"{BAD},scam,²", "not Unix seconds"),
    ],
)
def test_bad_line_is_named_with_its_place(tmp_path: Path, line: str, complaint: str):
    """A line that holds no address, list or time is an error that names file, line and value, never an entry less."""
    path = written(tmp_path, f"{CLEAN},tag,0", line)

    with pytest.raises(ScreeningError) as caught:
        screening.read([path])

    assert str(caught.value).startswith(f"{path}:3: ")
    assert complaint in str(caught.value)


def test_file_that_is_no_list_is_refused(tmp_path: Path):
    """A missing file, a folder, foreign bytes and a missing column are errors that name the file."""
    foreign = tmp_path / "foreign.csv"
    foreign.write_bytes(b"address,list,known_from\n\xff\xfe\n")
    nameless, empty = tmp_path / "nameless.csv", tmp_path / "empty.csv"
    nameless.write_text("address,name\n")
    empty.touch()
    for path, complaint in (
        (tmp_path / "none.csv", "cannot be read"),
        (tmp_path, "cannot be read"),
        (foreign, "cannot be read"),
        (nameless, "no column list, known_from; a list has address, list"),
        (empty, "no column address, list, known_from"),
    ):
        with pytest.raises(ScreeningError, match=complaint) as caught:
            screening.read([path])
        assert str(caught.value).startswith(str(path))
