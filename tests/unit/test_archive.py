"""Archives as training data: the same rows as a data folder gives, and nothing that was not known in time."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from features import archive, backfill
from features.errors import InputError, UsageError
from models import dataset, labels, spool
from models.dataset import BACKGROUND, TEST_START, VALIDATION_START, Cuts, Records, Source
from models.labels import Labels
from tests.archives import append_label, write_archive, write_labels
from tests.bench import bench_archive
from tests.datafolder import END, START, address, write_folder

DAY = 86_400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data folder."""
    return write_folder(tmp_path_factory.mktemp("data"), n_accounts=60)


@pytest.fixture(scope="module")
def days(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its transactions and token transfers as an archive."""
    return write_archive(folder, tmp_path_factory.mktemp("archive"))


@pytest.fixture
def known(folder: Path, tmp_path: Path) -> Path:
    """Its labels, all known at once."""
    return write_labels(folder, tmp_path / "labels.csv", known_from="2018-01-01")


def rows(records: Records) -> tuple[dataset.Sample, np.ndarray]:
    """Return the sample and the features of its rows."""
    sample = dataset.sample(records)
    return sample, dataset.matrix(records, sample.position)


def same(one: Records, other: Records) -> bool:
    """Say whether two readings give the same rows, targets and features, bit for bit."""
    (a, x), (b, y) = rows(one), rows(other)
    return all(np.array_equal(c, d) for c, d in zip(a, b, strict=True)) and x.tobytes() == y.tobytes()


def test_archive_holds_the_records_of_the_folder_in_order(folder: Path, days: Path, known: Path) -> None:
    """Whatever the order of files and rows in a day, the records come by time, and none is lost or doubled."""
    records = dataset.read(Source(days, known))
    whole = dataset.read(folder)
    expected = whole.packed[~whole.is_background]

    time = records.packed[:, 7]
    assert (time[1:] >= time[:-1]).all()
    assert np.array_equal(time, expected[:, 7])
    assert sorted(map(bytes, records.packed)) == sorted(map(bytes, expected))


def test_archive_gives_the_rows_of_the_folder(folder: Path, days: Path, known: Path) -> None:
    """Labelled rows, their ranks, targets, sources, newness and features are the data folder's, bit for bit."""
    found = []
    for source in (Source(folder), Source(days, known)):
        records = dataset.read(source)
        sample = dataset.sample(records)
        sample = sample.take(sample.account != BACKGROUND)
        found.append((sample, dataset.matrix(records, sample.position)))
    (plain, expected), (archived, features) = found

    for name in ("time", "account", "rank", "is_phishing", "source", "is_new"):
        assert np.array_equal(getattr(archived, name), getattr(plain, name)), name
    assert features.tobytes() == expected.tobytes()


def test_digest_is_of_what_is_learnt_from(days: Path, known: Path, tmp_path: Path) -> None:
    """Two readings agree; another label does not; a label that is known later changes nothing."""
    first = dataset.read(Source(days, known, END + DAY)).digest

    assert dataset.read(Source(days, known, END + DAY)).digest == first
    append_label(known, address(10**6), "phishing", END + 2 * DAY, "A")
    assert dataset.read(Source(days, known, END + DAY)).digest == first
    append_label(known, address(10**6), "phishing", END, "A")
    assert dataset.read(Source(days, known, END + DAY)).digest != first


@pytest.mark.parametrize("known_from", [VALIDATION_START + 1, "2018-07-02", "2018-07-01T02:00:01+02:00", END])
def test_late_label_is_as_if_it_were_not_there(folder: Path, days: Path, tmp_path: Path, known_from: int | str) -> None:
    """As of a time, a label known a second later changes no row, no target, no feature and no digest."""
    few = write_labels(folder, tmp_path / "few.csv", known_from=START)
    many = write_labels(folder, tmp_path / "many.csv", known_from=START)
    stranger = address(10**4 + 5)  # a counterparty, background until somebody names it
    append_label(many, stranger, "phishing", known_from, "A")
    append_label(many, address(0), "normal", known_from, "A")  # a label that is taken back later

    without = dataset.read(Source(days, few, VALIDATION_START))
    late = dataset.read(Source(days, many, VALIDATION_START))

    assert late.labels.n_later == 2
    assert late.digest == without.digest
    assert same(late, without)
    in_time = dataset.read(Source(days, many, END + DAY))
    assert not np.array_equal(in_time.labels.is_phishing, without.labels.is_phishing)


def test_label_counts_from_the_second_it_is_known(days: Path, known: Path) -> None:
    """`known_from` up to `as_of` counts, and of an address's labels the last one of them."""
    stranger = address(10**6)
    append_label(known, stranger, "normal", VALIDATION_START, "")
    append_label(known, stranger, "phishing", VALIDATION_START + 5, "")

    def label(as_of: int) -> list[bool]:
        found = labels.known(labels.read_list(known), as_of)
        words = np.frombuffer(bytes.fromhex(stranger[2:]) + bytes(4), dtype=np.uint64).reshape(1, 3)
        [place] = labels.Finder(found).find(words)
        return found.is_phishing[[place]].tolist() if place >= 0 else []

    assert [label(VALIDATION_START + after) for after in (-1, 0, 4, 5)] == [[], [False], [False], [True]]


def test_later_records_are_as_if_they_were_not_there(days: Path, known: Path) -> None:
    """As of a time the records end with it, inclusively, and the rows are the first ones of all."""
    whole, part = dataset.read(Source(days, known)), dataset.read(Source(days, known, TEST_START))
    n = int((whole.packed[:, 7] <= TEST_START).sum())

    assert 0 < n < len(whole.packed)
    assert np.array_equal(part.packed, whole.packed[:n])
    (a, x), (b, y) = rows(part), rows(whole)
    assert np.array_equal(a.position, b.position[: len(a.position)])
    assert x.tobytes() == y[: len(x)].tobytes()


def test_cuts_move_who_is_new(folder: Path, days: Path, known: Path) -> None:
    """An account is new when it was first seen from the validation period's start on, whatever that is."""
    cuts = Cuts(VALIDATION_START - 60 * DAY, TEST_START - 60 * DAY)

    for source in (Source(folder, cuts=cuts), Source(days, known, cuts=cuts)):
        records = dataset.read(source)
        sample = dataset.sample(records)
        first: dict[int, int] = {}
        packed = records.packed
        names = {bytes(key)[:20]: place for place, key in enumerate(records.labels.key)}
        for record in packed[(packed.view(np.float64)[:, 6] > 0) & ~records.is_background]:
            for side in (bytes(record)[0:20], bytes(record)[24:44]):
                if side in names:
                    first.setdefault(names[side], int(record[7]))
        expected = [a != BACKGROUND and first[a] >= cuts.validation_start for a in sample.account.tolist()]
        assert sample.is_new.tolist() == expected
        assert len(set(expected)) == 2


def test_background_is_unlabelled_traffic(days: Path, known: Path) -> None:
    """Payments between addresses that nobody knows are background, labelled ones never are."""
    records = dataset.read(Source(days, write_few(known), START + 400 * DAY))
    sample = dataset.sample(records)
    background = sample.take(sample.account == BACKGROUND)
    finder = labels.Finder(records.labels)
    sides = [finder.find(records.packed[background.position, i : i + 3]) for i in (0, 3)]

    assert len(background.position) > 100
    assert (np.concatenate(sides) == -1).all()
    assert not background.is_phishing.any()


def write_few(path: Path) -> Path:
    """Leave a list of labels with its first ten lines."""
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:11]))
    return path


def test_background_is_drawn_by_block() -> None:
    """Of many records about as many as wished are drawn, all of a block or none, and the same ones every time."""
    n = 40 * dataset.BACKGROUND_ROWS
    packed = np.zeros((n, 10), dtype=np.uint64)
    packed[:, 0] = np.arange(n)
    packed[:, 7] = START + np.arange(n) // 20
    packed.view(np.float64)[:, 6] = 1.0
    nobody = labels.known([], 0)

    drawn = dataset._draw_background(packed, nobody).reshape(-1, 20)
    assert (drawn.all(axis=1) == drawn.any(axis=1)).all()
    assert drawn.sum() == pytest.approx(dataset.BACKGROUND_ROWS, rel=0.1)
    assert np.array_equal(drawn, dataset._draw_background(packed, nobody).reshape(-1, 20))


def test_bounded_accounts_forget_and_tell(days: Path, known: Path) -> None:
    """With too few accounts the stalest are forgotten, rows change, and the progress says how many."""
    told: list[tuple[str, int, int]] = []
    whole = dataset.read(Source(days, known))
    small = dataset.read(Source(days, known, accounts_max=100))
    sample = dataset.sample(whole)

    def tell(stage: str, n_done: int, n: int) -> None:
        told.append((stage, n_done, n))

    assert (
        dataset.matrix(small, sample.position, report=tell).tobytes()
        != dataset.matrix(whole, sample.position).tobytes()
    )
    assert told[-1][0] == "accounts forgotten beyond 100 in memory"
    assert told[-1][1] > 100


def test_array_beyond_memory_lies_in_a_file() -> None:
    """Beyond the limit of memory an array is mapped, and keeps what was written when its pages were let go."""
    for bytes_max, is_mapped in ((11_999, True), (12_000, False)):
        array = spool.empty(np.float32, width=3, n=1000, bytes_max=bytes_max)
        array[:] = np.arange(3000).reshape(1000, 3)
        spool.release(array)

        assert array.ravel().tolist() == list(range(3000))
        assert array.flags.owndata != is_mapped


@seed(1)
@settings(max_examples=40, deadline=None, database=None)
@given(st.lists(st.integers(0, 50), max_size=6), st.integers(1, 5))
def test_spool_gives_back_what_was_written(sizes: list[int], width: int) -> None:
    """Parts of any size come back as one array, also after its pages were let go."""
    rng = np.random.default_rng(1)
    parts = [rng.integers(0, 2**60, (n, width), dtype=np.uint64) for n in sizes]
    with spool.Spool(np.uint64, width=width, n_max=sum(sizes)) as written:
        for part in parts:
            written.write(part)
        found = written.array()
    spool.release(found)

    assert np.array_equal(found, np.concatenate([np.zeros((0, width), np.uint64), *parts]))


def test_spool_asks_for_room_before_it_writes() -> None:
    """More than the temporary folder can hold is refused with both figures."""
    with pytest.raises(InputError, match=r"bytes free, 8,000,000,000,000,000 needed; TMPDIR"):
        spool.Spool(np.uint64, width=1, n_max=10**15)
    with pytest.raises(InputError, match="needed"):
        spool.empty(np.uint64, width=1, n=10**15, bytes_max=0)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (f"{address(1)[:-1]},phishing,5", r"labels.csv:2: address is '0x.*'; allowed: 0x and 40 hex digits"),
        (f"{address(1)},fraud,2018-01-01", r":2: label is 'fraud'; allowed: phishing, normal"),
        (f"{address(1)},phishing,soon", r":2: known_from is 'soon'; allowed: Unix seconds or an ISO date"),
        (f"{address(1)},phishing,", r":2: known_from is ''"),
        (f"{address(1)},phishing", r":2: known_from is ''"),
        (f"{address(1)},phishing,12", r":2: known_from is '12'"),
        (f"{address(1)},phishing,99999999999999999999999", r":2: known_from is '9+'"),
        (f"{address(1)},phishing,2018-02-30", r":2: known_from is '2018-02-30'"),
        (
            f"{address(1)},phishing,2018-02-03\n{address(1)},normal,2018-02-03",
            r":3: 0x.* has another label for the same time in line 2",
        ),
    ],
)
def test_unsound_label_is_named_with_its_line(tmp_path: Path, line: str, complaint: str) -> None:
    """A line that says nothing sound is an error, never a label left out."""
    path = tmp_path / "labels.csv"
    path.write_text(f"address,label,known_from\n{line}\n")

    with pytest.raises(InputError, match=complaint):
        labels.read_list(path)


def test_list_is_read_as_it_may_be_written(tmp_path: Path) -> None:
    """Checksum spelling, blank sources, quoted fields and a line that stands twice are sound."""
    path = tmp_path / "labels.csv"
    upper = "0x" + address(1)[2:].upper()
    path.write_text(f'source,known_from,label,address\n,2018-07-01,"phishing",{upper}\n,1530403200,phishing,{upper}\n')

    [label] = labels.read_list(path)
    assert label[:4] == (address(1), True, VALIDATION_START, "")


@seed(2)
@settings(max_examples=100, deadline=None, database=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 3)] * 3), max_size=20),
    st.lists(st.tuples(*[st.integers(0, 3)] * 3), max_size=20),
)
def test_addresses_that_begin_alike_are_told_apart(known: list[tuple[int, ...]], asked: list[tuple[int, ...]]) -> None:
    """Among labels that share words, each address finds its own label or none, as a dictionary would."""

    def words(parts: list[tuple[int, ...]]) -> np.ndarray:
        return np.array(parts, dtype=np.uint64).reshape(-1, 3)

    key = np.unique(labels.keys(words(known)))
    listed = Labels(key, np.zeros(len(key), np.bool_), np.zeros(len(key), np.str_), 0)
    expected = {bytes(one): place for place, one in enumerate(key)}

    found = labels.Finder(listed).find(words(asked))
    assert found.tolist() == [expected.get(bytes(one), -1) for one in labels.keys(words(asked))]


@pytest.mark.parametrize("text", ["", "address,label\n0x,1\n"])
def test_list_without_times_is_none(tmp_path: Path, text: str) -> None:
    """A file without the column is refused by the column's name."""
    path = tmp_path / "labels.csv"
    path.write_text(text)

    with pytest.raises(InputError, match=r"labels\.csv: no column .*known_from"):
        labels.read_list(path)


def test_options_must_fit_the_folder(folder: Path, days: Path, known: Path, tmp_path: Path) -> None:
    """An archive needs labels with times, a data folder has its own, and the periods follow one another."""
    for source, complaint in (
        (Source(days), "is an archive, which needs a list of labels"),
        (Source(folder, known), "labels with times are for an archive"),
        (Source(folder, as_of=END), "labels with times are for an archive"),
        (Source(folder, cuts=Cuts(TEST_START, TEST_START)), "must start before the test period"),
    ):
        with pytest.raises(UsageError, match=complaint):
            dataset.read(source)
    with pytest.raises(InputError, match="no record up to the time"):
        dataset.read(Source(days, known, START - 1))


def test_damaged_archive_is_refused(days: Path, known: Path, tmp_path: Path) -> None:
    """A file of another day, a folder that is no date, a file that is no parquet and an empty archive are errors."""
    row = {"block_timestamp": [START], "from_address": [address(1)], "to_address": [address(2)], "value": ["1"]}
    for name, content, complaint in (
        ("date=2018-01-02", row, "block_timestamp 1514764800 is not of the day"),
        ("date=2018-02-30", row, "not date=YYYY-MM-DD"),
        ("date=2018-01-01", None, "cannot be read as parquet"),
        ("date=2018-01-01", row | {"type": ["block"]}, "row 0 has type 'block', not transaction or token_transfer"),
        ("date=2018-01-01", {"value": ["1"]}, "no column block_timestamp, from_address, to_address"),
    ):
        folder = tmp_path / f"{name} {complaint[:9]}" / name
        folder.mkdir(parents=True)
        file = folder / "part-0-0.parquet"
        file.write_text("none") if content is None else pq.write_table(pa.table(content), file)
        with pytest.raises(InputError, match=complaint):
            dataset.read(Source(folder.parent, known))
    (tmp_path / "empty" / "date=2018-01-01").mkdir(parents=True)
    with pytest.raises(InputError, match="it is no archive"):
        archive.days(tmp_path / "empty")


def test_files_of_a_day_follow_partition_and_offset(tmp_path: Path) -> None:
    """Equal times keep the order of partition and offset, as numbers, not as text."""
    home = tmp_path / "date=2018-01-01"
    home.mkdir()
    for partition, offset in ((0, 1000), (0, 999), (10, 5), (2, 7)):
        table = pa.table({
            "block_timestamp": [START + 7], "from_address": [address(partition)], "to_address": [None],
            "value": [str(offset)],
        }).cast(pa.schema([
            ("block_timestamp", pa.int64()), ("from_address", pa.string()), ("to_address", pa.string()),
            ("value", pa.string()),
        ]))  # fmt: skip
        pq.write_table(table, home / f"part-{partition}-{offset}.parquet")

    [day] = archive.days(tmp_path)
    amounts = archive.read_day(day).view(np.float64)[:, 6] * 1e18
    assert amounts.round().tolist() == [999, 1000, 7, 5]
    assert (day.start, day.n_records) == (START, 4)


def test_type_tells_tokens_row_by_row() -> None:
    """In a file with kinds a token's amount, method and status are unknown, and a null input is an unknown one."""
    table = pa.table({
        "type": ["transaction", "token_transfer", "transaction"],
        "block_timestamp": [START] * 3,
        "from_address": [address(1)] * 3,
        "to_address": [address(2)] * 3,
        "value": ["1000000000000000000", str(2**256 - 1), "0"],
        "receipt_status": pa.array([1, None, 0], pa.int8()),
        "method_id": pa.array([None, None, "0xa9059cbb"]),
        "input_bytes": pa.array([None, None, 68], pa.int64()),
        "token_address": pa.array([None, address(9), None]),
    })  # fmt: skip
    packed = backfill.pack_table(table, place="x")

    assert packed.view(np.float64)[[0, 2], 6].tolist() == [1.0, 0.0]
    assert np.isnan(packed.view(np.float64)[1, 6])
    assert packed[:, 8].tolist() == [8, 1, 4 | 8 | 2 << 8]
    assert packed.view(np.int64)[:, 9].tolist() == [-1, -1, 68]


def test_data_folder_keeps_every_account_and_its_digest(folder: Path, data: Path) -> None:
    """By default the table has room for both sides of every record, and the digest is the one that was published."""
    published = json.loads((Path(__file__).parents[2] / "docs" / "evaluation.json").read_bytes())["data"]
    n_records = sum(pq.read_metadata(data / name).num_rows for name in dataset.FILES[:3])

    assert dataset.digest(data) == published
    assert 2 * n_records < dataset.ACCOUNTS_MAX
    assert 4 * n_records < dataset.PAIRS_PER_ACCOUNT * dataset.ACCOUNTS_MAX
    records = dataset.read(folder)
    assert len(dataset._no_past(records).table.f32) == 2 * len(records.packed)


def test_scaled_up_archive_holds_copies_apart(folder: Path, tmp_path: Path) -> None:
    """The benchmark's archive is an archive: each copy has addresses of its own and the same number of rows."""
    source = folder / "transactions.parquet"
    n_one = pq.read_metadata(source).num_rows
    n_copies = bench_archive.build(source, tmp_path, n_records=2 * n_one + 1)
    n_labels = bench_archive.write_labels(folder / "accounts.csv", tmp_path / "labels.csv", n_copies=2)
    figures = bench_archive.measure(Source(tmp_path, tmp_path / "labels.csv"))
    records = dataset.read(Source(tmp_path, tmp_path / "labels.csv"))
    sample = dataset.sample(records)
    rows = np.bincount(sample.account[sample.account != BACKGROUND])

    assert (n_copies, n_labels, figures["n_records"]) == (3, 120, 3 * n_one)
    assert figures["n_rows"] == len(sample.account)
    assert figures["matrix_peak_bytes"] > 1e7
    plain = dataset.sample(dataset.read(folder))
    once = np.bincount(plain.account[plain.account != BACKGROUND])
    assert sorted(rows) == sorted([*once, *once])
