"""The demo's parts that need no broker: its books, its reading of the metrics page, its words, its sources."""

import io
import itertools
import json

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client import generate_latest

from features.errors import BrokerError, InputError
from service import ethereum_etl, scrape, view
from service.chain_sender import TOKEN_CODE, TRANSFER
from service.codec import Decoder
from service.embedded import free_port
from service.metrics import Metrics
from service.publisher import DAMAGED_EVERY, Plan, _source
from service.scrape import Latency
from service.settings import Settings
from service.tally import Tally

A, B = "0x" + "aa" * 20, "0x" + "bb" * 20


def score(index: int, *, decision: str = "allow", score: float = 0.1, reasons=(), list_hits=()) -> bytes:
    return msgspec.json.encode(
        {
            "type": "transaction",
            "hash": f"0x{index:064x}",
            "log_index": None,
            "from_address": A,
            "to_address": B,
            "score": score,
            "decision": decision,
            "reasons": list(reasons),
            "list_hits": list(list_hits),
            "status": "scored",
        }
    )


def retraction(index: int) -> bytes:
    return msgspec.json.encode({"hash": f"0x{index:064x}", "log_index": None, "status": "retracted"})


def identity(index: int) -> str:
    return f"0x{index:064x}"


IMITATES = {"feature": "to_imitates", "value": 1.0, "contribution": 0.0, "sentence": "imitates [an earlier one]"}
ON_LIST = {"address": B, "side": "to", "list": "scam"}


def test_tally_knows_who_alerted_and_what_stayed_unanswered():
    """Alerts are told apart by model, rule and list; what came back neither scored nor rejected is named."""
    tally = Tally(review=0.5)
    tally.sent([(identity(1), "phishing"), (identity(2), "phishing"), (identity(3), None), (identity(4), None)])
    tally.damaged(1)
    tally.scored(score(1, decision="review", score=0.7))
    tally.scored(score(2, decision="review", reasons=[IMITATES], list_hits=[ON_LIST]))
    tally.scored(score(3))
    tally.rejected(None)

    found = tally.found()
    assert (found["phishing"].n_scored, found["phishing"].n_alerted) == (2, 2)
    assert (found["phishing"].n_by_model, found["phishing"].n_by_rule, found["phishing"].n_by_list) == (1, 1, 1)
    assert (found[None].n_scored, found[None].n_alerted) == (1, 0)
    assert (tally.n_sent, tally.n_scored, tally.n_rejected, tally.n_open) == (5, 3, 1, 1)
    assert tally.unanswered() == [identity(4)]


def test_tally_counts_a_score_that_comes_twice_once():
    """A repeated score changes no count but its own."""
    tally = Tally(review=0.5)
    tally.sent([(identity(1), None)])
    tally.scored(score(1, decision="block", score=0.9))
    tally.scored(score(1, decision="block", score=0.9))

    assert (tally.n_scored, tally.n_repeated, tally.decisions["block"], len(tally.newest)) == (1, 1, 1, 1)


def test_tally_takes_a_rejected_transaction_for_answered():
    """A transaction on the dead-letter topic has its answer."""
    tally = Tally(review=0.5)
    tally.sent([(identity(1), None)])
    tally.rejected(identity(1).encode())

    assert tally.unanswered() == []
    assert tally.n_wrongly_rejected == 1


def test_tally_follows_a_reorganisation():
    """What the chain no longer holds is open until its score is taken back; what returns is scored a second time."""
    tally = Tally(review=0.5)
    tally.sent([(identity(1), None), (identity(2), None)])
    tally.scored(score(1, decision="block", score=0.9))
    tally.scored(score(2))
    tally.alerted(score(1, decision="block", score=0.9))
    tally.reorganised([identity(1), identity(2)], [(identity(2), None)])
    assert (tally.n_sent, tally.n_open, tally.vanished()) == (1, 2, [identity(1)])

    for number in (2, 1):
        tally.scored(retraction(number))
    tally.alerted(retraction(1))
    assert (tally.n_open, tally.decisions["block"], tally.n_alerts) == (1, 0, 0)

    tally.scored(score(2))

    assert (tally.n_open, tally.n_retracted, tally.n_rescored, tally.n_repeated) == (0, 2, 1, 0)
    assert tally.vanished() == tally.unanswered() == []


def test_token_logs_the_transfers_it_is_called_for():
    """The contract is the bytes that its comments tell: it jumps to the two places that log, and nowhere else."""
    code = bytes.fromhex(TOKEN_CODE[2:])
    targets = [code[i + 8] for i in range(len(code)) if code[i : i + 2] == b"\x80\x63"]

    assert [code[target] for target in targets] == [0x5B, 0x5B]
    assert code.count(bytes.fromhex(TRANSFER)) == 2


def test_quantiles_are_linear_within_a_bucket_and_bounded_by_the_last():
    """As in PromQL: half of a bucket's values lie below its middle; beyond the last bound nothing more is known."""
    latency = Latency((1.0, 2.0, 4.0, float("inf")), (0.0, 10.0, 20.0, 21.0))

    assert latency.quantile(5 / 21) == pytest.approx(1.5)
    assert latency.quantile(15 / 21) == pytest.approx(3.0)
    assert latency.quantile(1.0) == 4.0
    assert Latency((1.0,), (0.0,)).quantile(0.5) is None


def test_page_holds_what_the_service_counted_since_an_earlier_reading():
    """The page that the service's own metrics render is read back, and the difference of two is what came between."""
    metrics = Metrics()
    metrics.stage_seconds["decode"].observe(3e-6, 10)
    earlier = scrape.parse(generate_latest(metrics.registry).decode())
    metrics.stage_seconds["decode"].observe(0.15, 4)
    metrics.transactions_total["scored"].inc(14)

    page = scrape.parse(generate_latest(metrics.registry).decode())

    decode = ("falconet_stage_seconds", "decode")
    assert (earlier.latencies[decode].n, page.latencies[decode].n, page.since(earlier).latencies[decode].n) == (
        10,
        14,
        4,
    )
    assert 0.1 < page.since(earlier).latencies[decode].quantile(0.5) <= 0.2
    assert page.values[("falconet_transactions_total", "scored")] == 14


def test_page_that_nobody_serves_is_a_broker_error():
    """An unreachable page is told with its address."""
    url = f"http://127.0.0.1:{free_port()}/metrics"

    with pytest.raises(BrokerError, match=url):
        scrape.read(url)


def test_summary_says_that_the_traffic_was_simulated_and_what_was_found():
    """The closing words name the simulation, each kind's recall and the false alerts."""
    tally = Tally(review=0.5)
    tally.sent([(identity(index), "sweep" if index < 4 else None) for index in range(1004)])
    for index in range(1004):
        tally.scored(score(index, decision="review" if index in (0, 1, 2, 500) else "allow"))
    moment = view.Moment(tally, 10.0, 100.0, 100.0, None)

    text = view.summary(moment, source="seed 1", is_simulated=True, n_listed=3)

    assert "This traffic was simulated (seed 1)" in text
    assert "75.0 %" in text
    assert "0 alerts stand on their topic beside 4 scores" in text
    assert "1 of 1,000 ordinary transactions, 1.0 in 1,000" in text
    assert "simulated" not in view.summary(moment, source="a.parquet", is_simulated=False, n_listed=0)


def test_screen_shows_reasons_as_they_are_written():
    """A bracket in a reason is no markup, and the screen draws before the first reading of the metrics."""
    from rich.console import Console

    tally = Tally(review=0.5)
    tally.scored(score(1, decision="review", reasons=[IMITATES]))
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(view.screen(view.Moment(tally, 1.0, 2.0, 3.0, None)))

    assert "imitates [an earlier one]" in console.export_text()


@pytest.fixture
def parquet(tmp_path):
    """Two transactions in the columns of the data folder, the second with what one of its sources lacks."""
    rows = {
        "hash_prefix": [b"\x01" * 8, b"\x02" * 8],
        "block_number": [5, 6],
        "block_timestamp": [1_500_000_000, 1_500_000_012],
        "transaction_index": [3, None],
        "nonce": [7, None],
        "gas": [21000, None],
        "gas_price": [10**9, None],
        "from_address": [A, B],
        "to_address": [B, None],
        "contract_address": [None, A],
        "value": ["123456789012345678901234567890", "0"],
        "receipt_gas_used": [21000, None],
        "receipt_status": [1, None],
        "method_id": ["0xa9059cbb", None],
        "input_bytes": [68, 1],
    }
    path = tmp_path / "transactions.parquet"
    pq.write_table(pa.table(rows), path)
    return path


def test_parquet_rows_become_messages_that_decode(parquet):
    """Real transactions stream with their exact value, a padded hash, and nothing made up where the file has null."""
    decoder = Decoder(chain_id=1, message_bytes_max=1_048_576)
    messages = list(ethereum_etl.from_parquet(parquet))
    first, second = (decoder.decode(value) for _, value in messages)

    assert [transaction_id for transaction_id, _ in messages] == [first.id, second.id]
    assert first.hash == "0x" + "01" * 8 + "00" * 24
    assert (first.value, first.nonce, first.receipt_status) == (123456789012345678901234567890, 7, 1)
    assert (first.input[:10], len(first.input)) == ("0xa9059cbb", 2 + 2 * 68)
    assert (second.to_address, second.nonce, second.gas_price, second.receipt_status) == (None, None, None, None)
    assert second.input == "0x00"


def test_parquet_with_the_least_columns_is_enough(tmp_path):
    """A file with whole hashes and no receipts streams too; an empty recipient means that a contract is created."""
    rows = {
        "hash": ["0x" + "03" * 32],
        "block_number": [5],
        "block_timestamp": [1_500_000_000],
        "from_address": [A],
        "to_address": [""],
        "value": ["1"],
    }
    pq.write_table(pa.table(rows), tmp_path / "blocks.parquet")
    [(transaction_id, value)] = ethereum_etl.from_parquet(tmp_path / "blocks.parquet")
    tx = Decoder(chain_id=1, message_bytes_max=1_048_576).decode(value)

    assert (tx.id, tx.to_address, tx.value, tx.input) == (transaction_id, None, 1, None)


def test_parquet_without_the_columns_is_refused(tmp_path):
    """A file of something else is told apart by its missing columns, and a file that is no parquet by its bytes."""
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"hash_prefix": [b"x"]}), path)
    with pytest.raises(InputError, match="block_number"):
        next(ethereum_etl.from_parquet(path))

    path.write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"other\.parquet"):
        next(ethereum_etl.from_parquet(path))


def test_sender_damages_one_message_in_many_and_none_of_a_file(parquet):
    """Simulated traffic carries some broken messages for the dead-letter topic; real traffic is sent as it is."""
    settings = Settings()
    simulated = list(itertools.islice(_source(Plan(settings, None, 1, 1.0, 1)), 2 * DAMAGED_EVERY + 2))
    damaged = [value for transaction_id, _, value in simulated if transaction_id is None]

    assert len(damaged) == 2
    for value in damaged:
        with pytest.raises(json.JSONDecodeError):
            json.loads(value)
    assert [one for one, _, _ in _source(Plan(settings, parquet, 1, 1.0, 1))] == [
        "0x" + "01" * 8 + "00" * 24,
        "0x" + "02" * 8 + "00" * 24,
    ]
