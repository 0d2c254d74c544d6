"""A seeded simulator of an exchange's surroundings: blocks of ethereum-etl messages, and apart from them the truth.

Each inhabitant is a generator that acts on the world and yields the seconds until it acts again; the world runs them in
order of time and gathers what they sent into blocks 12 s apart. The people live in `service/people.py`, the frauds in
`service/frauds.py`. The same seed gives the same stream, and a longer stream begins with the shorter one.

It shows the service at work, loads it, and lends training the kinds of fraud that have no labels. It is no evidence of
accuracy: its frauds are drawn from their descriptions.
"""

import bisect
import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Generator, Iterator
from typing import NamedTuple

from service import ethereum_etl

START = 1_700_000_000
"""Event time of the first block, 2023-11-14 22:13:20 UTC: fixed, so that no stream depends on the day it is made."""

BLOCK_SECONDS = 12
FIRST_BLOCK = 18_573_000

HOUR = 3_600.0
DAY = 86_400.0

GAS_TRANSFER = 21_000
GAS_TOKEN = 52_000
GAS_CALL = 140_000
GAS_CREATION = 1_200_000

FAILED_SHARE = 0.012
"""Share of contract calls that revert."""

GWEI = 10**9

_ACTIVITY = (4, 3, 2, 2, 2, 3, 4, 6, 8, 10, 11, 12, 12, 12, 13, 13, 12, 11, 11, 10, 9, 8, 7, 5)
"""Relative traffic of each hour in UTC: a night of a sixth of the afternoon."""

_BUSY = [activity * len(_ACTIVITY) / sum(_ACTIVITY) for activity in _ACTIVITY]
_BUSY_SECONDS = list(itertools.accumulate((HOUR * busy for busy in _BUSY), initial=0.0))
"""Busy time since midnight at each full hour: it runs slowly by night and fast by day, and a day of it lasts a day."""

Process = Generator[float, None, None]


class Simulated(NamedTuple):
    """One message of the stream with its truth, which the message itself does not carry."""

    id: str
    """The Kafka key: hash, or hash:log_index for a token transfer."""

    value: bytes
    kind: str | None
    """Kind of fraud the transaction is part of, None for an ordinary one."""

    timestamp: int


class Flagged(NamedTuple):
    """An address that a list would name, and since when."""

    address: str
    list: str
    known_from: int


class _Sent(NamedTuple):
    kind: str | None
    tx_hash: str
    nonce: int
    sender: str
    to: str | None
    wei: int
    input_hex: str
    gas_used: int
    status: int


class _Moved(NamedTuple):
    kind: str | None
    tx_hash: str
    token: str
    sender: str
    to: str
    units: int


class World:
    """The clock, the balances, the inhabitants' agenda and the block that is being filled."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = float(START)
        self.balance: dict[str, int] = defaultdict(int)
        """Wei of each account. The addresses grow with the stream: some 200 bytes a new account."""

        self.flagged: list[Flagged] = []
        self._nonces: dict[str, int] = defaultdict(int)
        self._agenda: list[tuple[float, int, Process]] = []
        self._order = itertools.count()
        self._sent: list[_Sent] = []
        self._moved: list[_Moved] = []
        self._gas_price = 20.0 * GWEI

    def start(self, process: Process, after: float = 0.0) -> None:
        """Let a process begin `after` seconds from now."""
        heapq.heappush(self._agenda, (self.now + after, next(self._order), process))

    def wait(self, mean_seconds: float) -> float:
        """Return a random time until the next act: a Poisson process in busy time, so nights are quiet."""
        day, second = divmod(self.now, DAY)
        hour = int(second / HOUR)
        busy = _BUSY_SECONDS[hour] + (second - HOUR * hour) * _BUSY[hour]
        days, busy = divmod(busy + self.random.expovariate(1.0 / mean_seconds), DAY)
        hour = min(bisect.bisect_right(_BUSY_SECONDS, busy), len(_BUSY)) - 1
        second = HOUR * hour + (busy - _BUSY_SECONDS[hour]) / _BUSY[hour]
        return max(0.0, (day + days) * DAY + second - self.now)

    def account(self, ether: float = 0.0) -> str:
        """Return an address nobody has used, holding ether that was there before the stream began."""
        address = f"0x{self.random.getrandbits(160):040x}"
        if ether:
            self.balance[address] = int(ether * GWEI) * GWEI
        return address

    def amount(self, median: float, spread: float) -> float:
        """Return a heavy-tailed amount in ether; people round two of three to two digits."""
        ether = self.random.lognormvariate(0.0, spread) * median
        return float(f"{ether:.2g}") if self.random.random() < 0.66 else ether

    def send(self, sender: str, to: str, ether: float, kind: str | None = None) -> None:
        """Send ether, at most what the sender has after the fee."""
        self.send_wei(sender, to, int(ether * GWEI) * GWEI, kind)

    def send_wei(self, sender: str, to: str, wei: int, kind: str | None = None) -> None:
        """Send wei, at most what the sender has after the fee; a sender that cannot pay the fee sends nothing."""
        wei = min(wei, self.balance[sender] - self.fee(GAS_TRANSFER))
        if wei >= 0:
            self._act(sender, to, wei, "0x", GAS_TRANSFER, kind)

    def send_all(self, sender: str, to: str, kind: str | None = None) -> None:
        """Empty the account, leaving nothing but the fee."""
        self.send_wei(sender, to, self.balance[sender], kind)

    def call(self, sender: str, contract: str, input_hex: str, *, ether: float = 0.0, kind: str | None = None) -> bool:
        """Call a contract; return whether it succeeded. Frauds' calls always do."""
        failed = kind is None and self.random.random() < FAILED_SHARE
        wei = min(int(ether * GWEI) * GWEI, max(0, self.balance[sender] - self.fee(GAS_CALL)))
        self._act(sender, contract, wei, input_hex, GAS_CALL, kind, status=0 if failed else 1)
        return not failed

    def create(self, sender: str, n_bytes: int) -> None:
        """Create a contract of that many bytes of code."""
        code = f"60806040{self.random.getrandbits(8 * 32):064x}".ljust(2 * n_bytes, "0")
        self._act(sender, None, 0, "0x" + code, GAS_CREATION, None)

    def transfer(self, token: str, sender: str, to: str, units: int, kind: str | None = None) -> None:
        """Transfer a token: the sender calls the token's contract, which logs the transfer."""
        self._act(sender, token, 0, f"0xa9059cbb{word(to)}{units:064x}", GAS_TOKEN, kind)
        self.log_transfer(token, sender, to, units, kind)

    def transfer_from(self, token: str, spender: str, owner: str, to: str, units: int, kind: str | None = None) -> None:
        """Move a token of another's, as its approval allows, or as anyone may with zero units."""
        self._act(spender, token, 0, f"0x23b872dd{word(owner)}{word(to)}{units:064x}", GAS_TOKEN, kind)
        self.log_transfer(token, owner, to, units, kind)

    def log_transfer(self, token: str, sender: str, to: str, units: int, kind: str | None = None) -> None:
        """Let the last transaction log a transfer, as a contract does that moves tokens on its caller's behalf."""
        self._moved.append(_Moved(kind, self._sent[-1].tx_hash, token, sender, to, units))

    def flag(self, address: str, name: str, after: float) -> None:
        """Let a list name the address `after` seconds from now."""
        self.flagged.append(Flagged(address, name, int(self.now + after)))

    def next_block(self) -> list[Simulated]:
        """Run everyone up to the end of the next block in which anything happens, and return its messages.

        As ethereum-etl does block by block: the transactions first, then the token transfers.
        """
        while not self._sent:
            n_blocks = int((self._agenda[0][0] - START) // BLOCK_SECONDS)
            end = START + (n_blocks + 1) * BLOCK_SECONDS
            while self._agenda[0][0] < end:
                self.now, _, process = heapq.heappop(self._agenda)
                delay = next(process, None)
                if delay is not None:
                    heapq.heappush(self._agenda, (self.now + delay, next(self._order), process))
        messages = self._messages(FIRST_BLOCK + n_blocks, end)
        self._sent.clear()
        self._moved.clear()
        # Within 8 and 120 gwei: a drift of 2 % a block.
        self._gas_price = min(max(self._gas_price * self.random.uniform(0.98, 1.0204), 8.0 * GWEI), 120.0 * GWEI)
        return messages

    def fee(self, gas_used: int) -> int:
        """Return the wei that a transaction of that much gas costs in the block that is being filled."""
        return int(self._gas_price) * gas_used

    def _act(
        self, sender: str, to: str | None, wei: int, input_hex: str, gas_used: int, kind: str | None, status: int = 1
    ) -> None:
        nonce = self._nonces[sender]
        self._nonces[sender] = nonce + 1
        if status and to is not None:
            self.balance[sender] -= wei
            self.balance[to] += wei
        # A balance below zero stands for ether from outside of the stream: gas is never what stops an inhabitant.
        self.balance[sender] -= self.fee(gas_used)
        tx_hash = f"0x{self.random.getrandbits(256):064x}"
        self._sent.append(_Sent(kind, tx_hash, nonce, sender, to, wei, input_hex, gas_used, status))

    def _messages(self, block_number: int, timestamp: int) -> list[Simulated]:
        block_hash = f"0x{self.random.getrandbits(256):064x}"
        item_timestamp = ethereum_etl.rfc3339(timestamp)
        gas_price = int(self._gas_price)
        messages = []
        for index, sent in enumerate(self._sent):
            value = ethereum_etl.transaction(
                tx_hash=sent.tx_hash,
                nonce=sent.nonce,
                transaction_index=index,
                from_address=sent.sender,
                to_address=sent.to,
                value=sent.wei,
                gas=sent.gas_used * 5 // 4 if sent.gas_used > GAS_TRANSFER else GAS_TRANSFER,
                gas_price=gas_price,
                input_hex=sent.input_hex,
                block_timestamp=timestamp,
                block_number=block_number,
                block_hash=block_hash,
                gas_used=sent.gas_used,
                contract_address=None if sent.to is not None else "0x" + sent.tx_hash[-40:],
                status=sent.status,
                item_timestamp=item_timestamp,
            )
            messages.append(Simulated(sent.tx_hash, value, sent.kind, timestamp))
        for index, moved in enumerate(self._moved):
            value = ethereum_etl.token_transfer(
                token_address=moved.token,
                from_address=moved.sender,
                to_address=moved.to,
                value=moved.units,
                tx_hash=moved.tx_hash,
                log_index=index,
                block_timestamp=timestamp,
                block_number=block_number,
                block_hash=block_hash,
                item_timestamp=item_timestamp,
            )
            messages.append(Simulated(f"{moved.tx_hash}:{index}", value, moved.kind, timestamp))
        return messages


def word(address: str) -> str:
    """Return an address as the 32-byte word of a call's input."""
    return address[2:].rjust(64, "0")


def inhabited(seed: int) -> World:
    """Return a world with its people and its frauds, before its first block."""
    world = World(seed)
    settle(world)
    return world


def settle(world: World) -> None:
    """Let people and frauds begin in an empty world."""
    from service import frauds, people  # They are written in terms of the world.

    frauds.settle(world, people.settle(world))


def stream(seed: int) -> Iterator[Simulated]:
    """Yield the endless stream of a seed, in the order of event time."""
    world = inhabited(seed)
    while True:
        yield from world.next_block()


def messages(seed: int, n: int) -> list[bytes]:
    """Return the first n messages of a seed's stream.

    >>> messages(7, 3) == messages(7, 5)[:3]
    True
    """
    return [simulated.value for simulated in itertools.islice(stream(seed), n)]


def flagged(world: World, n: int) -> list[Flagged]:
    """Return the addresses that lists come to name for frauds begun within a world's next n messages, then or later."""
    n_seen = 0
    while n_seen < n:
        n_seen += len(world.next_block())
    return world.flagged
