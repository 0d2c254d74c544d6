"""Rows of simulated payments for training: kinds of fraud that the labels lack, and the ordinary life around them.

They come from the demo's simulator and from seeds of their own, so that no stream that is shown or tested was learnt.
Their past begins with the stream, as when a service starts. Rows from a table that had watched for long before taught
more about a cold start, and cost the student what it knew of accounts a year on.
"""

import itertools

import numpy as np

from features.accounts import Accounts
from features.transaction import IS_TOKEN, pack, records
from models.learning import SimulatedRows, trained_columns
from service import simulator
from service.codec import Decoder

N_MESSAGES = 60_000
WARM_UP = 10_000
"""Messages whose rows are left out: the simulator's people begin without a past."""

SEED_OFFSET = 1_000_000
"""To the simulator's seed from that of a training: the streams of other commands have small ones."""


def simulated_rows(seed: int, *, n_messages: int = N_MESSAGES, n_warm_up: int = WARM_UP) -> SimulatedRows:
    """Return the payments of value above 0 of a stream, each scored at its own time.

    Args:
        seed: Of the training.
        n_messages: Of the stream.
        n_warm_up: The first of them that are not learnt from.
    """
    decoder = Decoder(chain_id=1, message_bytes_max=1 << 20)
    drawn = list(itertools.islice(simulator.stream(SEED_OFFSET + seed), n_messages))
    packed = records([pack(decoder.decode(message.value)) for message in drawn])
    is_paying = (packed.view(np.float64)[:, 6] > 0) & (packed[:, 8] & np.uint64(IS_TOKEN) == 0)
    is_paying[:n_warm_up] = False
    rows, _ = Accounts(accounts_max=2 * n_messages, pairs_max=4 * n_messages).score_rows(packed)
    kind = np.array([message.kind or "" for message in drawn])
    return SimulatedRows(rows[is_paying][:, trained_columns()], kind[is_paying])
