"""Many rows at once are stored as an INSERT would store them, in the transaction of the scope."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import (
    CheckConstraint,
    Column,
    Computed,
    ForeignKey,
    Identity,
    Integer,
    MetaData,
    String,
    Table,
    delete,
    func,
    select,
)
from sqlalchemy import exc as sa_exc
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from asyncsession_kit import (
    AsyncDatabase,
    BulkProgress,
    BulkRowError,
    CheckError,
    ConfigurationError,
    ForeignKeyError,
    NotNullError,
    PropagationError,
    ReadOnlyTransactionError,
    SessionClosedError,
    TransactionDoomedError,
    UncommittedWorkWarning,
    UniqueError,
    async_bulk_insert,
)
from asyncsession_kit._types import AsyncSession, unwrap_async_engine
from tests.support.mariadb import MariaDbServer
from tests.support.postgres import PostgresCluster


class Base(DeclarativeBase):
    """Is the registry of the tables of this file."""


# Everything that has a meaning somewhere on the way.
NUMBER = "Number %d:n"
numbers = iter(range(10**9))


def double(context: Any) -> int:
    """Return twice what the row has as its number."""
    return 2 * int(context.get_current_parameters()[NUMBER] or 0)


class Thing(Base):
    """Has a column of each sort of default, and one with another name than its attribute."""

    __tablename__ = "things"
    __mapper_args__: ClassVar = {"polymorphic_on": "kind", "polymorphic_identity": "thing"}

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    number: Mapped[int] = mapped_column(NUMBER, unique=True)
    fixed: Mapped[int] = mapped_column(default=5)
    made: Mapped[int] = mapped_column(default=lambda: next(numbers))
    doubled: Mapped[int] = mapped_column(default=double)
    served: Mapped[int] = mapped_column(server_default="7")
    optional: Mapped[int | None]
    __table_args__ = (CheckConstraint("optional > 0", name="positive"),)


class OtherThing(Thing):
    """Shares the table."""

    __mapper_args__: ClassVar = {"polymorphic_identity": "other"}


class Part(Base):
    """Belongs to a thing, and counts its versions."""

    __tablename__ = "parts"

    id: Mapped[int] = mapped_column(primary_key=True)
    thing_id: Mapped[int] = mapped_column(ForeignKey("things.id"))
    version = mapped_column(Integer, nullable=False)
    name: Mapped[str | None] = mapped_column(String(20))
    __mapper_args__: ClassVar = {"version_id_col": version}


class Stamped(Base):
    """Has a default that is SQL."""

    __tablename__ = "stamped"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20), default=func.lower("ABC"))
    word: Mapped[str] = mapped_column(String(20))


class Joined(Part):
    """Is stored in two tables."""

    __tablename__ = "joined"

    id: Mapped[int] = mapped_column(ForeignKey("parts.id"), primary_key=True)


PARTS: Any = Part.__table__
SYSTEMS = ["sqlite", "postgresql+psycopg2", "postgresql+psycopg"]


@pytest.fixture(scope="module")
def server(postgres: PostgresCluster) -> Iterator[str]:
    """The name of a database that the tests of this file share, which is faster than one each."""
    postgres.create_database("bulk")
    yield "bulk"
    postgres.drop_database("bulk")


@pytest.fixture(scope="module")
def maria_server(mariadb: MariaDbServer) -> Iterator[str]:
    """The same on MariaDB."""
    mariadb.create_database("bulk")
    yield "bulk"
    mariadb.drop_database("bulk")


@pytest.fixture(params=[*SYSTEMS, pytest.param("mysql", marks=pytest.mark.slow)])
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncDatabase]:
    """An empty database, on each system and driver in turn."""
    url = f"sqlite:///{tmp_path / 'test.db'}"
    if request.param == "mysql":
        maria: MariaDbServer = request.getfixturevalue("mariadb")
        url = maria.url(database=request.getfixturevalue("maria_server"))
    elif request.param != "sqlite":
        cluster: PostgresCluster = request.getfixturevalue("postgres")
        name = request.getfixturevalue("server")
        url = cluster.url(database=name, drivername=request.param)
    database = AsyncDatabase(url)
    await database.create_all(Base.metadata)
    async with database.session_scope() as session:
        for table in reversed(Base.metadata.sorted_tables):
            await session.execute(delete(table))
    yield database
    await database.dispose()


def method_of(db: AsyncDatabase) -> str:
    """Return the method that the database is expected to take."""
    return "copy" if unwrap_async_engine(db.engine).dialect.name == "postgresql" else "insert"


async def stored(db: AsyncDatabase) -> list[int]:
    """Return the numbers of the things that are stored."""
    async with db.session_scope(read_only=True) as session:
        return list(await session.scalars(select(Thing.number).order_by(Thing.id)))


def things(count: int, **changes: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Make rows; a change is for the row of that number, as ``_5={...}``."""
    for number in range(count):
        row = {"id": number + 1, "number": number, "optional": None}
        yield row | changes.get(f"_{number}", {})


# --- what is stored -------------------------------------------------------------------------------


async def test_rows_are_stored_and_counted(db: AsyncDatabase) -> None:
    """Each row is there after the scope; the result says how many, in how many chunks, and how."""
    async with db.session_scope() as session:
        result = await async_bulk_insert(session, Thing, things(25), chunk_size=10)
        assert (result.rows, result.chunks, result.method) == (25, 3, method_of(db))
        assert result.seconds > 0
        with pytest.raises(AttributeError):
            result.rows = 0  # type: ignore[misc]
    assert await stored(db) == list(range(25))


async def test_defaults_are_filled(db: AsyncDatabase) -> None:
    """What a row leaves out is made as an INSERT would: in Python, by the mapper, or the server."""
    async with db.session_scope() as session:
        await async_bulk_insert(session, OtherThing, things(3))
    async with db.session_scope(read_only=True) as session:
        found = list(await session.scalars(select(OtherThing).order_by(Thing.id)))
    assert [(t.kind, t.fixed, t.doubled, t.served) for t in found] == [
        ("other", 5, 0, 7),
        ("other", 5, 2, 7),
        ("other", 5, 4, 7),
    ]
    assert len({t.made for t in found}) == 3
    async with db.session_scope() as session:
        await async_bulk_insert(session, Part, [{"id": 1, "thing_id": 1}])
        assert (await session.get_one(Part, 1)).version == 1


async def test_a_default_stands_in_for_a_row_that_lacks_the_name(db: AsyncDatabase) -> None:
    """The first row has the name, a later one has not: its column's default is taken."""
    rows = list(things(3, _0={"fixed": 1, "doubled": 9}, _1={"fixed": 2}))
    async with db.session_scope() as session:
        await async_bulk_insert(session, Thing, rows)
        found = await session.execute(select(Thing.fixed, Thing.doubled).order_by(Thing.id))
        assert [tuple(row) for row in found] == [(1, 9), (2, 2), (5, 4)]


async def test_a_default_of_sql_is_part_of_an_insert(db: AsyncDatabase) -> None:
    """COPY has no place for it, so that an INSERT is sent; given by the rows, COPY is."""
    async with db.session_scope() as session:
        result = await async_bulk_insert(session, Stamped, [{"id": 1, "word": "x"}])
        assert result.method == "insert"
        result = await async_bulk_insert(session, Stamped, [{"id": 2, "word": "x", "name": "y"}])
        assert result.method == method_of(db)
        assert list(await session.scalars(select(Stamped.name).order_by(Stamped.id))) == [
            "abc",
            "y",
        ]


async def test_rows_are_tuples_with_names(db: AsyncDatabase) -> None:
    """With ``columns`` a row is a tuple, or a mapping of just these; a Table has its keys."""
    async with db.session_scope() as session:
        await async_bulk_insert(session, Thing, [(1, 10), [2, 20]], columns=("id", "number"))
        rows = [{"id": 3, "number": 30}]
        await async_bulk_insert(session, Thing, rows, columns=["number", "id"])
        await async_bulk_insert(session, PARTS, [(1, 1, 1)], columns=("id", "thing_id", "version"))
        await async_bulk_insert(session, Stamped, [("one",)], columns=("word",))
        assert await session.scalar(select(Stamped.word)) == "one"
    assert await stored(db) == [10, 20, 30]


async def test_nothing_is_done_for_no_rows(db: AsyncDatabase) -> None:
    """The database is not asked, and there is no progress to tell of."""
    told: list[BulkProgress] = []
    async with db.session_scope() as session:
        result = await async_bulk_insert(session, Thing, [], on_progress=told.append)
        assert (result.rows, result.chunks) == (0, 0)
        assert not session.in_transaction()
    assert told == []


async def test_objects_that_wait_are_stored_first(db: AsyncDatabase) -> None:
    """A row may refer to an object that was added before."""
    async with db.session_scope() as session:
        session.add(Thing(id=1, number=1))
        await async_bulk_insert(session, Part, [{"id": 1, "thing_id": 1}])
    async with db.session_scope(autoflush=False) as session:
        session.add(Thing(id=2, number=2))
        await async_bulk_insert(session, Thing, [{"id": 3, "number": 3}])
        assert session.new
    assert await stored(db) == [1, 2, 3]


async def test_progress_is_told_after_each_chunk(db: AsyncDatabase) -> None:
    """Rows, chunks and time so far, and of how many where the source has a length."""
    told: list[BulkProgress] = []
    async with db.session_scope() as session:
        rows = list(things(7))
        await async_bulk_insert(session, Thing, rows, chunk_size=3, on_progress=told.append)
        await async_bulk_insert(
            session, Part, ({"id": n, "thing_id": 1} for n in range(2)), on_progress=told.append
        )
    assert [(p.rows, p.chunks, p.total) for p in told] == [
        (3, 1, 7),
        (6, 2, 7),
        (7, 3, 7),
        (2, 1, None),
    ]
    assert 0 < told[0].seconds <= told[1].seconds <= told[2].seconds


async def test_no_more_rows_are_held_than_a_chunk(db: AsyncDatabase) -> None:
    """A source of any length is taken from as its rows are sent."""
    taken = 0
    ahead = []

    def source() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for row in things(1000):
            taken += 1
            yield row

    def look(progress: BulkProgress) -> None:
        ahead.append(taken - progress.rows)

    async with db.session_scope() as session:
        await async_bulk_insert(session, Thing, source(), chunk_size=100, on_progress=look)
    assert ahead == [0] * 10


# --- in the transaction of the scope --------------------------------------------------------------


async def test_it_is_undone_with_the_scope(db: AsyncDatabase) -> None:
    """As the first thing that is sent, or after others, and by whichever method."""
    for before in (False, True):
        with pytest.raises(ZeroDivisionError):
            async with db.session_scope() as session:
                if before:
                    await session.execute(select(1))
                await async_bulk_insert(session, Thing, things(5))
                raise ZeroDivisionError
    assert await stored(db) == []


async def test_it_joins_and_is_undone_with_a_savepoint(db: AsyncDatabase) -> None:
    """A joined scope leaves the commit to the outermost; a nested one undoes its own rows."""
    async with db.session_scope() as outer:
        async with db.session_scope() as session:
            await async_bulk_insert(session, Thing, things(3))
        with pytest.raises(UniqueError):
            async with db.session_scope(propagation="nested") as session:
                await async_bulk_insert(session, Part, [{"id": 1, "thing_id": 1}])
                await async_bulk_insert(session, Thing, things(3))
        assert await outer.scalar(select(func.count()).select_from(Part)) == 0
    assert await stored(db) == [0, 1, 2]


async def test_it_counts_as_a_write(db: AsyncDatabase) -> None:
    """Left without a commit, rows that were sent are work that is lost, and that is told."""
    with pytest.warns(UncommittedWorkWarning):
        async with db.session_scope(auto_commit=False) as session:
            await async_bulk_insert(session, Thing, things(3))
    assert await stored(db) == []


async def test_its_statements_are_counted(db: AsyncDatabase) -> None:
    """Statement statistics hold the rows, and take the chunks for no repetition."""
    scope = db.session_scope(statement_statistics=True, repeat_threshold=2)
    async with scope as session:
        await async_bulk_insert(session, Thing, things(30), chunk_size=10)
    found = scope.statistics
    assert found is not None
    assert found.rows >= 30
    assert found.repeated == ()
    if method_of(db) == "copy":
        assert str(found.last).startswith('COPY "things"')


# --- wrong rows -----------------------------------------------------------------------------------


async def test_the_row_is_named_that_the_database_refuses(db: AsyncDatabase) -> None:
    """Its number over all rows and its names are in the error, its values are not."""
    rows = things(13000, _12345={"number": 77})
    with pytest.raises(UniqueError, match=r"row 12345 \(id, number, optional\)") as caught:
        async with db.session_scope() as session:
            await async_bulk_insert(session, Thing, rows)
    error = caught.value
    assert error.row == 12345
    assert "12346" not in str(error)
    assert error.phase == "statement"
    if method_of(db) == "copy":
        assert error.constraint == f"things_{NUMBER}_key"
    assert await stored(db) == []


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"id": 4}, UniqueError),
        ({"optional": -1}, CheckError),
        ({"number": None}, NotNullError),
    ],
)
async def test_each_rule_of_the_table_names_its_row(
    db: AsyncDatabase, change: dict[str, Any], kind: type[Any]
) -> None:
    """The error is that of any statement, and says which row broke the rule."""
    with pytest.raises(kind) as caught:
        async with db.session_scope() as session:
            await async_bulk_insert(session, Thing, things(50, _37=change), chunk_size=20)
    assert caught.value.row == 37
    assert await stored(db) == []


async def test_a_missing_key_names_its_row(db: AsyncDatabase) -> None:
    """PostgreSQL tells no line of it, so that the row is found by the key."""
    rows = [{"id": n, "thing_id": 5 if n == 6 else 1} for n in range(10)]
    async with db.session_scope() as session:
        await async_bulk_insert(session, Thing, things(1))
    with pytest.raises(ForeignKeyError) as caught:
        async with db.session_scope() as session:
            await async_bulk_insert(session, Part, rows)
    assert caught.value.row == 6


async def test_values_are_shown_where_asked_for(db: AsyncDatabase) -> None:
    """``show_values`` puts the whole row into the error."""
    with pytest.raises(UniqueError, match="'optional': 4711"):
        async with db.session_scope() as session:
            rows = things(9, _8={"number": 2, "optional": 4711})
            await async_bulk_insert(session, Thing, rows, show_values=True)


async def test_a_swallowed_error_dooms_the_transaction(db: AsyncDatabase) -> None:
    """Nothing is stored, neither of the rows that were sent nor of what came before."""
    with pytest.raises(TransactionDoomedError):
        async with db.session_scope() as session:
            await async_bulk_insert(session, Part, [])
            with pytest.raises(UniqueError):
                await async_bulk_insert(session, Thing, things(30, _25={"id": 1}), chunk_size=10)
    assert await stored(db) == []


async def test_a_savepoint_undoes_a_failure(db: AsyncDatabase) -> None:
    """Rolled back to a savepoint around it, the transaction goes on, and on the fast path."""
    async with db.session_scope() as session:
        await async_bulk_insert(session, Thing, things(3))
        with pytest.raises(UniqueError):
            async with session.begin_nested():
                await async_bulk_insert(session, Thing, [{"id": 9, "number": 1}])
        result = await async_bulk_insert(session, Thing, [{"id": 4, "number": 4}])
        assert result.method == method_of(db)
    assert await stored(db) == [0, 1, 2, 4]


async def test_a_source_that_fails_dooms_what_was_sent(db: AsyncDatabase) -> None:
    """An error between the chunks, swallowed, must not leave a part of the rows stored."""

    def source() -> Iterator[dict[str, Any]]:
        yield from things(5)
        raise ZeroDivisionError

    with pytest.raises(TransactionDoomedError):
        async with db.session_scope() as session:
            with pytest.raises(ZeroDivisionError):
                await async_bulk_insert(session, Thing, source(), chunk_size=2)
    assert await stored(db) == []
    async with db.session_scope() as session:
        with pytest.raises(ZeroDivisionError):
            await async_bulk_insert(session, Thing, source())
        await async_bulk_insert(session, Thing, things(1))
    assert await stored(db) == [0]


async def test_no_row_is_stored_outside_of_the_transaction_it_began_in(db: AsyncDatabase) -> None:
    """A source that ends the transaction ends the insert; each further chunk would be alone."""
    async with db.session_scope() as session:
        done: list[int] = []

        async def source() -> AsyncIterator[dict[str, Any]]:
            for row in things(4):
                yield row
                if not done:
                    done.append(row["id"])
                    await session.commit()

        with pytest.raises(PropagationError, match="ended after 1 rows"):
            await async_bulk_insert(session, Thing, source(), chunk_size=1)
        await session.rollback()
    assert await stored(db) == [0]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": 9}, r"row 3 \(id\) .* was not sent: it has no 'number', and the column no default"),
        (
            {"id": 9, "number": 9, "optional": 1, "x": 1},
            "it has x, which row 0 and columns= do not",
        ),
        ({"id": 9, "number": 9, "x": 1}, "it has x, which row 0 and columns= do not"),
        ((9, 9, 9), "a tuple is not a mapping, as row 0 is"),
        (None, "a NoneType is not a mapping"),
        ("abc", "a str is not a mapping"),
    ],
)
async def test_a_row_that_is_wrong_is_not_sent(db: AsyncDatabase, row: Any, said: str) -> None:
    """It is named before its chunk is sent, and dooms nothing where none was."""
    async with db.session_scope() as session:
        with pytest.raises(BulkRowError, match=said) as caught:
            await async_bulk_insert(session, Thing, [*things(3), row])
        assert caught.value.row == 3
        assert not session.in_transaction()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ((1,), "it has 1 values for 2 columns"),
        ({"id": 1, "number": 2}, "a dict is not a tuple, as row 0 is"),
        ("ab", "a str is not a tuple"),
    ],
)
async def test_a_tuple_that_is_wrong_is_not_sent(db: AsyncDatabase, row: Any, said: str) -> None:
    """Its length and its kind are those of the others."""
    async with db.session_scope() as session:
        with pytest.raises(BulkRowError, match=said):
            rows: list[Any] = [(5, 5), row]
            await async_bulk_insert(session, Thing, rows, columns=("id", "number"))


async def test_a_default_that_fails_names_its_row(db: AsyncDatabase) -> None:
    """Its error is the cause, and shown where values are."""
    rows = things(5, _2={"number": "x"})
    for shows, said in ((False, r"\(ValueError\)"), (True, r"\(ValueError: .*'x'")):
        async with db.session_scope() as session:
            with pytest.raises(BulkRowError, match=said) as caught:
                await async_bulk_insert(session, Thing, rows, show_values=shows)
            assert caught.value.row == 2
            assert isinstance(caught.value.__cause__, ValueError)
        rows = things(5, _2={"number": "x"})


async def test_a_value_that_no_driver_can_send_names_its_row(db: AsyncDatabase) -> None:
    """Where the error is not even one of SQLAlchemy's, it has the number all the same."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        async with db.session_scope() as session:
            await async_bulk_insert(session, Thing, things(9, _5={"id": 2**70}))
    assert caught.value.row == 5  # type: ignore[attr-defined]
    assert await stored(db) == []


# --- what is refused before anything is sent ------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"chunk_size": 0}, "chunk_size=0 is not a whole number, 1 or more"),
        ({"chunk_size": True}, "chunk_size=True"),
        ({"on_progress": 5}, "on_progress=5 is not a plain function"),
        ({"columns": ()}, "names no column, or one twice"),
        ({"columns": ("id", "id")}, "names no column, or one twice"),
        ({"columns": "id"}, "is not a sequence of names"),
        ({"columns": 5}, "is not a sequence of names"),
        ({"columns": ("id", "nonsense")}, "'nonsense' is not a column of things, which has 'id'"),
        ({"rows": [{}]}, "the rows have no columns"),
        ({"rows": [(1, 2)]}, "are tuples; say in columns="),
        ({"rows": [Thing(id=1)]}, "is a Thing; rows are mappings"),
        ({"rows": ["ab"]}, "is a str; rows are mappings"),
        ({"rows": 5}, "a int has no rows to take"),
        ({"into": 5}, "into 5 is not possible; give a mapped class or a Table"),
        ({"into": Joined}, "the rows of Joined are in 2 tables; give the Table of each"),
    ],
)
async def test_a_wrong_argument_is_refused(
    sqlite_db: AsyncDatabase, options: dict[str, Any], said: str
) -> None:
    """The error says what is wrong with it, and nothing is sent."""
    arguments = {"into": Thing, "rows": [{"id": 1}], **options}
    async with sqlite_db.session_scope() as session:
        with pytest.raises(ConfigurationError, match=said):
            await async_bulk_insert(session, **arguments)
        assert not session.in_transaction()


async def test_a_column_that_the_database_makes_is_refused(sqlite_db: AsyncDatabase) -> None:
    """A computed column, or an identity that is always generated, cannot be given."""
    table = Table(
        "made",
        MetaData(),
        Column("id", Integer, Identity(always=True), primary_key=True),
        Column("twice", Integer, Computed("id * 2")),
    )
    async with sqlite_db.session_scope() as session:
        for name in ("id", "twice"):
            with pytest.raises(ConfigurationError, match="is always generated by the database"):
                await async_bulk_insert(session, table, [{name: 1}])


async def test_only_a_scope_that_writes_takes_rows(sqlite_db: AsyncDatabase) -> None:
    """Not one that reads, one without a transaction, one that is closed, or a foreign session."""
    rows = [{"id": 1, "number": 1}]
    async with sqlite_db.session_scope(read_only=True) as session:
        with pytest.raises(ReadOnlyTransactionError, match="open it without read_only=True"):
            await async_bulk_insert(session, Thing, rows)
    async with sqlite_db.session_scope(propagation="not_supported") as session:
        with pytest.raises(PropagationError, match="would keep a part of its rows"):
            await async_bulk_insert(session, Thing, rows)
    with pytest.raises(SessionClosedError):
        await async_bulk_insert(session, Thing, rows)
    for foreign in (AsyncSession(), 5):
        with pytest.raises(ConfigurationError, match="of a scope of this package, not"):
            await async_bulk_insert(foreign, Thing, rows)  # type: ignore[arg-type]


async def test_a_table_that_is_missing_is_no_matter_of_a_row(db: AsyncDatabase) -> None:
    """The error names no row, and dooms the transaction as that of any statement does."""
    table = Table("nowhere", MetaData(), Column("id", Integer))
    with pytest.raises(TransactionDoomedError):
        async with db.session_scope() as session:
            with pytest.raises(sa_exc.DBAPIError) as caught:
                await async_bulk_insert(session, table, [{"id": 1}, {"id": 2}])
            assert "row" not in vars(caught.value)
            assert "of the bulk insert" not in str(caught.value)
