"""What a batch becomes when a block of the chain is orphaned: retractions, and parts that are joined again."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from features.errors import ReorgError
from features.journal import Journal, Observe, TakenBack
from features.transaction import IS_CREATION, IS_TOKEN, OrphanedBlock
from service.codec import encode_score
from service.messages import Retraction, Source

if TYPE_CHECKING:
    from service.pipeline import Beside, Outputs, Verdicts

Records = list[tuple[bytes, bytes]]


def take_back(
    journal: Journal | None, observe: Observe, block: OrphanedBlock, source: Source, now_ms: int
) -> tuple[Records, Records]:
    """Take a block out of the past and return the retractions of its scores, and of its alerts, the newest first.

    Raises:
        ReorgError: The past cannot go back by this block; it is as it was.
    """
    if journal is None:
        raise ReorgError(f"block {block.block_number} ({block.block_hash}) is orphaned, and reorg_depth_max is 0")
    taken = journal.announce(
        chain_id=block.chain_id,
        number=block.block_number,
        block_hash=block.block_hash,
        partition=source.partition,
        observe=observe,
    )
    retracted: Records = []
    alerted: Records = []
    for one in taken or ():
        record = (one.key, encode_score(_retraction(one, block, source, now_ms)))
        retracted.append(record)
        if one.decision:
            alerted.append(record)
    return retracted, alerted


def _retraction(taken: TakenBack, block: OrphanedBlock, source: Source, now_ms: int) -> Retraction:
    sides = taken.record[:6].tobytes()
    flags = int(taken.record[8])
    tx_hash, _, log_index = taken.key.decode().partition(":")
    return Retraction(
        type="token_transfer" if flags & IS_TOKEN else "transaction",
        chain_id=block.chain_id,
        hash=tx_hash,
        log_index=int(log_index) if log_index else None,
        block_number=block.block_number,
        block_hash=block.block_hash,
        block_timestamp=int(taken.record[7]),
        from_address="0x" + sides[:20].hex(),
        to_address=None if flags & IS_CREATION else "0x" + sides[24:44].hex(),
        source=source,
        status="retracted",
        retracted_at=now_ms,
    )


def joined(parts: "Sequence[Outputs]") -> "Outputs":
    """Return the outputs of a batch that was taken in parts, of which only the last may be refused."""
    beside = [part.candidate for part in parts if part.candidate is not None]
    return parts[-1]._replace(
        scores=[record for part in parts for record in part.scores],
        alerts=[record for part in parts for record in part.alerts],
        rejections=[rejection for part in parts for rejection in part.rejections],
        n_skipped=sum(part.n_skipped for part in parts),
        verdicts=_joined_verdicts([part.verdicts for part in parts]),
        candidate=_joined_beside(beside) if beside else None,
        alert_reasons=[reason for part in parts for reason in part.alert_reasons],
        n_orphaned=sum(part.n_orphaned for part in parts),
        n_announced=sum(part.n_announced for part in parts),
        n_retracted=sum(part.n_retracted for part in parts),
        n_read=sum(part.n_read for part in parts),
    )


def _joined_verdicts(parts: "list[Verdicts]") -> "Verdicts":
    return type(parts[0])(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _joined_beside(parts: "list[Beside]") -> "Beside":
    verdicts = _joined_verdicts([part.verdicts for part in parts])
    return parts[0]._replace(verdicts=verdicts, scores=[record for part in parts for record in part.scores])
