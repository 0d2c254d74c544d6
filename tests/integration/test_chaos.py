"""The short form of `make chaos`: some faults of every kind that is quick, with each client library."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.settings import KAFKA_CLIENTS
from tests import servers
from tests.chaos import faults
from tests.chaos.ground import Ground, ground
from tests.chaos.stage import Stage
from tests.chaos.verdict import Verdict


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Return a broker with a proxy for each library."""
    with contextlib.ExitStack() as stack:
        try:
            yield stack.enter_context(ground(tmp_path_factory.mktemp("broker"), len(KAFKA_CLIENTS)))
        except servers.MissingServerError as error:
            pytest.skip(str(error))


def struck(there: Ground, i: int, folder: Path) -> tuple[Stage, Verdict]:
    """Strike a stream of a library's own, and judge it."""
    client = KAFKA_CLIENTS[i]
    stage = Stage(there.broker, there.proxies[i], client, f"short-{client}", folder / client, seed=1)
    with contextlib.closing(stage):
        stage.begin()
        first = stage.serving()
        # It is noticed within 10 s, in which there is time for more.
        faults.widen_topic(stage, 2)
        faults.lose_answers(stage, 1)
        faults.answer_retriably(stage, 1)
        faults.see_it_end(stage, first)
        faults.kill_service(stage, 1)
        return stage, stage.finish()


@pytest.mark.timeout(300)  # half a minute alone, four times that beside other loads
def test_faults_lose_nothing_and_double_nothing(there: Ground, tmp_path: Path) -> None:
    """A lost answer, errors, a partition more and a kill leave the scores of an undisturbed run, bit by bit."""
    with ThreadPoolExecutor(len(KAFKA_CLIENTS)) as pool:
        done = list(pool.map(lambda i: struck(there, i, tmp_path), range(len(KAFKA_CLIENTS))))

    for (stage, verdict), proxy in zip(done, there.proxies, strict=True):
        harm = (verdict.n_lost, verdict.n_doubled, verdict.n_wrong, verdict.n_different)
        assert harm == (0, 0, 0, 0), verdict
        assert verdict.n_scores > 100
        assert stage.n_faults == len(stage.recoveries_s) == 3
        assert sorted(end.code for end in stage.ends) == [-9, 0, 0, 1]
        assert proxy.n_swallowed == 1
        assert proxy.n_answered > 1
