"""The sender of the demo on a live chain: the simulator's transactions, signed and mined by a local node.

It runs in a process of its own. Everybody in the simulated world holds a key, and every token is a contract that logs
transfers, so that what the ingester reads is what a chain holds. In the middle the newest blocks are replaced by
others that lack the transactions of every fourth sender.
"""

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from service import simulator
from service.anvil import Call, ask
from service.publisher import Sent, told

BLOCKS_PER_SECOND = 4.0

REORG_BLOCKS = 6
"""Blocks that the reorganisation replaces."""

VANISHING_EVERY = 4
"""In a reorganisation the transactions of one sender in so many are not in the new blocks."""

WEALTH_WEI = hex(10**24)
"""Of each sender: what the simulated world takes for granted must never be what stops a transaction."""

GAS_MIN = 100_000

TRANSFER = "ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
"""Topic of ERC-20's Transfer(address,address,uint256)."""


def _token_code() -> str:
    """Return the code of a contract that logs the transfers it is called for, and keeps no balances.

    `transfer` logs its caller, `transferFrom` the owner it names; any other call does nothing.
    """
    log = f"7f{TRANSFER}60206000a300"
    transfer = "5b60243560005260043533" + log
    # PUSH1 0, CALLDATALOAD, PUSH1 224, SHR: the selector. Then for each method DUP1, PUSH4, EQ, PUSH1 target, JUMPI.
    start = "60003560e01c" + "8063a9059cbb1460{:02x}57" + "806323b872dd1460{:02x}57" + "00"
    n_start = len(start.format(0, 0)) // 2
    return "0x" + start.format(n_start, n_start + len(transfer) // 2) + transfer + "5b604435600052602435600435" + log


TOKEN_CODE = _token_code()


class ChainPlan(NamedTuple):
    """What to send where, and how fast."""

    url: str
    chain_id: int
    seed: int
    rate: float
    n: int


class Reorganised(NamedTuple):
    """One report to the demo: blocks were replaced."""

    n_blocks: int
    orphaned: list[str]
    """Ids of the transactions and token transfers that the replaced blocks held."""

    standing: list[tuple[str, str | None]]
    """Id and kind of fraud of what the new blocks hold."""


class KeyedWorld(simulator.World):
    """A simulated world in which everybody can sign."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.keys: dict[str, Any] = {}
        """An account that can sign of each address. An imitated address has none: it would take 2^32 tries."""

    def account(self, ether: float = 0.0) -> str:
        """Return an address with a key nobody has used, holding ether that was there before the stream began."""
        from eth_account import Account

        signer = Account.from_key(self.random.getrandbits(248).to_bytes(32, "big"))
        address: str = signer.address.lower()
        self.keys[address] = signer
        if ether:
            self.balance[address] = int(ether * simulator.GWEI) * simulator.GWEI
        return address


def inhabited(seed: int) -> KeyedWorld:
    """Return a world in which everybody can sign, with its people and its frauds, before its first block."""
    world = KeyedWorld(seed)
    simulator.settle(world)
    return world


class _Message(Struct):
    """The part of a simulated message that is signed."""

    type: str
    from_address: str
    to_address: str | None
    value: int
    block_timestamp: int
    gas: int = 0
    input: str = "0x"
    token_address: str | None = None


class _Signed(NamedTuple):
    raw: str
    tx_hash: str
    sender: str
    kind: str | None


_decode = msgspec.json.Decoder(_Message).decode


class _Block(NamedTuple):
    """One of the newest blocks, with what is needed to replace it."""

    signed: list[_Signed]
    held: list[str]
    """Ids of its transactions and token transfers."""

    endowed: set[str]
    """Who has no wealth without this block."""


class LiveChain:
    """A local node and the simulated world whose transactions it takes."""

    def __init__(self, url: str, chain_id: int, seed: int, *, depth_max: int = REORG_BLOCKS) -> None:
        """Take a node whose chain is empty, started with `--no-mining` at the time `simulator.START - 1`.

        Args:
            url: The node's.
            chain_id: What is signed for.
            seed: Of the simulated world.
            depth_max: Most blocks of a reorganisation.
        """
        self._url = url
        self._chain_id = chain_id
        self._world = inhabited(seed)
        self._nonces: dict[str, int] = {}
        self._contracts: set[str] = set()
        self._newest: deque[_Block] = deque(maxlen=depth_max)
        self._n_wealthy = 0
        self._timestamp = 0

    def extend(self, n: int) -> list[tuple[str, str | None]]:
        """Mine a block with the next n simulated transactions or somewhat more.

        Returns:
            Id, as the topic is keyed, and kind of fraud of what the block holds.
        """
        signed: list[_Signed] = []
        while len(signed) < n:
            for message in self._world.next_block():
                found = _decode(message.value)
                self._timestamp = found.block_timestamp
                if found.token_address is not None:
                    self._contracts.add(found.token_address)
                elif found.from_address in self._world.keys:
                    signed.append(self._sign(found, message.kind))
        newcomers = set(itertools.islice(self._world.keys, self._n_wealthy, None))
        self._n_wealthy += len(newcomers)
        self._endow(newcomers)
        ask(self._url, *(Call("eth_sendRawTransaction", [each.raw]) for each in signed))
        ask(self._url, Call("evm_setNextBlockTimestamp", [self._timestamp]), Call("evm_mine", []))
        [held] = self._held(1)
        kinds = {each.tx_hash: each.kind for each in signed}
        self._newest.append(_Block(signed, held, newcomers))
        return [(name, kinds[name[:66]]) for name in held]

    def reorganise(self, n_blocks: int = REORG_BLOCKS) -> Reorganised:
        """Replace the newest blocks by as many others, without the transactions of some senders.

        Args:
            n_blocks: At most what the chain has, and `depth_max`.
        """
        replaced = [self._newest.pop() for _ in range(min(n_blocks, len(self._newest)))][::-1]
        senders = list(dict.fromkeys(each.sender for block in replaced for each in block.signed))
        # Whoever got wealth meanwhile has none before these blocks, and could pay for nothing in the new ones.
        vanishing = set(senders[::VANISHING_EVERY]).union(*(block.endowed for block in replaced))
        kept = [[each for each in block.signed if each.sender not in vanishing] for block in replaced]
        pairs = [(each.raw, i) for i, block in enumerate(kept) for each in block]
        ask(self._url, Call("anvil_reorg", [len(replaced), pairs]))
        self._endow(vanishing)
        # Their later transactions follow on what is left of them.
        counts = ask(self._url, *(Call("eth_getTransactionCount", [sender, "latest"]) for sender in vanishing))
        self._nonces.update(zip(vanishing, (int(count, 16) for count in counts), strict=True))
        held = self._held(len(replaced))
        # What was given after the newest of the new blocks, a later reorganisation takes back together with that block.
        given = [set[str]() for _ in kept[1:]] + [vanishing]
        self._newest += (_Block(*each) for each in zip(kept, held, given, strict=True))
        kinds = {each.tx_hash: each.kind for block in kept for each in block}
        standing = [(name, kinds[name[:66]]) for block in held for name in block]
        return Reorganised(len(replaced), [name for block in replaced for name in block.held], standing)

    def _endow(self, accounts: set[str]) -> None:
        """Give accounts wealth, and tokens their code: what the chain was told by a call, a reorganisation forgets."""
        ask(
            self._url,
            *(Call("anvil_setBalance", [address, WEALTH_WEI]) for address in accounts),
            *(Call("anvil_setCode", [address, TOKEN_CODE]) for address in self._contracts),
        )

    def _held(self, n_blocks: int) -> list[list[str]]:
        """Return the ids of what each of the newest blocks holds."""
        head = int(ask(self._url, Call("eth_blockNumber", []))[0], 16)
        numbers = range(head - n_blocks + 1, head + 1)
        found = ask(self._url, *(Call("eth_getBlockReceipts", [hex(number)]) for number in numbers))
        return [[name for receipt in receipts for name in _names(receipt)] for receipts in found]

    def _sign(self, message: _Message, kind: str | None) -> _Signed:
        sender = message.from_address
        nonce = self._nonces.get(sender, 0)
        self._nonces[sender] = nonce + 1
        wanted: dict[str, Any] = {
            "value": message.value,
            "gas": max(message.gas, GAS_MIN),
            "gasPrice": 20 * simulator.GWEI,
            "nonce": nonce,
            "chainId": self._chain_id,
            "data": message.input,
        }
        if message.to_address is not None:
            from eth_utils.address import to_checksum_address

            wanted["to"] = to_checksum_address(message.to_address)
        made = self._world.keys[sender].sign_transaction(wanted)
        return _Signed("0x" + made.raw_transaction.hex(), "0x" + made.hash.hex(), sender, kind)


def _names(receipt: dict[str, Any]) -> list[str]:
    tx_hash = receipt["transactionHash"]
    return [tx_hash, *(f"{tx_hash}:{int(log['logIndex'], 16)}" for log in receipt["logs"])]


def publish(plan: ChainPlan, pipe: Connection) -> None:
    """Mine the first block, wait for `go`, mine the rest with a reorganisation in the middle, end with None.

    Before the reorganisation it says `ready` and waits to be told. Anything else on the pipe stops it early, and so
    does the end of the demo. Runs in a process of its own.
    """
    # The demo ended: nobody is left to report to.
    with contextlib.suppress(EOFError, ConnectionError):
        _publish(plan, pipe)


def _publish(plan: ChainPlan, pipe: Connection) -> None:
    chain = LiveChain(plan.url, plan.chain_id, plan.seed)
    per_block = max(1, round(plan.rate / BLOCKS_PER_SECOND))
    pipe.send(Sent(chain.extend(per_block), 0))
    if told(pipe, wait=True) == "go":
        for i in _paced(pipe, range(1, -(-plan.n // per_block)), per_block / plan.rate):
            pipe.send(Sent(chain.extend(per_block), 0))
            if i == plan.n // per_block // 2:
                pipe.send("ready")
                if told(pipe, wait=True) != "go":
                    break
                pipe.send(chain.reorganise())
    pipe.send(None)


def _paced(pipe: Connection, numbers: range, seconds: float) -> Iterator[int]:
    """Yield a number every so many seconds until they are over or something is on the pipe."""
    for number in numbers:
        started_s = time.perf_counter()
        yield number
        while (left_s := started_s + seconds - time.perf_counter()) > 0:
            time.sleep(left_s)
        if told(pipe, wait=False) is not None:
            return
