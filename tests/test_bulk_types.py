"""A bulk insert stores exactly what an INSERT by SQLAlchemy stores, by whichever driver."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import enum
import ipaddress
import itertools
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    ARRAY,
    JSON,
    REAL,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Double,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    String,
    Table,
    Text,
    Time,
    TypeDecorator,
    Uuid,
    delete,
    func,
    insert,
    quoted_name,
    text,
)
from sqlalchemy.dialects.postgresql import INET, INT4RANGE, INTERVAL, JSONB, TSVECTOR, Range
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.types import UserDefinedType

from asyncsession_kit import (
    AsyncDatabase,
    BulkResult,
    BulkRowError,
    Database,
    async_bulk_insert,
    bulk_insert,
)
from asyncsession_kit._bulk import _line_in
from asyncsession_kit._types import AsyncSession
from tests.support.postgres import PostgresCluster

metadata = MetaData()
numbers = itertools.count()


class Colour(enum.Enum):
    """Is a value with another name in the database."""

    RED = "red"
    GREEN = "green"


class Shouted(TypeDecorator[str]):
    """Is stored in capitals; a number is refused."""

    impl = String(50)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: object) -> Any:
        """Return the capitals."""
        return None if value is None else value.upper()


class Lowered(UserDefinedType[str]):
    """Is put into a function of SQL."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Return the type in the database."""
        return "TEXT"

    def bind_expression(self, value: Any) -> Any:
        """Return what stands in the statement."""
        return func.lower(value)


class Money(UserDefinedType[str]):
    """Has no binary form that asyncpg knows."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Return the type in the database."""
        return "MONEY"


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**31), 2**31)
    | texts.filter(lambda t: "\\" not in t),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
naive = st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30))
offsets = st.integers(-12, 14).map(lambda hours: dt.timezone(dt.timedelta(hours=hours)))
spans = st.timedeltas(dt.timedelta(days=-100_000), dt.timedelta(days=100_000))

# The type of a column, and values that a COPY takes.
KINDS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "small": (SmallInteger(), st.integers(-(2**15), 2**15 - 1)),
    "whole": (Integer(), st.integers(-(2**31), 2**31 - 1)),
    "big": (BigInteger(), st.integers(-(2**63), 2**63 - 1)),
    "exact": (Numeric(20, 6), st.decimals(-(10**13), 10**13, places=6)),
    "float": (Double(), st.floats()),
    "flag": (Boolean(), st.booleans()),
    "short": (String(20), texts),
    "long": (Text(), texts),
    "bytes": (LargeBinary(), st.binary(max_size=20)),
    "day": (Date(), st.dates(dt.date(1, 1, 2), dt.date(9999, 12, 30))),
    "moment": (DateTime(), naive),
    "instant": (
        DateTime(timezone=True),
        st.datetimes(dt.datetime(2, 1, 1), dt.datetime(9998, 1, 1), timezones=offsets),
    ),
    "hour": (Time(), st.times()),
    "span": (Interval(), spans),
    "native_span": (INTERVAL(), spans),
    "key": (Uuid(), st.uuids()),
    "key_text": (Uuid(as_uuid=False), st.uuids().map(str)),
    "json": (JSON(), json_values),
    "jsonb": (JSONB(none_as_null=True), json_values),
    "colour": (Enum(Colour), st.sampled_from(Colour)),
    "plain_colour": (Enum(Colour, native_enum=False, length=10), st.sampled_from(Colour)),
    "shouted": (Shouted(), st.sampled_from(["a", "b c", "\\n"])),
}
TABLE = Table(
    "kinds",
    metadata,
    Column("id", Integer, primary_key=True),
    *(Column(name, kind) for name, (kind, _) in KINDS.items()),
)
rows_of_kinds = st.lists(
    st.fixed_dictionaries({name: st.none() | values for name, (_, values) in KINDS.items()}),
    min_size=1,
    max_size=8,
)

DAY = dt.datetime(2024, 2, 29, 12, 30, 15, 123456)
EAST = dt.timezone(dt.timedelta(hours=5, minutes=30))

# Values that a COPY would store in another way than an INSERT, or not at all, with some driver.
ODD: list[tuple[Any, Any]] = [
    (Numeric(30, 20), 0.1234567890123456789),
    (Numeric(20, 6, asdecimal=False), 1.5),
    (REAL(), 16777217.0000001),
    (Float(24), 0.1),
    (Float(53), 7),
    (Integer(), True),
    (Integer(), 2.5),
    (Integer(), Decimal("2.5")),
    (Boolean(), 1),
    (String(20), 5),
    (Date(), DAY),
    (DateTime(), DAY.date()),
    (DateTime(), DAY.replace(tzinfo=EAST)),
    (DateTime(timezone=True), DAY),
    (Time(), DAY.time().replace(tzinfo=EAST)),
    (Time(timezone=True), DAY.time().replace(tzinfo=EAST)),
    (Uuid(), uuid.UUID(int=5)),
    (ARRAY(Integer), [1, None, 3]),
    (ARRAY(Text), ['a"b', "c\\d", "{e,f}"]),
    (INET(), "10.0.0.1/8"),
    (INET(), ipaddress.ip_address("::1")),
    (INT4RANGE(), Range(1, 5)),
    (TSVECTOR(), "a fat cat"),
    (Money(), "12.34"),
    (Lowered(), "ABC"),
    (JSON(), [1, {"a": None}]),
    (JSON(), JSON.NULL),
]
DRIVERS = ["asyncpg", "psycopg_async", "psycopg", "psycopg2"]
AS_STORED = text("SELECT CAST(t AS text) FROM kinds t ORDER BY id")


class Place:
    """Is a database by one driver, with one call for both worlds."""

    def __init__(self, url: str, driver: str) -> None:
        self.is_async = driver in ("asyncpg", "psycopg_async")
        self._runner = asyncio.Runner()
        name = driver.removesuffix("_async")
        url = url.replace("postgresql:", f"postgresql+{name}:")
        self.db: Any = AsyncDatabase(url) if self.is_async else Database(url)

    def run(self, work: Callable[[Any], Iterator[Any]]) -> Any:
        """Run a generator that yields what is to be awaited in a task, in a scope undone after."""
        return self._runner.run(self._in_task(work)) if self.is_async else self._in_thread(work)

    async def _in_task(self, work: Callable[[Any], Iterator[Any]]) -> Any:
        async with self.db.session_scope(auto_commit=False) as session:
            steps, answer = work(session), None
            while True:
                try:
                    step = steps.send(answer)  # type: ignore[attr-defined]
                except StopIteration as end:
                    await session.rollback()
                    return end.value
                answer = await step

    def _in_thread(self, work: Callable[[Any], Iterator[Any]]) -> Any:
        with self.db.session_scope(auto_commit=False) as session:
            steps, answer = work(session), None
            while True:
                try:
                    answer = steps.send(answer)  # type: ignore[attr-defined]
                except StopIteration as end:
                    session.rollback()
                    return end.value

    def bulk(self, session: Any, *arguments: Any, **options: Any) -> Any:
        """Insert in bulk, by the function of the world."""
        function: Any = async_bulk_insert if self.is_async else bulk_insert
        return function(session, *arguments, **options)

    def close(self) -> None:
        """Dispose of the database."""
        if self.is_async:
            self._runner.run(self.db.dispose())
        else:
            self.db.dispose()
        self._runner.close()


@pytest.fixture(scope="module")
def server(postgres: PostgresCluster) -> Iterator[str]:
    """The URL of a database that the tests of this file share, with the tables."""
    postgres.create_database("types")
    url = postgres.url(database="types")
    db = Database(url)
    db.create_all(metadata)
    db.dispose()
    yield url
    postgres.drop_database("types")


@pytest.fixture(params=DRIVERS, scope="module")
def place(request: pytest.FixtureRequest, server: str) -> Iterator[Place]:
    """The database, by each driver in turn."""
    place = Place(server, request.param)
    yield place
    place.close()


# --- the same as an INSERT ------------------------------------------------------------------------


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(rows=rows_of_kinds)
def test_copy_stores_what_an_insert_stores(place: Place, rows: list[dict[str, Any]]) -> None:
    """Whatever the values of these types, the server's own text of each row is the same."""
    numbered = [{"id": number, **row} for number, row in enumerate(rows)]

    def work(session: Any) -> Iterator[Any]:
        yield session.execute(insert(TABLE), numbered)
        inserted = (yield session.execute(AS_STORED)).scalars().all()
        yield session.execute(delete(TABLE))
        result = yield place.bulk(session, TABLE, numbered, chunk_size=3)
        copied = (yield session.execute(AS_STORED)).scalars().all()
        return inserted, copied, result

    inserted, copied, result = place.run(work)
    assert copied == inserted
    assert result.method == "copy"


@pytest.mark.parametrize(("kind", "value"), ODD, ids=[f"{k!r}-{v!r}"[:50] for k, v in ODD])
def test_what_copy_would_store_otherwise_is_inserted(place: Place, kind: Any, value: Any) -> None:
    """An odd value is stored as an INSERT stores it, or refused where that is."""
    # asyncpg knows the types of a table by its name.
    name = f"odd_{next(numbers)}"
    table = Table(name, MetaData(), Column("value", kind))
    rows = [{"value": value}, {"value": None}]

    def tried(store: Callable[[Any], Any]) -> Any:
        def work(session: Any) -> Iterator[Any]:
            created = kind.compile(dialect=session.get_bind().dialect)
            yield session.execute(text(f"CREATE TEMPORARY TABLE {name} (value {created})"))
            yield store(session)
            found = yield session.execute(text(f"SELECT CAST(value AS text) FROM {name}"))
            return found.scalars().all()

        try:
            return place.run(work)
        except Exception:
            return "refused"

    inserted = tried(lambda session: session.execute(insert(table), rows))
    assert tried(lambda session: place.bulk(session, table, rows)) == inserted


def test_the_method_may_change_with_the_values(place: Place) -> None:
    """A chunk that COPY would store otherwise is inserted, and so is what comes after it."""
    exact = [Decimal(1), Decimal(2), 0.1, Decimal(3)]
    rows = [{"id": number, "exact": value} for number, value in enumerate(exact)]

    def work(session: Any) -> Iterator[Any]:
        result = yield place.bulk(session, TABLE, rows, chunk_size=1)
        found = yield session.execute(text("SELECT CAST(exact AS text) FROM kinds ORDER BY id"))
        return result, found.scalars().all()

    result, found = place.run(work)
    assert found == ["1.000000", "2.000000", "0.100000", "3.000000"]
    assert result.rows == 4
    # asyncpg sends a float in the same way for both.
    by_asyncpg = isinstance(place.db, AsyncDatabase) and place.db.engine.driver == "asyncpg"
    assert result.method == ("copy" if by_asyncpg else "insert")


# --- values that cannot be sent -------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [{"shouted": 5}, {"colour": 5}, {"short": "x" * 21}, {"long": "nul\0"}]
)
def test_a_value_that_is_refused_names_its_row(place: Place, change: dict[str, Any]) -> None:
    """By the conversion of its type, the driver, or the server: the error has the row's number."""
    row = {"shouted": "a", "colour": Colour.RED, "short": "b", "long": ""}
    rows = [{"id": number, **row} | (change if number == 7 else {}) for number in range(9)]

    def work(session: Any) -> Iterator[Any]:
        yield place.bulk(session, TABLE, rows, chunk_size=5)

    with pytest.raises(Exception, match=r"row 7 \(id, shouted") as caught:
        place.run(work)
    assert caught.value.row == 7  # type: ignore[attr-defined]
    if "short" not in change and "long" not in change:
        assert isinstance(caught.value, BulkRowError)


def test_asyncpg_names_the_row_of_a_value_that_it_cannot_send(server: str) -> None:
    """Its own error has no number; the connection is usable after the rollback."""
    place = Place(server, "asyncpg")
    rows = [{"id": number, "whole": "x" if number == 3 else 1} for number in range(5)]

    def work(session: Any) -> Iterator[Any]:
        yield place.bulk(session, TABLE, rows)

    for _ in range(2):
        with pytest.raises(BulkRowError) as caught:
            place.run(work)
        assert caught.value.row == 3
    place.close()


def test_a_column_that_changes_its_type_is_noticed(server: str) -> None:
    """What asyncpg remembers of a table is checked: never are the bytes of one type another's."""
    table = Table("changes", MetaData(), Column("n", BigInteger))
    # SQLAlchemy, which would notice, has forgotten what it knew of the table.
    place = Place(f"{server}?prepared_statement_cache_size=0", "asyncpg")

    def work(session: Any) -> Iterator[Any]:
        yield place.bulk(session, table, [{"n": 7}])
        return (yield session.execute(text("SELECT CAST(n AS text) FROM changes"))).scalar()

    observer = Database(server)
    with observer.session_scope() as session:
        session.execute(text("CREATE TABLE changes (n bigint)"))
    assert place.run(work) == "7"
    with observer.session_scope() as session:
        session.execute(text("ALTER TABLE changes ALTER n TYPE double precision"))
    for _ in range(2):
        with contextlib.suppress(DBAPIError):
            assert place.run(work) == "7"
    assert place.run(work) == "7"
    place.close()
    observer.dispose()


# --- names ----------------------------------------------------------------------------------------


def test_names_are_quoted(place: Place) -> None:
    """Schemas, capitals, quotes, colons and percent signs; a name not to be quoted is folded."""
    names = MetaData()
    table = Table(
        'T "a":b %s',
        names,
        Column('c "x":y %(z)s', Integer),
        Column(quoted_name("FOLDED", quote=False), Integer),
        schema="Some Schema",
    )
    rows = [{'c "x":y %(z)s': 1, "FOLDED": 2}]

    def work(session: Any) -> Iterator[Any]:
        yield session.execute(text('CREATE SCHEMA "Some Schema"'))
        yield session.execute(
            text(
                'CREATE TABLE "Some Schema"."T ""a""\\:b %s" ("c ""x""\\:y %(z)s" int, folded int)'
            )
        )
        result = yield place.bulk(session, table, rows)
        found = yield session.execute(text('SELECT * FROM "Some Schema"."T ""a""\\:b %s"'))
        return result.method, [tuple(row) for row in found]

    assert place.run(work) == ("copy", [(1, 2)])


def test_a_schema_is_translated(place: Place) -> None:
    """``schema_translate_map`` applies to a COPY as to an INSERT."""
    table = Table("things", MetaData(), Column("id", Integer), schema="template")

    def work(session: Any) -> Iterator[Any]:
        options = {"schema_translate_map": {"template": "tenant"}}
        yield session.connection(execution_options=options)
        yield session.execute(text("CREATE SCHEMA tenant"))
        yield session.execute(text("CREATE TABLE tenant.things (id int)"))
        result = yield place.bulk(session, table, [{"id": 1}])
        yield place.bulk(session, table, [{"id": 2}])
        found = yield session.execute(text("SELECT id FROM tenant.things ORDER BY id"))
        return result.method, found.scalars().all()

    assert place.run(work) == ("copy", [1, 2])


# --- reading the server's words -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("context", "line"),
    [
        ('COPY accounts, line 5, column name: "x 77"', 5),
        ("COPY accounts, Zeile 12", 12),
        ("SQL statement\nCOPY accounts, line 3", 3),
        ("COPY others, line 5", None),
        ("accounts 5", None),
        ("", None),
    ],
)
def test_the_line_is_read_in_any_language(context: str, line: int | None) -> None:
    """The number after the table's name counts, whatever the word before it."""
    assert _line_in(context, "accounts") == line


def test_both_worlds_return_the_same(server: str) -> None:
    """The result is of one class, whichever function made it."""
    for driver in ("asyncpg", "psycopg2"):
        place = Place(server, driver)

        def work(session: AsyncSession | Session, place: Place = place) -> Iterator[Any]:
            return (yield place.bulk(session, TABLE, [{"id": 1}]))

        assert isinstance(place.run(work), BulkResult)
        place.close()
