"""Detached objects: brought into a session, with what was changed and nothing else."""

from __future__ import annotations

from collections import namedtuple
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

import pytest
from sqlalchemy import (
    CHAR,
    Float,
    ForeignKey,
    Numeric,
    String,
    TypeDecorator,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    WriteOnlyMapped,
    attribute_keyed_dict,
    mapped_column,
    relationship,
    selectinload,
)
from sqlalchemy.orm.exc import DetachedInstanceError, StaleDataError

from asyncsession_kit import (
    AsyncDatabase,
    AttachmentError,
    ConfigurationError,
    PropagationError,
    ReadOnlyTransactionError,
    StaleObjectError,
    async_ensure_session_attachment,
    async_recover_detached,
    async_with_session,
)
from asyncsession_kit._types import AsyncSession
from asyncsession_kit.monitoring import SessionPerformanceMonitor
from tests.support.models import Account, Entry
from tests.support.services import async_plain_session


class Code(TypeDecorator[str]):
    """Is padded by some databases."""

    impl = CHAR
    cache_ok = True


class Base(DeclarativeBase):
    """Is the registry of the tables of these tests alone."""


class Page(Base):
    """Counts its versions."""

    __tablename__ = "pages"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    version: Mapped[int] = mapped_column()
    __mapper_args__: ClassVar[Any] = {"version_id_col": version}


class Place(Base):
    """Has a key of two columns."""

    __tablename__ = "places"
    row: Mapped[int] = mapped_column(primary_key=True)
    seat: Mapped[int] = mapped_column(primary_key=True)
    taken: Mapped[bool] = mapped_column(default=False)


class Person(Base):
    """Is the root of a hierarchy, and knows others."""

    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str | None]
    friend_id: Mapped[int | None] = mapped_column(ForeignKey("people.id"))
    friend: Mapped[Person | None] = relationship(remote_side=[id], back_populates="fans")
    fans: Mapped[dict[str, Person]] = relationship(
        collection_class=attribute_keyed_dict("name"), back_populates="friend"
    )
    __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Shelf(Base):
    """Has more than anybody would load."""

    __tablename__ = "shelves"
    id: Mapped[int] = mapped_column(primary_key=True)
    books: WriteOnlyMapped[Book] = relationship()
    thick: Mapped[list[Book]] = relationship(
        viewonly=True, primaryjoin="and_(Shelf.id == Book.shelf_id, Book.pages > 100)"
    )


class Book(Base):
    """Is on a shelf, or on none."""

    __tablename__ = "books"
    id: Mapped[int] = mapped_column(primary_key=True)
    pages: Mapped[int]
    shelf_id: Mapped[int | None] = mapped_column(ForeignKey("shelves.id"))


class Worker(Person):
    """Is stored in two tables."""

    __tablename__ = "workers"
    id: Mapped[int] = mapped_column(ForeignKey("people.id"), primary_key=True)
    job: Mapped[str]
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "worker"}


class Desk(Base):
    """Has drawers, which are nothing without it."""

    __tablename__ = "desks"
    id: Mapped[int] = mapped_column(primary_key=True)
    drawers: Mapped[list[Drawer]] = relationship(cascade="all, delete-orphan")


class Drawer(Base):
    """Counts its versions, and belongs to a desk and to somebody."""

    __tablename__ = "drawers"
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(default="")
    desk_id: Mapped[int | None] = mapped_column(ForeignKey("desks.id"))
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("people.id"))
    owner: Mapped[Person | None] = relationship(lazy="raise")
    version: Mapped[int] = mapped_column()
    __mapper_args__: ClassVar[Any] = {"version_id_col": version}


class Priced(DeclarativeBase):
    """Is the registry of a table of what databases store otherwise than it was given."""


class Price(Priced):
    """Has an amount, a share, a code and a time."""

    __tablename__ = "prices"
    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[Decimal | None] = mapped_column(Numeric(10, 2))
    share: Mapped[float | None] = mapped_column(Float(24))
    code: Mapped[str | None] = mapped_column(Code(5))
    at: Mapped[datetime | None]


class Polymorphic(DeclarativeBase):
    """Is the registry of a hierarchy that is always loaded as a whole."""


class Animal(Polymorphic):
    """Is looked up together with what its subclasses add."""

    __tablename__ = "animals"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    name: Mapped[str] = mapped_column(String(10))
    __mapper_args__: ClassVar[Any] = {
        "polymorphic_on": "kind",
        "polymorphic_identity": "animal",
        "with_polymorphic": "*",
    }


class Dog(Animal):
    """Is stored in two tables."""

    __tablename__ = "dogs"
    id: Mapped[int] = mapped_column(ForeignKey("animals.id"), primary_key=True)
    tricks: Mapped[int]
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "dog"}


async def stored(db: AsyncDatabase, *names: str) -> list[Account]:
    """Store accounts, and return them detached, with an entry each."""
    async with db.session_scope() as session:
        accounts = [Account(name=name, entries=[Entry(amount=1)]) for name in names]
        session.add_all(accounts)
    return accounts


async def found(db: AsyncDatabase, name: str) -> Account:
    """Return an account detached, with its entries."""
    async with db.session_scope(read_only=True) as session:
        wanted = select(Account).where(Account.name == name).options(selectinload(Account.entries))
        return (await session.scalars(wanted)).one()


async def balance_of(db: AsyncDatabase, account: Account) -> tuple[str, int]:
    async with db.session_scope(read_only=True) as session:
        row = await session.get(Account, account.id)
        assert row is not None
        return row.name, row.balance


async def set_in_database(db: AsyncDatabase, account: Account, **values: Any) -> None:
    async with db.session_scope() as session:
        await session.execute(update(Account).where(Account.id == account.id).values(values))


@pytest.fixture
async def own_db(sqlite_db: AsyncDatabase) -> AsyncDatabase:
    """A SQLite file with the tables of these tests."""
    await sqlite_db.create_all(Base.metadata)
    return sqlite_db


# --- one object -----------------------------------------------------------------------------------


async def test_what_was_changed_is_stored(db: AsyncDatabase) -> None:
    """A change made while detached is written by the scope it was brought into."""
    (account,) = await stored(db, "a")
    account.balance = 7
    async with db.session_scope() as session:
        assert await async_ensure_session_attachment(account) is account
        assert account in session
        assert account in session.dirty
    assert await balance_of(db, account) == ("a", 7)


async def test_what_is_in_the_session_stays(db: AsyncDatabase) -> None:
    """Nothing is sent for it."""
    async with db.session_scope(statement_statistics=True) as session:
        account = Account(name="a")
        session.add(account)
        assert await async_ensure_session_attachment(account, session) is account
        await session.flush()
        both = [account, account]
        assert await async_ensure_session_attachment(both) is both


async def test_what_is_newer_is_not_overwritten(db: AsyncDatabase) -> None:
    """What was not changed is read again; only what was changed is written."""
    (account,) = await stored(db, "a")
    await set_in_database(db, account, name="b")
    account.balance = 7
    async with db.session_scope():
        await async_ensure_session_attachment(account)
        assert (account.name, account.balance) == ("b", 7)
    assert await balance_of(db, account) == ("b", 7)


async def test_what_was_changed_on_both_sides_is_refused(db: AsyncDatabase) -> None:
    """The error says which attributes, and the object stays as it was."""
    (account,) = await stored(db, "a")
    await set_in_database(db, account, balance=5)
    account.balance = 7
    async with db.session_scope() as session:
        with pytest.raises(
            StaleObjectError, match=r"Account \(1,\) was changed .* as well: balance\. Load"
        ) as caught:
            await async_ensure_session_attachment(account)
        assert caught.value.attributes == ("balance",)
        assert isinstance(caught.value, StaleDataError)
        assert account not in session
    assert await balance_of(db, account) == ("a", 5)


async def test_the_same_change_on_both_sides_is_none(db: AsyncDatabase) -> None:
    """There is nothing to decide."""
    (account,) = await stored(db, "a")
    await set_in_database(db, account, balance=7)
    account.balance = 7
    async with db.session_scope():
        await async_ensure_session_attachment(account)
    assert await balance_of(db, account) == ("a", 7)


async def test_a_change_of_what_was_never_loaded_is_written(db: AsyncDatabase) -> None:
    """What had been there before is not known, so that nothing can contradict it."""
    await stored(db, "a")
    async with db.session_scope(read_only=True) as session:
        account = await session.get_one(Account, 1)
        session.expire(account, ["balance"])
    account.balance = 9
    await set_in_database(db, account, balance=5)
    async with db.session_scope():
        await async_ensure_session_attachment(account)
    assert await balance_of(db, account) == ("a", 9)


async def test_a_value_taken_away_is_a_change(own_db: AsyncDatabase) -> None:
    """What was deleted of a copy is nothing on the session's object, and NULL in its row."""
    async with own_db.session_scope() as session:
        person = Person(name="ada")
        session.add(person)
    del person.name
    async with own_db.session_scope() as session:
        there = await session.get_one(Person, person.id)
        assert await async_ensure_session_attachment(person) is there
        assert there.name is None
    async with own_db.session_scope() as session:
        assert (await session.get_one(Person, person.id)).name is None


async def test_what_had_expired_is_loaded(db: AsyncDatabase) -> None:
    """After a rollback an object can be read no more; in a session it can, without waiting."""
    async with db.session_scope() as session:
        account = Account(name="a")
        session.add(account)
        await session.commit()
        await session.flush()
        await session.execute(text("SELECT 1"))
        await session.rollback()
    with pytest.raises(DetachedInstanceError):
        _ = account.name
    async with db.session_scope():
        await async_ensure_session_attachment(account)
        assert (account.name, account.balance) == ("a", 0)


async def test_a_deleted_row_is_refused(db: AsyncDatabase) -> None:
    """It is not stored again by bringing an object of it somewhere."""
    (account,) = await stored(db, "a")
    async with db.session_scope() as session:
        await session.execute(text("DELETE FROM entries"))
        await session.execute(text("DELETE FROM accounts"))
    async with db.session_scope():
        with pytest.raises(StaleObjectError, match=r"Account \(1,\) is not in the database any"):
            await async_ensure_session_attachment(account)


async def test_an_object_that_was_deleted_is_refused(own_db: AsyncDatabase) -> None:
    """The one that its session has deleted as well."""
    async with own_db.session_scope() as session:
        place = Place(row=1, seat=2)
        session.add(place)
        await session.flush()
        await session.delete(place)
    async with own_db.session_scope():
        with pytest.raises(StaleObjectError, match="not in the database any more"):
            await async_ensure_session_attachment(place)


async def test_what_was_never_stored_is_refused(db: AsyncDatabase) -> None:
    """Whoever wants a row of it says so."""
    account = Account(name="a")
    async with db.session_scope() as session:
        with pytest.raises(AttachmentError, match=r"Account was never stored.*session\.add\(\)"):
            await async_ensure_session_attachment(account)
        assert account not in session


async def test_what_is_in_another_session_is_refused(db: AsyncDatabase) -> None:
    """The error names both sessions; of one made elsewhere it shows what there is."""
    (account,) = await stored(db, "a")
    async with db.session_scope(read_only=True) as one:
        there = await one.get_one(Account, account.id)
        async with db.session_scope(propagation="new", read_only=True) as other:
            with pytest.raises(
                AttachmentError,
                match=r"is in the session opened at \S*test_attachment.*, which is open;"
                r".*into the session opened at \S*test_attachment",
            ):
                await async_ensure_session_attachment(there, other)
    async with async_plain_session(db.engine) as plain, db.session_scope(read_only=True):
        there = await plain.get_one(Account, account.id)
        with pytest.raises(AttachmentError, match=r"is in the session <sqlalchemy"):
            await async_ensure_session_attachment(there)


async def test_without_a_session_there_is_nowhere_to_go(db: AsyncDatabase) -> None:
    """The error says what to do."""
    (account,) = await stored(db, "a")
    with pytest.raises(PropagationError, match="in the body of a scope, or give it a session"):
        await async_ensure_session_attachment(account)


@pytest.mark.parametrize("value", [None, 7, "text", object(), [None], Account])
async def test_what_is_not_mapped_is_refused(sqlite_db: AsyncDatabase, value: object) -> None:
    """The error shows it."""
    async with sqlite_db.session_scope():
        with pytest.raises(ConfigurationError, match="is no object of a mapped class"):
            await async_ensure_session_attachment(value)


async def test_a_session_made_elsewhere_takes_objects(db: AsyncDatabase) -> None:
    """Its end is its owner's."""
    (account,) = await stored(db, "a")
    account.balance = 7
    async with async_plain_session(db.engine) as session:
        assert await async_ensure_session_attachment(account, session) is account
        await session.commit()
    assert await balance_of(db, account) == ("a", 7)


async def test_a_reader_takes_objects(db: AsyncDatabase) -> None:
    """What was changed is refused when it would be written, as ever."""
    (account,) = await stored(db, "a")
    async with db.session_scope(read_only=True):
        assert await async_ensure_session_attachment(account) is account
    account.balance = 7
    with pytest.raises(ReadOnlyTransactionError):
        async with db.session_scope(read_only=True) as session:
            await async_ensure_session_attachment(account)
            await session.flush()


async def test_within_a_deadline(db: AsyncDatabase) -> None:
    """It is a step of the scope's work like any other."""
    (account,) = await stored(db, "a")
    async with db.session_scope(timeout=30):
        assert await async_ensure_session_attachment(account) is account


CHANGED: dict[str, tuple[Any, Any]] = {
    "amount": (Decimal("9.999"), Decimal("5.00")),
    "share": (0.1, 0.5),
    "code": ("ab", "cd"),
    "at": (datetime(2026, 1, 2, 3, 4, 5, 678901), datetime(2027, 1, 2)),
}


async def test_what_the_database_rounds_or_pads_was_not_changed(db: AsyncDatabase) -> None:
    """An object that was made in a scope keeps what it was given; the row has what is stored."""
    await db.create_all(Priced.metadata)
    async with db.session_scope() as session:
        price = Price(**{name: given for name, (given, _) in CHANGED.items()})
        session.add(price)
    for name, (_, changed) in CHANGED.items():
        setattr(price, name, changed)
    async with db.session_scope():
        await async_ensure_session_attachment(price)
    async with db.session_scope() as session:
        there = await session.get_one(Price, price.id)
        assert (there.amount, there.share, there.at) == (Decimal("5.00"), 0.5, CHANGED["at"][1])
        assert (there.code or "").strip() == "cd"


async def test_what_somebody_stored_is_not_taken_for_rounding(db: AsyncDatabase) -> None:
    """Each attribute is refused where the row has anything else."""
    await db.create_all(Priced.metadata)
    async with db.session_scope() as session:
        price = Price(**{name: given for name, (given, _) in CHANGED.items()})
        session.add(price)
    newer = {"amount": Decimal("9.99"), "share": 0.25, "code": "AB", "at": datetime(2025, 1, 2)}
    async with db.session_scope() as session:
        await session.execute(update(Price).values(newer))
    for name, (_, changed) in CHANGED.items():
        setattr(price, name, changed)
    async with db.session_scope():
        with pytest.raises(StaleObjectError) as caught:
            await async_ensure_session_attachment(price)
        assert caught.value.attributes == tuple(CHANGED)


async def test_no_number_is_the_same_as_no_number(pg_db: AsyncDatabase) -> None:
    """It is equal to nothing in code, and was not changed all the same."""
    await pg_db.create_all(Priced.metadata)
    async with pg_db.session_scope() as session:
        price = Price(share=float("nan"))
        session.add(price)
    price.share = 0.5
    async with pg_db.session_scope():
        await async_ensure_session_attachment(price)
    async with pg_db.session_scope() as session:
        assert (await session.get_one(Price, price.id)).share == 0.5


# --- versions, keys, hierarchies ------------------------------------------------------------------


async def test_a_version_that_moved_on_is_a_conflict(own_db: AsyncDatabase) -> None:
    """Whatever was changed: that is what the counter is for.  Without a change there is none."""
    async with own_db.session_scope() as session:
        page = Page(title="a")
        session.add(page)
    async with own_db.session_scope() as session:
        (await session.get_one(Page, page.id)).title = "b"
    async with own_db.session_scope():
        await async_ensure_session_attachment(page)
        assert (page.title, page.version) == ("b", 2)
    async with own_db.session_scope() as session:
        await session.execute(text("UPDATE pages SET version = 3"))
    page.title = "c"
    async with own_db.session_scope():
        with pytest.raises(StaleObjectError, match="as well: version"):
            await async_ensure_session_attachment(page)


async def test_a_key_of_two_columns(own_db: AsyncDatabase) -> None:
    """It is looked for by both."""
    async with own_db.session_scope() as session:
        places = [Place(row=1, seat=1), Place(row=1, seat=2)]
        session.add_all(places)
    places[1].taken = True
    async with own_db.session_scope():
        assert await async_ensure_session_attachment(places) is places
    async with own_db.session_scope() as session:
        taken = select(Place.seat).where(Place.taken)
        assert list(await session.scalars(taken)) == [2]


async def test_a_class_in_two_tables(own_db: AsyncDatabase) -> None:
    """What either table holds is looked up and written."""
    async with own_db.session_scope() as session:
        worker = Worker(name="ada", job="mathematician")
        session.add(worker)
    async with own_db.session_scope() as session:
        await session.execute(text("UPDATE people SET name = 'grace'"))
    worker.job = "admiral"
    async with own_db.session_scope():
        await async_ensure_session_attachment(worker)
        assert worker.name == "grace"
    async with own_db.session_scope() as session:
        assert (await session.get_one(Worker, worker.id)).job == "admiral"


async def test_a_hierarchy_that_is_loaded_as_a_whole(db: AsyncDatabase) -> None:
    """Only the tables of the object's own class are locked; others may have no row of it."""
    await db.create_all(Polymorphic.metadata)
    async with db.session_scope() as session:
        animal, dog = Animal(name="a"), Dog(name="b", tricks=0)
        session.add_all([animal, dog])
    animal.name, dog.name, dog.tricks = "c", "d", 1
    async with db.session_scope():
        await async_ensure_session_attachment([animal, dog])
    async with db.session_scope() as session:
        assert (await session.get_one(Animal, animal.id)).name == "c"
        there = await session.get_one(Dog, dog.id)
        assert (there.name, there.tricks) == ("d", 1)


# --- several objects ------------------------------------------------------------------------------


async def test_collections_come_back_as_they_are(db: AsyncDatabase) -> None:
    """One statement looks up all of a class, or two where some were changed."""
    accounts = await stored(db, "a", "b", "c")
    Pair = namedtuple("Pair", "one other")
    shapes: list[Any] = [
        accounts,
        tuple(accounts),
        set(accounts),
        frozenset(accounts),
        {"one": accounts[0], "others": accounts[1:]},
        Pair(*accounts[:2]),
    ]
    for shape in shapes:
        async with db.session_scope(read_only=True, statement_statistics=True) as session:
            assert await async_ensure_session_attachment(shape) is shape
            assert accounts[0] in session
    async with db.session_scope(read_only=True) as session:
        assert await async_ensure_session_attachment([]) == []


async def test_many_objects_take_one_statement_a_class(db: AsyncDatabase) -> None:
    """Their number does not matter."""
    accounts = await stored(db, *(f"{number}" for number in range(20)))
    scope = db.session_scope(read_only=True, statement_statistics=True)
    async with scope:
        await async_ensure_session_attachment(accounts)
        assert scope.statistics is not None
        assert scope.statistics.statements == 2  # accounts, and the entries that are loaded


async def test_in_place_of_a_copy_stands_what_is_there(db: AsyncDatabase) -> None:
    """The session's own object takes the changes, and a collection is made anew with it."""
    a, b, c = await stored(db, "a", "b", "c")
    a.balance = 7
    Pair = namedtuple("Pair", "one other")
    async with db.session_scope() as session:
        there = await session.get_one(Account, a.id)
        assert await async_ensure_session_attachment(a) is there
        assert a not in session
        assert there.balance == 7
        assert await async_ensure_session_attachment([a, b]) == [there, b]
        assert await async_ensure_session_attachment((a, b)) == (there, b)
        assert await async_ensure_session_attachment({a, b}) == {there, b}
        assert await async_ensure_session_attachment(Pair(a, c)) == Pair(there, c)
        nested = {"first": a, "others": [b, (c, a)]}
        again = await async_ensure_session_attachment(nested)
        assert again == {"first": there, "others": [b, (c, there)]}
    assert await balance_of(db, a) == ("a", 7)


async def test_of_two_copies_the_first_takes_the_changes(db: AsyncDatabase) -> None:
    """There is one object of a row to a session."""
    (one,) = await stored(db, "a")
    other = await found(db, "a")
    one.balance, other.name = 7, "b"
    async with db.session_scope():
        assert await async_ensure_session_attachment([one, other]) == [one, one]
    assert await balance_of(db, one) == ("b", 7)


async def test_two_objects_that_were_both_changed_are_refused(db: AsyncDatabase) -> None:
    """Nobody could say which is meant."""
    (account,) = await stored(db, "a")
    account.balance = 7
    async with db.session_scope(auto_commit=False) as session:
        there = await session.get_one(Account, account.id)
        there.balance = 8
        with pytest.raises(StaleObjectError, match="both were changed: balance") as caught:
            await async_ensure_session_attachment(account)
        assert caught.value.attributes == ("balance",)
        there.balance = 7
        assert await async_ensure_session_attachment(account) is there
        await session.rollback()


# --- what hangs on an object ----------------------------------------------------------------------


async def test_loaded_relationships_come_with_it(db: AsyncDatabase) -> None:
    """They are attached as well, with what was changed on them, and can still be read."""
    await stored(db, "a")
    account = await found(db, "a")
    account.entries[0].amount = 5
    account.entries.append(Entry(amount=6))
    async with db.session_scope() as session:
        await async_ensure_session_attachment(account)
        assert all(entry in session for entry in account.entries)
    again = await found(db, "a")
    assert sorted(entry.amount for entry in again.entries) == [5, 6]


async def test_what_hangs_on_it_is_checked_as_well(db: AsyncDatabase) -> None:
    """A change of an entry is a change."""
    await stored(db, "a")
    account = await found(db, "a")
    async with db.session_scope() as session:
        await session.execute(update(Entry).values(amount=9))
    account.entries[0].amount = 5
    async with db.session_scope():
        with pytest.raises(StaleObjectError, match=r"Entry \(1,\) was changed"):
            await async_ensure_session_attachment(account)


async def test_an_object_refers_to_what_the_session_has(db: AsyncDatabase) -> None:
    """Not to a copy of it, which stays outside."""
    await stored(db, "a")
    account = await found(db, "a")
    entry = account.entries[0]
    async with db.session_scope() as session:
        there = await session.get_one(Entry, entry.id)
        await async_ensure_session_attachment(account)
        assert account.entries == [there]
        assert there.account is account
        assert not inspect(account).modified
    async with db.session_scope() as session:
        other = await session.get_one(Account, account.id)
        assert await async_ensure_session_attachment(there) is there
        assert there.account is other


async def test_a_new_reference_goes_to_what_the_session_has(db: AsyncDatabase) -> None:
    """A change of a relationship is a change like any other."""
    await stored(db, "a", "b")
    a, b = await found(db, "a"), await found(db, "b")
    entry = a.entries[0]
    entry.account = b
    async with db.session_scope() as session:
        there = await session.get_one(Account, b.id, options=[selectinload(Account.entries)])
        await async_ensure_session_attachment(entry)
        assert entry.account is there
    assert sorted(each.id for each in (await found(db, "b")).entries) == [1, 2]


async def test_what_was_done_to_a_copy_is_done_to_what_is_there(db: AsyncDatabase) -> None:
    """Its relationships included: what was added, what was taken away, what was set."""
    await stored(db, "a", "b")
    a, b = await found(db, "a"), await found(db, "b")
    entry = a.entries[0]
    a.entries.remove(entry)
    b.entries.append(entry)
    b.entries.append(Entry(amount=6))
    async with db.session_scope() as session:
        there = await session.get_one(Account, b.id)
        first = await session.get_one(Account, a.id)
        moved = await session.get_one(Entry, entry.id)
        assert await async_ensure_session_attachment([a, b, entry]) == [first, there, moved]
        assert moved.account is there
        assert moved in there.entries
    assert (await found(db, "a")).entries == []
    assert sorted(each.amount for each in (await found(db, "b")).entries) == [1, 1, 6]


async def test_what_is_only_written_is_done_to_what_is_there(own_db: AsyncDatabase) -> None:
    """A collection that is never loaded takes what was added to it and taken away."""
    async with own_db.session_scope() as session:
        old, new = Book(pages=1), Book(pages=2)
        shelf = Shelf(books=[old])
        session.add_all([shelf, new])
    shelf.books.add(new)
    shelf.books.remove(old)
    async with own_db.session_scope() as session:
        there = await session.get_one(Shelf, shelf.id)
        assert await async_ensure_session_attachment([shelf, old, new]) == [there, old, new]
    async with own_db.session_scope() as session:
        assert [book.id for book in await session.scalars(there.books.select())] == [new.id]


async def test_a_changed_collection_with_a_copy_is_refused(own_db: AsyncDatabase) -> None:
    """What was added to it, and what was there, cannot be told apart any more."""
    async with own_db.session_scope() as session:
        ada, grace = Person(name="ada"), Person(name="grace")
        session.add_all([ada, grace])
    async with own_db.session_scope() as session:
        wanted = select(Person).where(Person.name == "ada").options(selectinload(Person.fans))
        ada = (await session.scalars(wanted)).one()
    ada.fans["grace"] = grace
    async with own_db.session_scope() as session:
        there = await session.get_one(Person, grace.id)
        with pytest.raises(AttachmentError, match=r"Person \(1,\)\.fans was changed, and holds"):
            await async_ensure_session_attachment(ada)
        assert (ada in session, there.friend_id) == (False, None)
    async with own_db.session_scope() as session:
        there = await session.get_one(Person, ada.id)
        assert await async_ensure_session_attachment(ada) is there
        assert grace.friend is there
    async with own_db.session_scope() as session:
        assert (await session.get_one(Person, grace.id)).friend_id == ada.id


async def test_a_changed_relationship_is_a_change_of_the_row_it_writes(
    own_db: AsyncDatabase,
) -> None:
    """A version that moved on refuses it, of the row with the foreign key, from either side."""
    async with own_db.session_scope() as session:
        drawer, ada = Drawer(), Person(name="ada")
        desk = Desk(drawers=[drawer])
        session.add_all([desk, ada])
    async with own_db.session_scope() as session:
        await session.execute(text("UPDATE drawers SET label = 'newer', version = 2"))
    drawer.owner = ada
    async with own_db.session_scope():
        with pytest.raises(StaleObjectError, match=r"Drawer \(1,\) .* as well: version") as caught:
            await async_ensure_session_attachment(drawer)
        assert caught.value.attributes == ("version",)
    drawer.owner = None
    desk.drawers.remove(drawer)
    async with own_db.session_scope():
        with pytest.raises(StaleObjectError, match=r"Drawer \(1,\) .* as well: version"):
            await async_ensure_session_attachment(desk)


async def test_a_reference_changed_on_both_sides_is_refused(db: AsyncDatabase) -> None:
    """A foreign key that somebody else has written is not overwritten by a relationship."""
    *_, c = await stored(db, "a", "b", "c")
    one = (await found(db, "a")).entries[0]
    async with db.session_scope() as session:
        await session.execute(update(Entry).where(Entry.id == one.id).values(account_id=c.id))
    one.account = await lazily(db, "b")
    async with db.session_scope():
        with pytest.raises(StaleObjectError, match=r"Entry \(1,\) .* as well: account\.") as caught:
            await async_ensure_session_attachment(one)
        assert caught.value.attributes == ("account",)
    one.account = await lazily(db, "c")
    async with db.session_scope():
        await async_ensure_session_attachment(one)
    assert [len((await found(db, name)).entries) for name in "abc"] == [0, 1, 2]


async def test_a_reference_taken_away_on_one_side_and_changed_on_the_other_is_refused(
    own_db: AsyncDatabase,
) -> None:
    """Setting it to nothing is a change, and so is giving it to what is not stored yet."""
    async with own_db.session_scope() as session:
        ada, grace = Person(name="ada"), Person(name="grace")
        fan = Person(name="fan", friend=ada)
        session.add_all([grace, fan])
    async with own_db.session_scope() as session:
        await session.execute(text(f"UPDATE people SET friend_id = {grace.id} WHERE name = 'fan'"))
    for other in (None, Person(name="new")):
        fan.friend = other
        async with own_db.session_scope():
            with pytest.raises(StaleObjectError, match=r"as well: friend\."):
                await async_ensure_session_attachment(fan)


async def test_what_was_moved_elsewhere_is_not_added_or_removed(own_db: AsyncDatabase) -> None:
    """The error names the collection; a row that is gone from there is nobody's to delete."""
    async with own_db.session_scope() as session:
        desks = [Desk(drawers=[Drawer(label=name)]) for name in "ab"]
        session.add_all(desks)
    a, b = desks
    (drawer,) = a.drawers
    async with own_db.session_scope() as session:
        session.add(Desk(id=9))
        await session.flush()
        await session.execute(text(f"UPDATE drawers SET desk_id = 9 WHERE id = {drawer.id}"))
    b.drawers.append(drawer)
    async with own_db.session_scope():
        with pytest.raises(StaleObjectError, match=r"as well: Desk\.drawers\.") as caught:
            await async_ensure_session_attachment(b)
        assert caught.value.attributes == ("Desk.drawers",)
    b.drawers.remove(drawer)
    a.drawers.clear()
    async with own_db.session_scope():
        with pytest.raises(StaleObjectError, match=r"as well: Desk\.drawers\."):
            await async_ensure_session_attachment(a)
    async with own_db.session_scope() as session:
        there = await session.get_one(Drawer, drawer.id)
        assert (there.label, there.desk_id) == ("a", 9)


async def test_a_reference_that_somebody_changed_is_loaded_again(own_db: AsyncDatabase) -> None:
    """It never contradicts its foreign key, and is there to be read at once."""
    async with own_db.session_scope() as session:
        ada, grace = Person(name="ada"), Person(name="grace")
        drawer = Drawer(owner=ada)
        session.add_all([drawer, grace])
    for new in (grace.id, None):
        async with own_db.session_scope() as session:
            row = await session.get_one(Drawer, drawer.id)
            row.owner_id = new
        async with own_db.session_scope():
            await async_ensure_session_attachment([drawer, ada, grace])
            assert drawer.owner_id == new
            assert drawer.owner is (grace if new else None)
            assert not inspect(drawer).modified


async def desk_with(db: AsyncDatabase, *labels: str) -> Desk:
    """Return a desk detached, with drawers of which another desk then gets the first."""
    async with db.session_scope() as session:
        desk = Desk(drawers=[Drawer(label=label) for label in labels])
        session.add_all([desk, Desk(id=9)])
    async with db.session_scope() as session:
        await session.execute(text(f"UPDATE drawers SET desk_id = 9 WHERE label = '{labels[0]}'"))
    return desk


async def labels_in(db: AsyncDatabase) -> list[str]:
    async with db.session_scope() as session:
        return list(await session.scalars(select(Drawer.label).order_by(Drawer.id)))


async def test_what_somebody_moved_is_in_the_collection_no_more(own_db: AsyncDatabase) -> None:
    """Deleting the object that had held it does not take it along."""
    desk = await desk_with(own_db, "a", "b")
    b = desk.drawers[1]
    async with own_db.session_scope() as session:
        await async_ensure_session_attachment(desk)
        assert desk.drawers == [b]
        await session.delete(desk)
    assert await labels_in(own_db) == ["a"]


async def test_a_collection_that_is_loaded_again_keeps_its_changes(own_db: AsyncDatabase) -> None:
    """What was added stays added, what was taken away stays away."""
    desk = await desk_with(own_db, "a", "b", "c")
    desk.drawers.remove(desk.drawers[1])
    desk.drawers.append(Drawer(label="d"))
    async with own_db.session_scope():
        await async_ensure_session_attachment(desk)
        assert [drawer.label for drawer in desk.drawers] == ["c", "d"]
    assert await labels_in(own_db) == ["a", "c", "d"]


async def test_a_new_reference_is_not_loaded_again(own_db: AsyncDatabase) -> None:
    """Somebody has made the same change."""
    async with own_db.session_scope() as session:
        ada, grace = Person(name="ada"), Person(name="grace")
        fan = Person(name="fan", friend=ada)
        session.add_all([fan, grace])
    async with own_db.session_scope() as session:
        await session.execute(text(f"UPDATE people SET friend_id = {grace.id} WHERE name = 'fan'"))
    fan.friend = grace
    async with own_db.session_scope():
        await async_ensure_session_attachment(fan)
        assert fan.friend is grace
    async with own_db.session_scope() as session:
        assert (await session.get_one(Person, fan.id)).friend_id == grace.id


# --- counting -------------------------------------------------------------------------------------


async def test_recoveries_are_counted(
    sqlite_db: AsyncDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """A monitor is told of each detached object, how long it took, and whether it worked."""
    accounts = await stored(sqlite_db, "a", "b")
    monitor = SessionPerformanceMonitor()
    async with sqlite_db.session_scope():
        await async_ensure_session_attachment(accounts)
        await async_ensure_session_attachment(accounts)
    assert monitor.metrics.detached_instance_recoveries == 2
    assert len(monitor.metrics.recovery_times) == 2
    assert all(seconds > 0 for seconds in monitor.metrics.recovery_times)
    assert monitor.metrics.session_reattachments >= 2
    async with sqlite_db.session_scope():
        with pytest.raises(AttachmentError):
            await async_ensure_session_attachment(Account(name="c"))
    assert monitor.metrics.detached_instance_recoveries == 3
    assert "a detached Account could not be recovered" in caplog.text
    monitor.close()


# --- recovering a call ----------------------------------------------------------------------------


async def lazily(db: AsyncDatabase, name: str) -> Account:
    """Return an account detached, without its entries."""
    async with db.session_scope(read_only=True) as session:
        return (await session.scalars(select(Account).where(Account.name == name))).one()


CALLS: list[str] = []


@async_recover_detached
async def entries_of(account: Account, session: AsyncSession | None = None) -> int:
    """Read what may not be loaded."""
    CALLS.append(account.name)
    return len(account.entries)


async def test_a_call_is_made_again_with_what_was_detached(db: AsyncDatabase) -> None:
    """What it had not found is loaded, in the open scope or the session among its arguments."""
    await stored(db, "a")
    CALLS.clear()
    account = await lazily(db, "a")
    async with db.session_scope() as session:
        assert await entries_of(account) == 1
        assert account in session
        assert await entries_of(account) == 1
    assert CALLS == ["a", "a", "a"]
    account = await lazily(db, "a")
    async with async_plain_session(db.engine) as plain:
        assert await entries_of(account, session=plain) == 1
        assert account in plain


async def test_a_call_is_made_again_with_what_the_session_has(db: AsyncDatabase) -> None:
    """A copy is not brought in beside it."""
    await stored(db, "a")
    account = await lazily(db, "a")
    async with db.session_scope() as session:
        there = await session.get_one(Account, account.id)
        assert await entries_of(account) == 1
        assert (account in session, there in session) == (False, True)


async def test_a_decorated_function_is_recovered_in_its_own_session(db: AsyncDatabase) -> None:
    """Below the decorator that opens the scope."""
    await stored(db, "a")

    async def count(session: AsyncSession, accounts: list[Account]) -> int:
        return sum(len(account.entries) for account in accounts)

    decorated = async_with_session(database=None)(async_recover_detached(count))
    account = await lazily(db, "a")
    async with db.session_scope() as session:
        assert await decorated(session, [account]) == 1


async def test_what_cannot_be_recovered_goes_on(db: AsyncDatabase) -> None:
    """Without a session, or a detached argument, the error is the caller's, and explained."""
    await stored(db, "a")
    account = await lazily(db, "a")
    with pytest.raises(DetachedInstanceError) as caught:
        await entries_of(account)
    assert "Account.entries was not loaded" in caught.value.__notes__[0]

    @async_recover_detached
    async def hidden() -> int:
        return len(account.entries)

    async with db.session_scope():
        with pytest.raises(DetachedInstanceError):
            await hidden()


async def test_a_call_is_repeated_once(db: AsyncDatabase) -> None:
    """What fails again goes on."""
    await stored(db, "a")
    account, other = await lazily(db, "a"), await lazily(db, "a")
    calls: list[Account] = []

    @async_recover_detached
    async def fail(account: Account) -> int:
        calls.append(account)
        return len(other.entries)

    async with db.session_scope():
        with pytest.raises(DetachedInstanceError):
            await fail(account)
    assert calls == [account, account]


async def test_other_functions_are_not_recovered(sqlite_db: AsyncDatabase) -> None:
    """A generator has given away what it read."""

    async def generate() -> Any:
        yield 1

    with pytest.raises(ConfigurationError, match="generate cannot be recovered: it has to be"):
        async_recover_detached(generate)
