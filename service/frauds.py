"""The simulator's frauds: phishing, address poisoning, approval drain, peel chain and sweep, each with its truth."""

from collections.abc import Callable

from service.people import Person, Token, Town, victim, withdraw
from service.simulator import DAY, HOUR, Process, World, word

PHISHING = "phishing"
POISONING = "address_poisoning"
DRAIN = "approval_drain"
PEEL = "peel_chain"
SWEEP = "sweep"

LISTS = {PHISHING: "phishing", POISONING: "scam", DRAIN: "scam", PEEL: "stolen", SWEEP: "stolen"}
"""Every kind, with the screening list that comes to name its accounts."""

POISONED_SHARE = 0.35
"""Share of the poisoned who fall for it: far above what is seen in the wild, so that a minute's stream holds some."""

KNOWN_AFTER = 0.75 * DAY
"""Median time from a fraud's first transaction until a list names its account."""


def settle(world: World, town: Town) -> None:
    """Let each kind of fraud begin, on average once in the given time."""
    schemes: list[tuple[Callable[[World, Town], Process], float]] = [
        (_phish, 0.5 * DAY),
        (_poison, 0.8 * DAY),
        (_drain, 0.6 * DAY),
        (_peel, 1.0 * DAY),
        (_sweep, 0.5 * DAY),
    ]
    for scheme, mean_seconds in schemes:
        world.start(_recur(world, town, scheme, mean_seconds), world.random.uniform(0.0, mean_seconds))


def look_alike(world: World, address: str) -> str:
    """Return a fresh address with the first and last four hex digits of another: what a wallet's screen shows of it."""
    return address[:6] + world.account()[6:38] + address[38:]


def _recur(world: World, town: Town, scheme: Callable[[World, Town], Process], mean_seconds: float) -> Process:
    while True:
        world.start(scheme(world, town))
        yield world.wait(mean_seconds)


def _known(world: World, address: str, kind: str) -> None:
    world.flag(address, LISTS[kind], world.random.lognormvariate(0.0, 0.8) * KNOWN_AFTER)


def _afford(world: World, town: Town, person: Person, ether: float) -> Process:
    """Let a person who has too little withdraw from the exchange first, which is ordinary traffic."""
    if world.balance[person.address] < 1.05e18 * ether:
        withdraw(town, person, 1.2 * ether + 0.05)
        yield 300.0


def _launder(world: World, town: Town, loot: str, kind: str) -> Process:
    """Split the loot over mules, which pass it on: to the exchange, or out of sight."""
    draw = world.random
    n_mules = draw.randint(1, 4)
    for left in range(n_mules, 0, -1):
        mule = world.account()
        share = world.balance[loot] / 1e18 / left
        if left > 1:
            world.send(loot, mule, share * draw.uniform(0.6, 1.0), kind)
        else:
            world.send_all(loot, mule, kind)
        yield draw.uniform(120.0, 2 * HOUR)
        outlet = town.hot_wallet if draw.random() < 0.3 else world.account()
        world.send_all(mule, outlet, kind)
        yield draw.uniform(60.0, HOUR)


def _phish(world: World, town: Town) -> Process:
    """Many small victims pay a fresh collector in a day or two; it sends on a part meanwhile and the rest then."""
    draw = world.random
    collector = world.account()
    _known(world, collector, PHISHING)
    for _ in range(draw.randint(8, 45)):
        person = victim(world, town)
        ether = world.amount(0.35, 1.1)
        yield from _afford(world, town, person, ether)
        world.send(person.address, collector, ether, PHISHING)
        if draw.random() < 0.12:
            world.send(collector, world.account(), 0.9 * world.balance[collector] / 1e18, PHISHING)
        yield world.wait(HOUR)
    yield from _launder(world, town, collector, PHISHING)


def _poison(world: World, town: Town) -> Process:
    """Plant look-alikes of people's own counterparties in their history, and wait for one to be copied."""
    attacker = world.account(3.0)
    _known(world, attacker, POISONING)
    for _ in range(world.random.randint(8, 25)):
        world.start(_poison_one(world, town, attacker, victim(world, town)))
        yield world.random.uniform(30.0, 900.0)


def _poison_one(world: World, town: Town, attacker: str, person: Person) -> Process:
    draw = world.random
    contact = draw.choice(person.contacts)
    fake = look_alike(world, contact)
    yield from _afford(world, town, person, 0.05)
    # Copied from the history means that the real counterparty stands there: the victim has paid it before.
    address = person.address
    world.send(address, contact, 0.05)
    yield draw.uniform(60.0, 600.0)
    if draw.random() < 0.5:
        world.transfer_from(draw.choice(town.tokens).address, attacker, person.address, fake, 0, POISONING)
    else:
        world.send(attacker, fake, 0.002, POISONING)
        yield draw.uniform(12.0, 120.0)
        world.send(fake, person.address, 0.00001, POISONING)
    if draw.random() < POISONED_SHARE:
        yield world.wait(8 * HOUR)
        ether = world.amount(0.4, 1.2)
        yield from _afford(world, town, person, ether)
        if person.address != address:
            return
        world.send(address, fake, ether, POISONING)
        _known(world, fake, POISONING)
        yield draw.uniform(120.0, 2 * HOUR)
        world.send_all(fake, world.account(), POISONING)


def _drain(world: World, town: Town) -> Process:
    """A site makes people sign an approval; minutes later the drainer takes their tokens, and sells them for ether."""
    draw = world.random
    drainer = world.account(2.0)
    loot = world.account()
    _known(world, drainer, DRAIN)
    for _ in range(draw.randint(4, 14)):
        person = victim(world, town)
        token = draw.choice(town.tokens)
        units = token.units(world.amount(900.0, 1.4))
        _get_allowance(world, person, token, drainer)
        yield draw.uniform(24.0, 900.0)
        world.transfer_from(token.address, drainer, person.address, loot, units, DRAIN)
        yield world.wait(1.5 * HOUR)
    token = draw.choice(town.tokens)
    world.transfer(token.address, loot, draw.choice(town.dexes), token.units(draw.uniform(2_000.0, 20_000.0)), DRAIN)
    world.send(draw.choice(town.dexes), loot, world.amount(4.0, 0.8))
    yield draw.uniform(300.0, 2 * HOUR)
    yield from _launder(world, town, loot, DRAIN)


def _get_allowance(world: World, person: Person, token: Token, drainer: str) -> None:
    way = world.random.random()
    if way < 0.6:
        data = f"0x095ea7b3{word(drainer)}{2**256 - 1:064x}"
        world.call(person.address, token.address, data, kind=DRAIN)
    elif way < 0.85:
        signature = "".join(f"{world.random.getrandbits(256):064x}" for _ in range(2))
        permit = f"{word(person.address)}{word(drainer)}{2**256 - 1:064x}{int(world.now + HOUR):064x}{27:064x}"
        world.call(drainer, token.address, f"0xd505accf{permit}{signature}", kind=DRAIN)
    else:
        data = f"0xa22cb465{word(drainer)}{1:064x}"
        world.call(person.address, token.address, data, kind=DRAIN)


def _peel(world: World, _town: Town) -> Process:
    """Stolen ether travels through fresh accounts; at each a little is peeled off and cashed out."""
    draw = world.random
    holder = world.account(draw.uniform(40.0, 400.0))
    _known(world, holder, PEEL)
    for _ in range(draw.randint(8, 25)):
        heir = world.account()
        world.send(holder, world.account(), world.balance[holder] / 1e18 * draw.uniform(0.01, 0.08), PEEL)
        yield draw.uniform(12.0, 600.0)
        world.send_all(holder, heir, PEEL)
        holder = heir
        yield draw.uniform(120.0, 3 * HOUR)
    world.send_all(holder, world.account(), PEEL)


def _sweep(world: World, town: Town) -> Process:
    """Keys are stolen: their accounts are emptied within minutes, tokens first, then the ether."""
    draw = world.random
    thief = world.account(0.3)
    _known(world, thief, SWEEP)
    for _ in range(draw.randint(1, 5)):
        person = max(draw.sample(town.people, 20), key=lambda one: world.balance[one.address])
        stolen = person.address
        for token in draw.sample(town.tokens, draw.randint(0, 2)):
            world.transfer(token.address, stolen, thief, token.units(world.amount(400.0, 1.2)), SWEEP)
            yield draw.uniform(12.0, 60.0)
        world.send_all(stolen, thief, SWEEP)
        # Whose key is stolen starts afresh.
        person.address = world.account()
        yield draw.uniform(30.0, HOUR)
    yield draw.uniform(300.0, 4 * HOUR)
    yield from _launder(world, town, thief, SWEEP)
