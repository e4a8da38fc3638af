"""The ledger in a short form, and its verdicts; the long one is ``python -m tests.ledger``."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest

from asyncsession_kit import AsyncDatabase, Outcome
from asyncsession_kit.testing import FaultProxy

from .ledger.__main__ import BARE, DRIVERS, main, refuse
from .ledger.clients import bare, kit_unit
from .ledger.faults import CUTS, OneCut, RandomCuts
from .ledger.places import maria_place, postgres_place
from .ledger.runs import Place, Run, run, settled, table, until
from .ledger.truth import Claim, Found, judge, prepare
from .ledger.units import START, Transfer, plan
from .support.fixtures import MariaDatabase, PgDatabase

UNIT = Transfer(1, payer=1, payee=2, amount=10)
UNTOUCHED = {1: START, 2: START, 3: START}
ONCE = {1: START - 10, 2: START + 10, 3: START}
TWICE = {1: START - 20, 2: START + 20, 3: START}


@pytest.fixture
def quiet() -> Iterator[None]:
    """Pools and drivers log each connection that is cut."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


async def run_all(place: Place, driver: str, units: int = 60, seed: int = 5) -> list[Run]:
    """Run a driver's clients with so many cuts at COMMIT that a naive one must get some wrong."""
    return [
        await run(
            place,
            driver,
            name,
            client,
            RandomCuts(seed, at_commit=0.35, at_others=0.02),
            units=units,
            seed=seed,
        )
        for name, client in DRIVERS[driver]
    ]


def check_all(runs: Sequence[Run]) -> None:
    """Check that the package said no wrong word, and that the task was not an easy one."""
    for each in runs:
        assert len(each.claims) == 60
        assert each.cuts_at_commit > 5
        if each.client == BARE:
            assert each.verdict.doubled, table(runs)
        else:
            assert each.verdict.wrong == 0, table(runs)
            assert each.verdict.beliefs[Outcome.COMMITTED] > 15
            assert each.verdict.attempts > 60


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_no_wrong_word_on_postgresql(pg_database: PgDatabase, driver: str) -> None:
    """Nothing is lost, doubled or misreported; a loop around bare SQLAlchemy doubles some."""
    place = postgres_place(pg_database.url_for(f"postgresql+{driver}"), pg_database.view)
    check_all(await run_all(place, driver))


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
async def test_no_wrong_word_on_mariadb(maria_database: MariaDatabase) -> None:
    """The same there."""
    place = maria_place(maria_database.url_for("mysql+asyncmy"), maria_database.view)
    check_all(await run_all(place, "asyncmy"))


async def sweep(place: Place) -> list[tuple[str, str, Claim]]:
    """Cut once at each message of a unit, in each way, and return what was hit and what was said.

    Between two of them a unit that is left alone connects anew and prepares its statements.
    """
    await asyncio.to_thread(prepare, place.view)
    units = iter(plan(1000, 1))
    seen: list[tuple[str, str, Claim]] = []
    others: list[Claim] = []
    async with FaultProxy(place.url) as proxy:
        async with connected(proxy.url()) as database:
            for action in CUTS:
                for number in itertools.count(1):
                    others.append(await kit_unit(database, {}, next(units)))
                    cut = OneCut(action, number)
                    proxy.inject_where(cut)
                    claim = await kit_unit(database, {}, next(units))
                    proxy.heal()
                    if cut.hit is None:
                        others.append(claim)
                        break
                    seen.append((action, cut.hit, claim))
        await until(lambda: proxy.connections == 0, "links of the proxy are open")
    verdict = judge([*others, *(claim for _, _, claim in seen)], await settled(place))
    assert verdict.wrong == 0
    assert all(claim.belief is Outcome.COMMITTED for claim in others)
    return seen


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[AsyncDatabase]:
    """Yield a database with a single connection."""
    database = AsyncDatabase(url, pool_size=1, max_overflow=0)
    try:
        yield database
    finally:
        await database.dispose()


def check_sweep(seen: Sequence[tuple[str, str, Claim]], least: int) -> None:
    """Check that only a cut at COMMIT leaves doubt, and every earlier one another try."""
    expected = {
        "before": (Outcome.COMMITTED, 2),
        "COMMIT": (Outcome.UNKNOWN, 1),
        "after": (Outcome.COMMITTED, 1),
    }
    for action, hit, claim in seen:
        assert (claim.belief, claim.attempts) == expected[hit], (action, hit, claim)
    for action in CUTS:
        hits = [hit for each, hit, _ in seen if each == action]
        assert hits.count("before") >= least
        assert hits.count("COMMIT") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_each_message_of_a_unit_on_postgresql(pg_database: PgDatabase, driver: str) -> None:
    """Wherever the connection is cut, the word is right, and unknown is said of COMMIT alone."""
    place = postgres_place(pg_database.url_for(f"postgresql+{driver}"), pg_database.view)
    check_sweep(await sweep(place), 10)


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
async def test_each_message_of_a_unit_on_mariadb(maria_database: MariaDatabase) -> None:
    """The same there, where a unit is fewer messages."""
    place = maria_place(maria_database.url_for("mysql+asyncmy"), maria_database.view)
    check_sweep(await sweep(place), 3)


@pytest.mark.slow
async def test_without_cuts_there_is_nothing_to_get_wrong(pg_database: PgDatabase) -> None:
    """Even the naive loop is right then, so that the cuts are what it gets wrong."""
    place = postgres_place(pg_database.url_for("postgresql+psycopg"), pg_database.view)
    cuts = RandomCuts(1, at_commit=0, at_others=0)
    done = await run(place, "psycopg", BARE, bare, cuts, units=30, seed=1)
    assert done.verdict.wrong == done.cuts == 0
    assert done.verdict.beliefs == {Outcome.COMMITTED: 30}


@pytest.mark.parametrize(
    ("belief", "count", "balances", "wrong"),
    [
        (Outcome.COMMITTED, 1, ONCE, ""),
        (Outcome.COMMITTED, 0, UNTOUCHED, "lost"),
        (Outcome.COMMITTED, 2, TWICE, "doubled"),
        (Outcome.COMMITTED, 1, UNTOUCHED, "torn torn"),
        (Outcome.ROLLED_BACK, 0, UNTOUCHED, ""),
        (Outcome.ROLLED_BACK, 1, ONCE, "misreported"),
        (Outcome.ROLLED_BACK, 0, ONCE, "torn torn"),
        (Outcome.UNKNOWN, 0, UNTOUCHED, ""),
        (Outcome.UNKNOWN, 1, ONCE, ""),
        (Outcome.UNKNOWN, 2, TWICE, "doubled"),
    ],
)
def test_verdicts(belief: Outcome, count: int, balances: dict[int, int], wrong: str) -> None:
    """Each wrong word is seen for what it is; unknown is right with and without an effect."""
    verdict = judge([Claim(UNIT, belief, 1)], Found({1: count} if count else {}, balances))
    found = {
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "misreported": verdict.misreported,
        "torn": verdict.torn,
    }
    assert " ".join(word for word, units in found.items() for _ in units) == wrong
    assert verdict.wrong == len(wrong.split())


def test_who_contradicts_itself_misreports() -> None:
    """Right by chance is not right."""
    claim = Claim(UNIT, Outcome.COMMITTED, 2, "a unit ran again that had not been rolled back")
    assert judge([claim], Found({1: 1}, ONCE)).misreported == [1]


def test_a_level_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The command says so, rather than run at another level."""
    assert refuse("none", []) is None
    assert refuse("xid", ["commit_check"]) is None
    assert "scopes have no commit_check here yet" in (refuse("xid", ["auto_commit"]) or "")
    with pytest.raises(SystemExit):
        main(["--level", "sure"])
    assert "invalid choice: 'sure'" in capsys.readouterr().err
