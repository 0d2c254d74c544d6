"""Heads pushed by a real node, and what `check` says of it."""

import contextlib
import threading
from collections.abc import Iterator

import pytest

from features.errors import NodeError
from service import check, heads
from service.anvil import Anvil
from service.heads import Heads
from service.ingest_metrics import IngestMetrics
from service.settings import Settings
from tests import servers
from tests.integration.conftest import LIMIT_S, until


@pytest.fixture
def anvil() -> Iterator[Anvil]:
    """Run a node that mines when told to."""
    with contextlib.ExitStack() as stack:
        try:
            node = stack.enter_context(servers.anvil("--no-mining"))
        except servers.MissingServerError as error:
            pytest.skip(str(error))
        yield node


def test_heads_wake_and_a_lost_subscription_is_begun_again(anvil: Anvil, caplog: pytest.LogCaptureFixture) -> None:
    """Each head wakes; when the node goes away this is counted, and when it is back so is the subscription."""
    woken, metrics = threading.Event(), IngestMetrics()
    following = Heads([anvil.ws_url], ["here"], woken.set, metrics)
    try:
        assert following.is_subscribed.wait(LIMIT_S)
        until(woken.is_set)
        woken.clear()
        anvil.ask("evm_mine")
        assert woken.wait(LIMIT_S)

        anvil.stop()
        until(lambda: not following.is_subscribed.is_set())
        anvil.start()
        assert following.is_subscribed.wait(LIMIT_S)
    finally:
        following.close()

    counted = {name: counter._value.get() for name, counter in metrics.subscriptions.items()}
    assert counted == {"begun": 2, "lost": 1}
    assert "heads lost endpoint=here" in caplog.text
    assert anvil.ws_url not in caplog.text


def test_probe_names_a_node_that_pushes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its URL, which may hold a key."""
    # web3 tries for the time allowed.
    monkeypatch.setattr(heads, "PROBE_SECONDS", 0.5)
    [port] = servers.free_ports(1)

    with pytest.raises(NodeError, match=r"unreachable: there: .* at eth_subscribe") as raised:
        heads.probe(f"ws://127.0.0.1:{port}/KEY", "there")
    assert "KEY" not in str(raised.value)


def test_check_says_who_the_nodes_are(anvil: Anvil) -> None:
    """Client, chain, head and finality of each, and that heads are pushed; another chain is an error."""
    settings = Settings(rpc_urls=(anvil.url, anvil.ws_url), chain_id=1)

    told = list(check.nodes(settings))
    label = anvil.url.removeprefix("http://")
    assert told == [
        f"node      {label}: anvil/v1.7.1, chain 1, head 0, finalized 0, a block's receipts at once",
        f"heads     {label}: pushed",
    ]
    assert list(check.nodes(Settings())) == []
    with pytest.raises(NodeError, match="wrong_chain"):
        list(check.nodes(Settings(rpc_urls=(anvil.url,), chain_id=5)))
