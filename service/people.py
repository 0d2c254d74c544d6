"""The simulator's ordinary traffic: an exchange with its wallets, its users, merchants, tokens and contracts.

Some of it looks like fraud and is not: new accounts, deposit addresses that are emptied, a sale that many strangers pay
into, people who move house to a fresh account, airdrops of dust. The false alerts are counted on it.
"""

from dataclasses import dataclass, field

from service.simulator import DAY, HOUR, Process, World, word

N_USERS = 1_500
N_MERCHANTS = 40
N_TOKENS = 6
N_DEXES = 3

USER_ACTS_PER_DAY = 1.6
"""Mean of the users' personal rates, which spread over two orders of magnitude."""

SWAP = "0x38ed1739"
MULTICALL = "0x5ae401dc"
MINT = "0x1249c58b"


@dataclass
class Person:
    """A user of the exchange."""

    address: str
    seconds_per_act: float
    contacts: list[str]
    deposit_address: str | None = None


@dataclass
class Token:
    """An ERC-20 contract."""

    address: str
    unit: int
    """Smallest units in one coin."""

    def units(self, coins: float) -> int:
        """Return coins in smallest units, whole cents of a coin and at least one."""
        return max(1, int(coins * 100)) * self.unit // 100


@dataclass
class Town:
    """Everyone whom a transaction may meet."""

    hot_wallet: str
    cold_wallet: str
    merchants: list[str]
    tokens: list[Token]
    dexes: list[str]
    marketplace: str
    people: list[Person] = field(default_factory=list)
    withdrawals: list[tuple[str, float]] = field(default_factory=list)
    """Asked for and not yet paid; the hot wallet empties it every half minute or so."""


def settle(world: World) -> Town:
    """Found the town and let its people begin."""
    draw = world.random
    town = Town(
        hot_wallet=world.account(8_000.0),
        cold_wallet=world.account(150_000.0),
        merchants=[world.account(draw.uniform(1.0, 60.0)) for _ in range(N_MERCHANTS)],
        tokens=[Token(world.account(), 10 ** (6 if index < 2 else 18)) for index in range(N_TOKENS)],
        dexes=[world.account(20_000.0) for _ in range(N_DEXES)],
        marketplace=world.account(500.0),
    )
    for _ in range(N_USERS):
        person = _person(world, town, ether=world.amount(1.5, 1.4))
        world.start(_live(world, town, person), draw.uniform(0.0, 2.0 * person.seconds_per_act))
    world.start(_pay_out(world, town))
    world.start(_rebalance(world, town), 3 * HOUR)
    world.start(_newcomers(world, town), HOUR)
    world.start(_sales(world, town), 6 * HOUR)
    world.start(_airdrops(world, town), 10 * HOUR)
    for merchant in town.merchants:
        world.start(_trade(world, town, merchant), draw.uniform(0.0, DAY))
    return town


def withdraw(town: Town, person: Person, ether: float) -> None:
    """Ask the exchange to pay the person."""
    town.withdrawals.append((person.address, ether))


def victim(world: World, town: Town) -> Person:
    """Return someone for a fraud to meet; those who act often are met more often."""
    return min(world.random.choices(town.people, k=2), key=lambda person: person.seconds_per_act)


def _person(world: World, town: Town, ether: float) -> Person:
    draw = world.random
    # Log-normal with spread 1: its mean is exp(1 / 2) = 1.65 times its median.
    acts_per_day = draw.lognormvariate(0.0, 1.0) * USER_ACTS_PER_DAY / 1.65
    others = [person.address for person in draw.sample(town.people, min(len(town.people), draw.randint(1, 5)))]
    contacts = others + draw.sample(town.merchants, draw.randint(1, 3))
    person = Person(world.account(ether), DAY / acts_per_day, contacts)
    town.people.append(person)
    return person


def _live(world: World, town: Town, person: Person) -> Process:
    draw = world.random
    acts = (_pay, _pay_stranger, _deposit, _transfer_token, _use_contract, _approve, _create, _move_house)
    weights = (34, 6, 15, 24, 14, 3, 0.3, 0.4)
    while True:
        if world.balance[person.address] < 2e16:
            withdraw(town, person, world.amount(0.9, 1.3))
            yield draw.uniform(120.0, 900.0)
        draw.choices(acts, weights)[0](world, town, person)
        yield world.wait(person.seconds_per_act)


def _pay(world: World, _town: Town, person: Person) -> None:
    world.send(person.address, world.random.choice(person.contacts), _affordable(world, person, 0.12))


def _pay_stranger(world: World, town: Town, person: Person) -> None:
    stranger = world.random.choice(town.people).address if world.random.random() < 0.6 else world.account()
    if stranger != person.address:
        world.send(person.address, stranger, _affordable(world, person, 0.2))
        if world.random.random() < 0.4:
            person.contacts[world.random.randrange(len(person.contacts))] = stranger


def _deposit(world: World, town: Town, person: Person) -> None:
    if person.deposit_address is None:
        person.deposit_address = world.account()
    world.send(person.address, person.deposit_address, _affordable(world, person, 0.6))
    world.start(_collect(world, town, person.deposit_address), world.random.uniform(300.0, 2_400.0))


def _collect(world: World, town: Town, deposit_address: str) -> Process:
    """The exchange empties the deposit address into its hot wallet."""
    world.send_all(deposit_address, town.hot_wallet)
    return
    yield


def _transfer_token(world: World, town: Town, person: Person) -> None:
    token = world.random.choice(town.tokens)
    units = token.units(world.amount(80.0, 1.5))
    world.transfer(token.address, person.address, world.random.choice(person.contacts), units)


def _use_contract(world: World, town: Town, person: Person) -> None:
    draw = world.random
    if draw.random() < 0.2:
        world.call(
            person.address, town.marketplace, MINT + word(person.address), ether=_affordable(world, person, 0.05)
        )
        return
    dex = draw.choice(town.dexes)
    token = draw.choice(town.tokens)
    selector = SWAP if draw.random() < 0.5 else MULTICALL
    data = selector + "".join(f"{draw.getrandbits(64):064x}" for _ in range(draw.randint(4, 9)))
    if world.call(person.address, dex, data, ether=_affordable(world, person, 0.3)):
        world.log_transfer(token.address, dex, person.address, token.units(world.amount(200.0, 1.3)))


def _approve(world: World, town: Town, person: Person) -> None:
    """Honest approvals: of an exchange's contract, or of the marketplace for all one's collectibles."""
    draw = world.random
    if draw.random() < 0.2:
        world.call(person.address, draw.choice(town.tokens).address, f"0xa22cb465{word(town.marketplace)}{1:064x}")
        return
    units = 2**256 - 1 if draw.random() < 0.6 else draw.getrandbits(80)
    world.call(
        person.address, draw.choice(town.tokens).address, f"0x095ea7b3{word(draw.choice(town.dexes))}{units:064x}"
    )


def _create(world: World, _town: Town, person: Person) -> None:
    world.create(person.address, world.random.randint(400, 3_000))


def _move_house(world: World, _town: Town, person: Person) -> None:
    """Move everything to a fresh account of one's own, as people do with a new device."""
    home = world.account()
    world.send_all(person.address, home)
    person.address = home


def _affordable(world: World, person: Person, median: float) -> float:
    return min(world.amount(median, 1.5), 0.7 * max(0, world.balance[person.address]) / 1e18)


def _pay_out(world: World, town: Town) -> Process:
    while True:
        for address, ether in town.withdrawals:
            world.send(town.hot_wallet, address, ether)
        town.withdrawals.clear()
        yield world.random.uniform(20.0, 40.0)


def _rebalance(world: World, town: Town) -> Process:
    """Keep between 2,000 and 12,000 ether in the hot wallet."""
    while True:
        ether = world.balance[town.hot_wallet] / 1e18
        if ether < 2_000:
            world.send(town.cold_wallet, town.hot_wallet, 4_000.0)
        elif ether > 12_000:
            world.send(town.hot_wallet, town.cold_wallet, ether - 8_000.0)
        yield world.random.uniform(4 * HOUR, 8 * HOUR)


def _newcomers(world: World, town: Town) -> Process:
    """New users: their first transaction is a withdrawal from the exchange to a fresh account."""
    while True:
        person = _person(world, town, ether=0.0)
        withdraw(town, person, world.amount(0.6, 1.3))
        world.start(_live(world, town, person), world.random.uniform(300.0, 6 * HOUR))
        yield world.wait(HOUR / 2)


def _sales(world: World, town: Town) -> Process:
    """Now and then a newcomer sells something: many pay a fresh account in a day, and it moves on to the exchange."""
    while True:
        yield world.wait(2 * DAY)
        world.start(_sale(world, town, world.account()))


def _sale(world: World, town: Town, seller: str) -> Process:
    price = round(world.amount(0.1, 0.6), 3)
    for _ in range(world.random.randint(15, 50)):
        buyer = world.random.choice(town.people)
        if world.balance[buyer.address] > price * 1.1e18:
            world.send(buyer.address, seller, price)
        yield world.wait(0.5 * HOUR)
    world.send(seller, town.hot_wallet, 0.97 * world.balance[seller] / 1e18)


def _airdrops(world: World, town: Town) -> Process:
    """Dust of a token to many users at once, by its issuer."""
    while True:
        yield world.wait(1.5 * DAY)
        token = world.random.choice(town.tokens)
        issuer = world.account(1.0)
        for person in world.random.sample(town.people, 60):
            world.transfer(token.address, issuer, person.address, token.unit * world.random.randint(1, 5))
            yield world.random.uniform(5.0, 60.0)


def _trade(world: World, town: Town, merchant: str) -> Process:
    """A merchant pays suppliers and banks the rest."""
    suppliers = [world.account() for _ in range(world.random.randint(2, 6))]
    while True:
        ether = world.balance[merchant] / 1e18
        if ether > 1.0:
            world.send(merchant, world.random.choice(suppliers), ether * world.random.uniform(0.1, 0.4))
            if world.random.random() < 0.3:
                world.send(merchant, town.hot_wallet, ether * world.random.uniform(0.3, 0.5))
        yield world.wait(DAY / 3)
