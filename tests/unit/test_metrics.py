"""Metrics: what a scrape shows, with prometheus_client's own histogram and parser as the judges."""

import math
import socket
import urllib.error
import urllib.request
from typing import get_args

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as SlowHistogram
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from features.errors import Reason, UsageError
from service import catalogue
from service import metrics as module
from service.catalogue import CATALOGUE, PREFIX
from service.metrics import SCORE_BUCKETS, SECONDS_BUCKETS, Distribution, Metrics, serve
from service.settings import Settings


def samples(text: str) -> dict:
    """Return a page's samples by name and labels."""
    return {
        (sample.name.removeprefix(PREFIX), *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(metrics: Metrics) -> dict:
    """Return the samples that a scrape would show, without the half second that closing a server takes."""
    return samples(generate_latest(metrics.registry).decode())


def slow(bounds: tuple[float, ...], values: list[float]) -> dict:
    """Return the samples of prometheus_client's own histogram over the same values."""
    registry = CollectorRegistry()
    histogram = SlowHistogram("falconet_decision_seconds", "…", buckets=bounds, registry=registry)
    for value in values:
        histogram.observe(value)
    return {
        (sample.name.removeprefix(PREFIX), *sorted(sample.labels.items())): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


EDGES = [0.0, 1e-7, *SECONDS_BUCKETS, *(math.nextafter(b, 0) for b in SECONDS_BUCKETS)]
EDGES += [math.nextafter(b, math.inf) for b in SECONDS_BUCKETS] + [11.0, 1e9]


def test_page_is_served_over_http():
    """Prometheus gets over HTTP what the registry holds."""
    metrics = Metrics()
    metrics.transactions_total["scored"].inc(5)
    endpoint = serve(metrics, host="127.0.0.1", port=0)
    try:
        with urllib.request.urlopen(f"http://{endpoint.host}:{endpoint.port}/metrics", timeout=10) as response:
            shown = samples(response.read().decode())
    finally:
        endpoint.close()

    assert shown["transactions_total", ("outcome", "scored")] == 5
    assert set(scrape(metrics)) == set(shown)


def test_buckets_are_cumulative_as_in_the_client_library():
    """One call per value, one call per batch and the client library's own histogram show the same samples."""
    one_by_one, at_once = Metrics(), Metrics()
    for value in EDGES:
        one_by_one.decision_seconds.observe(value)
    at_once.decision_seconds.observe_all(np.array(EDGES))

    for metrics in (one_by_one, at_once):
        shown = {key: value for key, value in scrape(metrics).items() if key[0].startswith("decision_seconds")}
        expected = slow(SECONDS_BUCKETS, EDGES)
        assert shown.pop(("decision_seconds_sum",)) == pytest.approx(expected.pop(("decision_seconds_sum",)))
        assert expected == shown


def test_a_batch_counts_as_many_times_as_it_has_transactions():
    """Observing a value n times at once equals observing it n times."""
    metrics = Metrics()
    metrics.decision_seconds.observe(0.003, 7)
    metrics.decision_seconds.observe(0.003, 0)

    shown = scrape(metrics)

    expected = slow(SECONDS_BUCKETS, [0.003] * 7)
    assert shown["decision_seconds_sum",] == pytest.approx(expected["decision_seconds_sum",])
    assert shown["decision_seconds_count",] == 7
    assert all(shown[key] == value for key, value in expected.items() if key[0] == "decision_seconds_bucket")


def test_random_values_land_where_the_client_library_puts_them():
    """Drawn durations over nine decades are counted alike, mixed single and bulk."""
    values = (10.0 ** np.random.default_rng(7).uniform(-7.5, 1.5, 2000)).tolist()
    metrics = Metrics()
    for value in values[:500]:
        metrics.decision_seconds.observe(value)
    metrics.decision_seconds.observe_all(np.array(values[500:]))

    shown = scrape(metrics)

    expected = slow(SECONDS_BUCKETS, values)
    assert all(shown[key] == pytest.approx(value) for key, value in expected.items())


def test_exemplar_stands_in_its_bucket():
    """OpenMetrics shows the last transaction of each bucket with its position; the plain page shows none."""
    metrics = Metrics()
    metrics.end_to_end_seconds.observe_all(np.array([0.03, 0.03, 20.0]))
    for offset, value in ((16, 0.04), (17, 0.03), (18, 20.0)):
        metrics.end_to_end_seconds.exemplify(value, module.position("transactions", 1, offset), at_s=1_700_000_000.0)

    shown = {
        sample.labels["le"]: (
            sample.value,
            sample.exemplar.labels,
            sample.exemplar.value,
            float(sample.exemplar.timestamp),
        )
        for family in parse_openmetrics(generate_openmetrics(metrics.registry).decode())
        for sample in family.samples
        if sample.exemplar is not None
    }

    where = {"topic": "transactions", "partition": "1"}
    assert shown == {
        "0.05": (2, where | {"offset": "17"}, 0.03, 1_700_000_000.0),
        "+Inf": (3, where | {"offset": "18"}, 20.0, 1_700_000_000.0),
    }
    assert b"offset" not in b"".join(
        line for line in generate_latest(metrics.registry).splitlines() if line.startswith(b"falconet_end_to_end")
    )


def test_openmetrics_is_served_to_those_who_ask():
    """Prometheus asks for OpenMetrics, which alone carries exemplars."""
    metrics = Metrics()
    metrics.decision_seconds.exemplify(0.003, module.position("transactions", 0, 5), at_s=1_700_000_000.0)
    endpoint = serve(metrics, host="127.0.0.1", port=0)
    try:
        asked = urllib.request.Request(
            f"http://{endpoint.host}:{endpoint.port}/metrics",
            headers={"Accept": "application/openmetrics-text; version=1.0.0"},
        )
        with urllib.request.urlopen(asked, timeout=10) as response:
            text = response.read().decode()
    finally:
        endpoint.close()

    assert '# {offset="5",partition="0",topic="transactions"} 0.003' in text


def test_topic_of_a_long_name_is_left_out_of_exemplars():
    """Prometheus drops an exemplar of more than 128 characters: partition and offset remain."""
    longest = 128 - len("topic" + "partition" + "offset" + "0" + "7")

    assert "topic" in module.position("t" * longest, 0, 7)
    assert module.position("t" * (longest + 1), 0, 7) == {"partition": "0", "offset": "7"}


def test_negative_duration_counts_as_zero():
    """Two machines' clocks may disagree: the sum must never fall."""
    one, many = Distribution(SECONDS_BUCKETS), Distribution(SECONDS_BUCKETS)
    one.observe(-3.0)
    many.observe_all(np.array([-3.0]))

    assert one.cumulative() == many.cumulative()
    assert one.cumulative()[1] == 0.0
    assert one.cumulative()[0][0] == ("1e-06", 1.0)


def test_nan_is_a_bug():
    """NaN belongs to no bucket and is refused."""
    with pytest.raises(ValueError, match="NaN"):
        Distribution(SECONDS_BUCKETS).observe(math.nan)
    with pytest.raises(ValueError, match="NaN"):
        Distribution(SECONDS_BUCKETS).observe_all(np.array([0.1, math.nan]))


def test_empty_batch_changes_nothing():
    """A batch without accepted transactions observes an empty array."""
    distribution = Distribution(SCORE_BUCKETS)
    distribution.observe_all(np.array([]))

    assert distribution.cumulative()[0][-1] == ("+Inf", 0.0)


def test_buckets_rise_from_a_microsecond_to_ten_seconds():
    """Latency buckets are the decimals 1, 2 and 5 from 1 µs to 10 s; scores reach 1."""
    assert SECONDS_BUCKETS[:4] == (1e-06, 2e-06, 5e-06, 1e-05)
    assert SECONDS_BUCKETS[-3:] == (2.0, 5.0, 10.0)
    assert list(SECONDS_BUCKETS) == sorted(set(SECONDS_BUCKETS))
    assert list(SCORE_BUCKETS) == sorted(set(SCORE_BUCKETS))
    assert SCORE_BUCKETS[-1] == 1.0


def test_closed_label_sets_are_there_from_the_start():
    """Every stage, outcome, decision and reason shows zero before anything happened."""
    shown = scrape(Metrics(decisions=("allow", "block")))

    for stage in get_args(module.Stage):
        assert shown["stage_seconds_count", ("stage", stage)] == 0
    for outcome in get_args(module.Outcome):
        assert shown["transactions_total", ("outcome", outcome)] == 0
    for reason in get_args(Reason):
        assert shown["dlq_total", ("reason", reason)] == 0
    assert {key[1][1] for key in shown if key[0] == "decisions_total"} == {"allow", "block"}
    assert {key[1][1] for key in shown if key[0] == "inference_seconds_sum"} == {"student", "teacher", "candidate"}
    for outcome in get_args(module.Reload):
        assert shown["model_reloads_total", ("outcome", outcome)] == 0
    pairs = {tuple(value for _, value in key[1:]) for key in shown if key[0] == "candidate_decisions_total"}
    assert pairs == {(one, other) for one in ("allow", "block") for other in ("allow", "block")}


def test_unknown_label_is_an_error():
    """A label outside its closed set never becomes a series."""
    metrics = Metrics()

    with pytest.raises(KeyError):
        metrics.stage_seconds["sleep"]
    with pytest.raises(KeyError):
        metrics.dlq_total["0xabc"]


def test_counts_and_gauges_are_shown():
    """What the loop reports appears on the page."""
    metrics = Metrics()
    metrics.transactions_total["scored"].inc(5)
    metrics.dlq_total["not_json"].inc()
    metrics.shadow_dropped_total.inc(2)
    metrics.restore_seconds.set(1.5)
    metrics.stage_seconds["decode"].observe(2e-6, 500)
    metrics.inference_seconds["teacher"].observe(4e-5)
    metrics.score.observe_all(np.array([0.001, 0.5, 1.0]))

    shown = scrape(metrics)

    assert shown["transactions_total", ("outcome", "scored")] == 5
    assert shown["dlq_total", ("reason", "not_json")] == 1
    assert shown["shadow_dropped_total",] == 2
    assert shown["restore_seconds",] == 1.5
    assert shown["stage_seconds_count", ("stage", "decode")] == 500
    assert shown["inference_seconds_bucket", ("le", "5e-05"), ("model", "teacher")] == 1
    assert shown["score_bucket", ("le", "0.5")] == 2


def test_model_of_a_role_is_replaced():
    """After a promotion only the model in use is shown."""
    metrics = Metrics()
    metrics.set_model("student", name="kestrel", version="1", digest="aa", n_bytes=10)
    metrics.set_model("student", name="kestrel", version="2", digest="bb", n_bytes=20)

    shown = scrape(metrics)

    info = [key for key in shown if key[0] == "model_info"]
    assert info == [("model_info", ("digest", "bb"), ("model", "student"), ("name", "kestrel"), ("version", "2"))]
    assert shown["model_bytes", ("model", "student")] == 20


def test_lag_of_a_lost_partition_disappears():
    """A partition that went to another consumer leaves no stale lag behind."""
    metrics = Metrics()
    metrics.set_lag({0: 5, 1: 6})
    metrics.set_lag({1: 7, 2: 8})

    lag = {key[1][1]: value for key, value in scrape(metrics).items() if key[0] == "consumer_lag_records"}

    assert lag == {"1": 7, "2": 8}


def test_evictions_follow_the_running_count():
    """The table's running count becomes a counter, starting with what a loaded table brings."""
    metrics = Metrics()
    metrics.set_state(n_accounts=10, n_pairs=20, n_evicted=3)
    metrics.set_state(n_accounts=11, n_pairs=21, n_evicted=5)

    shown = scrape(metrics)

    assert shown["state_evictions_total",] == 5
    assert shown["state_accounts",] == 11
    assert shown["state_pairs",] == 21


def test_limits_of_the_state_stand_beside_its_fill():
    """What fits is shown, so that a dashboard can say how full the tables are."""
    metrics = Metrics()
    metrics.set_limits(accounts_max=100, pairs_max=200)
    metrics.set_offsets({0: 7, 3: 9})

    shown = scrape(metrics)

    assert (shown["state_accounts_max",], shown["state_pairs_max",]) == (100, 200)
    assert (shown["next_offset", ("partition", "0")], shown["next_offset", ("partition", "3")]) == (7, 9)


def test_listed_sides_are_counted_by_list():
    """A sender's bit in the low half and a recipient's in the high half count each; a list in use shows zero."""
    metrics = Metrics()
    metrics.set_lists(("exchange", "sanctioned", "scam"))
    metrics.count_hits(np.array([0b010, 0b010 << 16, 0b110 | 0b010 << 16, 0], dtype=np.uint32))

    shown = {key[1][1]: value for key, value in scrape(metrics).items() if key[0] == "list_hits_total"}

    assert shown == {"exchange": 0, "sanctioned": 4, "scam": 1}


def test_catalogue_is_what_the_page_shows():
    """Each catalogued metric is on the page with its sentence, and the page shows no other of ours."""
    metrics = Metrics()
    metrics.set_model("student", name="kestrel", version="1", digest="aa", n_bytes=10)
    metrics.set_lag({0: 0})
    metrics.set_offsets({0: 0})
    metrics.set_lists(("sanctioned",))
    metrics.set_drift(lambda: {"score": 0.1})
    families = {
        family.name: family
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        if family.name.startswith(PREFIX)
    }

    assert sorted(families) == sorted(PREFIX + spec.name.removesuffix("_total") for spec in CATALOGUE)
    for spec in CATALOGUE:
        family = families[PREFIX + spec.name.removesuffix("_total")]
        assert family.documentation == spec.sentence
        assert family.type == ("gauge" if spec.kind == "info" else spec.kind)
        assert spec.sentence.endswith(".")
        assert spec.unit or spec.kind == "info"
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == set(spec.labels)


def test_two_processes_worth_of_metrics_do_not_share():
    """Each object has its own registry."""
    one, other = Metrics(), Metrics()
    one.transactions_total["scored"].inc()

    assert scrape(other)["transactions_total", ("outcome", "scored")] == 0


def test_memory_and_cpu_of_the_process_are_shown():
    """The page carries the process's own memory and CPU time, the basis of cost per million decisions."""
    shown = scrape(Metrics())

    assert shown["process_resident_memory_bytes",] > 1_000_000
    assert ("process_cpu_seconds_total",) in shown


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_page_takes_no_request_that_could_change_anything(method):
    """Whatever does not ask to read is refused, and the page listens on loopback unless told otherwise."""
    assert Settings().metrics_host == "127.0.0.1"
    endpoint = serve(Metrics(), host=Settings().metrics_host, port=0)
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{endpoint.port}/metrics", data=b"x", method=method)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=5)
        refused.value.close()
    finally:
        endpoint.close()

    assert refused.value.code == 405


def test_taken_port_is_a_clear_error():
    """A port in use is refused with the address and the settings to change."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"127\.0\.0\.1:{port}: .*in use; set metrics_host and metrics_port"):
            serve(Metrics(), host="127.0.0.1", port=port)


def test_foreign_host_is_a_clear_error():
    """An address of another machine is refused like a taken port."""
    with pytest.raises(UsageError, match=r"192\.0\.2\.1:0"):
        serve(Metrics(), host="192.0.2.1", port=0)


def test_closing_frees_the_port():
    """After close the same port can be served again."""
    first = serve(Metrics(), host="127.0.0.1", port=0)
    first.close()
    second = serve(Metrics(), host="127.0.0.1", port=first.port)
    second.close()

    assert first.port == second.port


def test_table_has_a_line_for_every_metric():
    """The docs' table names each metric once."""
    _, _, *rows = catalogue.markdown_table().splitlines()

    assert [PREFIX + spec.name for spec in CATALOGUE] == [row.split("`")[1] for row in rows]


def test_energy_is_counted_by_its_source():
    """Each reading adds what was spent since the one before, to the source that told it."""
    metrics = Metrics()
    sum(i * i for i in range(200_000))
    metrics.take_energy()
    first = {source: counter._value.get() for source, counter in metrics._energy.items()}
    sum(i * i for i in range(200_000))
    metrics.take_energy()
    second = {source: counter._value.get() for source, counter in metrics._energy.items()}

    assert set(first) == {"rapl", "estimate"}
    assert 0 < sum(first.values()) < sum(second.values())
