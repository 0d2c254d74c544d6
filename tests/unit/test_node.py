"""Nodes that fail, lag, lie and come back, over real HTTP."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from features.errors import NodeError, NodeOutageError
from service import node as node_module
from service.ingest_metrics import IngestMetrics
from service.node import Node, labels
from tests import servers
from tests.nodes import RpcError, RpcServer, scripted, wire_header

GONE = RpcError(4444, "pruned history unavailable")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def asking(*nodes: RpcServer, retry_seconds: float = 0.0, metrics: IngestMetrics | None = None) -> Node:
    """Return what asks these nodes."""
    urls = [each.url for each in nodes]
    stop = threading.Event()
    return Node(urls, chain_id=1, retry_seconds=retry_seconds, metrics=metrics or IngestMetrics(), stop=stop)


def errors(metrics: IngestMetrics) -> dict[tuple[str, str], float]:
    """Return how many failures were counted, by endpoint and fault."""
    found: dict[tuple[str, str], float] = {}
    for family in metrics.rpc_errors.collect():
        for sample in family.samples:
            if sample.value:
                key = sample.labels["endpoint"], sample.labels["fault"]
                found[key] = found.get(key, 0) + sample.value
    return found


def test_block_comes_with_its_receipts_in_one_request(stack: ExitStack) -> None:
    """A batch of two calls, whatever the order of its answers."""
    server = stack.enter_context(scripted())
    node = asking(server)

    found = node.block(5)
    assert (found.header.number, found.n_transactions, len(found.records)) == (5, 2, 4)
    assert server.asked == ["eth_chainId", "batch", "eth_getBlockReceipts", "eth_getBlockByNumber"] or server.asked == [
        "eth_chainId",
        "batch",
        "eth_getBlockByNumber",
        "eth_getBlockReceipts",
    ]
    assert node.head().number == 9
    assert (node.hash_at(9), node.hash_at(10)) == (wire_header(9)["hash"], None)


def test_node_without_block_receipts_is_asked_for_single_ones(stack: ExitStack) -> None:
    """The block is the same; the method is not tried again."""
    server = stack.enter_context(
        scripted(eth_getBlockReceipts=RpcError(-32601, "method not found"), n_transactions=150)
    )
    whole = stack.enter_context(scripted(n_transactions=150))
    node = asking(server)

    assert node.block(5).records == asking(whole).block(5).records
    n_asked = server.asked.count("eth_getBlockReceipts")
    assert node.block(6).n_transactions == 150
    assert server.asked.count("eth_getBlockReceipts") == n_asked == 1
    assert server.asked.count("batch") == 1 + 2 * 2


def test_node_without_batches_is_asked_one_by_one(stack: ExitStack) -> None:
    """And only once with a batch."""
    server = stack.enter_context(scripted())
    server.takes_batches = False
    node = asking(server)

    assert node.block(5).n_transactions == 2
    assert node.block(6).n_transactions == 2
    assert server.asked.count("batch") == 1


def test_wrong_chain_is_refused_at_once(stack: ExitStack) -> None:
    """Also where another node is right: it would be asked one day."""
    right, wrong = stack.enter_context(scripted()), stack.enter_context(scripted(chain_id=5))

    with pytest.raises(NodeError, match=f"wrong_chain: {wrong.label} is of chain 5, the setting chain_id 1"):
        asking(right, wrong, retry_seconds=60).check()


@pytest.mark.parametrize(
    ("methods", "fault"),
    [
        ({"eth_getBlockByNumber": None}, "missing_block"),
        ({"eth_getBlockReceipts": None}, "pruned"),
        ({"eth_getBlockReceipts": GONE}, "pruned"),
        ({"eth_getBlockReceipts": RpcError(-32000, "missing trie node 12ab")}, "pruned"),
        ({"eth_getBlockReceipts": RpcError(-32005, "limit exceeded")}, "refused"),
        ({"eth_getBlockReceipts": []}, "foreign_receipts"),
        ({"eth_getBlockByNumber": wire_header(6) | {"transactions": []}}, "wrong_block"),
        ({"eth_getBlockByNumber": {"number": "0x5"}}, "malformed"),
        ({"eth_getBlockByNumber": wire_header(5) | {"hash": "0xzz", "transactions": []}}, "malformed"),
        ({"eth_chainId": "one"}, "malformed"),
    ],
)
def test_what_cannot_be_is_named_and_another_node_asked(stack: ExitStack, methods: dict[str, Any], fault: str) -> None:
    """Alone, a node's fault ends the budget with its name; beside another one, that one answers."""
    bad, good = stack.enter_context(scripted(**methods)), stack.enter_context(scripted())
    metrics = IngestMetrics()

    with pytest.raises(NodeError, match=f"{fault}: .*gave up after 0 s") as raised:
        asking(bad).block(5)
    assert raised.value.fault == fault
    assert asking(bad, good, retry_seconds=60, metrics=metrics).block(5).n_transactions == 2
    assert errors(metrics) == {(bad.label, fault): 1}


@pytest.mark.parametrize(("status", "fault"), [(429, "rate_limited"), (500, "refused"), (401, "refused")])
def test_http_status_is_a_fault(stack: ExitStack, status: int, fault: str) -> None:
    """Also where the body says nothing."""
    server = stack.enter_context(scripted())
    server.status = status

    with pytest.raises(NodeError, match=f"{fault}: {server.label}: HTTP status {status}"):
        asking(server).head()


def test_silence_and_absence_are_faults(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that does not answer in time, and none at all; neither error shows the URL."""
    monkeypatch.setattr(node_module, "REQUEST_SECONDS", 0.05)
    done = threading.Event()
    stack.callback(done.set)
    silent = stack.enter_context(scripted(eth_chainId=lambda: "0x1" if done.wait(30) else ""))
    stack.callback(done.set)
    [port] = servers.free_ports(1)
    stop = threading.Event()

    with pytest.raises(NodeError, match=r"timeout: .* no answer to eth_chainId within 0.05 s"):
        asking(silent).head()
    absent = Node(
        [f"http://user:KEY@127.0.0.1:{port}/KEY"], chain_id=1, retry_seconds=0, metrics=IngestMetrics(), stop=stop
    )
    with pytest.raises(NodeError, match=f"unreachable: 127.0.0.1:{port}: ConnectionError") as raised:
        absent.head()
    assert "KEY" not in str(raised.value)


def test_node_that_comes_back_within_the_budget_is_no_error(stack: ExitStack) -> None:
    """Its failures and the tries that followed are counted."""
    failures = [GONE, GONE]

    def receipts(at: str) -> list[dict[str, Any]]:
        if failures:
            raise failures.pop()
        return []

    server = stack.enter_context(scripted(n_transactions=0, eth_getBlockReceipts=receipts))
    metrics = IngestMetrics()

    assert asking(server, retry_seconds=60, metrics=metrics).block(5).n_transactions == 0
    assert errors(metrics) == {(server.label, "pruned"): 2}
    assert metrics.rpc_retries.labels(server.label)._value.get() == 2


def test_stop_cuts_the_wait_for_a_node_short(stack: ExitStack) -> None:
    """The error is an outage, which a stop expects."""
    server = stack.enter_context(scripted(eth_getBlockByNumber=GONE))
    stop = threading.Event()
    stop.set()
    node = Node([server.url], chain_id=1, retry_seconds=60, metrics=IngestMetrics(), stop=stop)

    with pytest.raises(NodeOutageError):
        node.block(5)


def test_head_that_falls_behind_is_left_for_a_higher_one(stack: ExitStack) -> None:
    """The lagging node is named; blocks are then read from the other one."""
    heads = [9, 4, 4]
    lagging = stack.enter_context(
        scripted(eth_getBlockByNumber=lambda at, _: wire_header(heads.pop(0) if heads else 4) | {"transactions": []})
    )
    ahead = stack.enter_context(scripted(head=12))
    metrics = IngestMetrics()
    node = asking(lagging, ahead, metrics=metrics)

    assert [node.head().number for _ in range(3)] == [9, 12, 12]
    assert errors(metrics) == {(lagging.label, "head_behind"): 1}


def test_head_that_stands_still_is_compared_with_others(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is stuck says nothing wrong; only the others tell."""
    monkeypatch.setattr(node_module, "STALL_SECONDS", 0.0)
    stuck, ahead = stack.enter_context(scripted(head=5)), stack.enter_context(scripted(head=6))
    node = asking(stuck, ahead)

    assert [node.head().number for _ in range(3)] == [5, 6, 6]


def test_labels_tell_nodes_apart_and_no_secrets() -> None:
    """Two of one provider are numbered."""
    urls = ["wss://u:p@a.example/KEY", "https://a.example/KEY", "http://[::1]:8545/"]

    assert labels(urls) == ["a.example", "a.example#2", "[::1]:8545"]


def test_each_node_is_described(stack: ExitStack) -> None:
    """Client, head, finality and what it lacks."""
    plain = stack.enter_context(scripted())
    bare = stack.enter_context(scripted(eth_getBlockReceipts=RpcError(-32601, "no")))

    found = asking(plain, bare).describe()
    assert [(each.client, each.head.number, each.finalized, each.has_block_receipts) for each in found] == [
        ("scripted/v1", 9, 9, True),
        ("scripted/v1", 9, 9, False),
    ]


def test_a_nodes_series_begin_at_zero(stack: ExitStack) -> None:
    """A node that has not failed shows zero failures and retries: a rate sees the first one."""
    server = stack.enter_context(scripted())
    metrics = IngestMetrics()

    asking(server, metrics=metrics)

    shown = {sample.name: sample.value for family in metrics.registry.collect() for sample in family.samples}
    assert shown["falconet_rpc_retries_total"] == 0
    assert shown["falconet_rpc_errors_total"] == 0
