"""From a node's blocks to scores, through reorganisations and kills, with each client library."""

from pathlib import Path

import pytest

from service.chain_sender import LiveChain
from tests import reorgs, servers


def test_reorganisations_and_kills_leave_what_the_chain_holds(
    broker: str, library: str, tmp_path: Path, small_model: Path
) -> None:
    """What stands is scored once, as if the orphaned branches had never been; what vanished stays retracted."""
    try:
        servers.anvil_program()
    except servers.MissingServerError as error:
        pytest.skip(str(error))
    with reorgs.node() as node:
        world = reorgs.World(broker, library, f"chain-{library}", tmp_path, node, model=small_model)
        chain = LiveChain(node.url, reorgs.CHAIN_ID, 3, depth_max=7)
        try:
            found = reorgs.run(world, chain, (1, 7), seed=3, say=print)
        finally:
            world.close()

    assert (found.n_lost, found.n_doubled, found.n_left, found.n_other) == (0, 0, 0, 0)
    assert found.n_kills == 2
    assert found.n_standing > 20
    assert found.n_retracted > 10
