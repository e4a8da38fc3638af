"""What the codes of a driver's error mean: the tables, and what is read from words."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, exc, text

from asyncsession_kit import (
    CheckError,
    Database,
    ErrorKind,
    SerializationError,
    errors,
    register_classifier,
)
from asyncsession_kit._classify import (
    AMBIGUOUS_AT_COMMIT,
    ERRORS,
    Finding,
    _classifiers,
    classify,
    codes_of,
    reached_standby,
)
from asyncsession_kit._translate import translated_error
from asyncsession_kit.errors import paired


class FakePgError(Exception):
    """Has the fields that asyncpg's errors have."""

    def __init__(self, sqlstate: str, **fields: str) -> None:
        super().__init__("words")
        self.sqlstate = sqlstate
        vars(self).update(fields)


class FakeMySqlError(Exception):
    """Has a number and words, as the errors of MySQL's drivers have."""


def of_pg(sqlstate: str, **fields: str) -> Finding | None:
    """Classify an error of asyncpg."""
    return classify(FakePgError(sqlstate, **fields), dialect="postgresql", driver="asyncpg")


def of_mysql(number: object, words: str = "") -> Finding | None:
    """Classify an error of a driver of MySQL."""
    error = FakeMySqlError(number, words)
    return classify(error, dialect="mysql", driver="pymysql")


def kind_of(finding: Finding | None) -> ErrorKind | None:
    """Return what was found."""
    return None if finding is None else finding.kind


# --- codes ----------------------------------------------------------------------------------------


def test_every_kind_has_an_error() -> None:
    """What is recognised is raised as something."""
    assert set(ERRORS) == set(ErrorKind)


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("23505", ErrorKind.UNIQUE),
        ("23001", ErrorKind.FOREIGN_KEY),
        ("23000", ErrorKind.CONSTRAINT),
        ("OC000", ErrorKind.SERIALIZATION),
        ("57P02", ErrorKind.SERVER_STOPPING),
        ("08007", ErrorKind.COMPLETION_UNKNOWN),
        ("08006", None),
        ("42P01", None),
        ("25P02", None),
        ("", None),
    ],
)
def test_sqlstates(sqlstate: str, kind: ErrorKind | None) -> None:
    """A code stands for itself; the rest of class 23 for some constraint; others are left alone."""
    assert kind_of(of_pg(sqlstate)) == kind


@pytest.mark.parametrize(
    ("number", "words", "kind"),
    [
        (1213, "", ErrorKind.DEADLOCK),
        (3572, "", ErrorKind.LOCK_TIMEOUT),
        (3024, "", ErrorKind.CANCELLED),
        (1927, "", ErrorKind.CONNECTION_LOST),
        (1053, "", ErrorKind.CONNECTION_LOST),
        (1836, "", ErrorKind.READ_ONLY),
        (1290, "running with the --super-read-only option", ErrorKind.READ_ONLY),
        (1290, "running with the --secure-file-priv option", None),
        (1146, "", None),
        ("words", "", None),
    ],
)
def test_mysql_numbers(number: object, words: str, kind: ErrorKind | None) -> None:
    """A number stands for itself; 1290 says only that some option forbids it."""
    assert kind_of(of_mysql(number, words)) == kind


def test_an_error_without_arguments_is_unknown() -> None:
    """A driver may raise an exception with nothing in it."""
    assert classify(FakeMySqlError(), dialect="mysql", driver="pymysql") is None


def test_a_driver_that_is_not_known() -> None:
    """Nothing is guessed; only that the connection is gone is SQLAlchemy's to say."""
    error = FakePgError("23505")
    assert classify(error, dialect="oracle", driver="oracledb") is None
    lost = classify(error, dialect="oracle", driver="oracledb", disconnected=True)
    assert lost == Finding(ErrorKind.CONNECTION_LOST)
    assert codes_of(error, "oracledb") == (None, None)


def test_a_python_error_of_sqlite_has_no_code() -> None:
    """What the module itself complains about is no verdict of SQLite's."""
    error = sqlite3.ProgrammingError("wrong number of bindings")
    assert classify(error, dialect="sqlite", driver="pysqlite") is None
    assert codes_of(error, "pysqlite") == (None, None)


def test_a_lost_connection_keeps_its_code() -> None:
    """The loss counts, whatever the code, which is kept for whoever reads the log."""
    error = FakePgError("57P01")
    found = classify(error, dialect="postgresql", driver="asyncpg", disconnected=True)
    assert found == Finding(ErrorKind.CONNECTION_LOST, sqlstate="57P01")


@pytest.mark.parametrize(
    ("finding", "read_only", "expected"),
    [
        (Finding(ErrorKind.READ_ONLY, sqlstate="25006"), False, True),
        (Finding(ErrorKind.READ_ONLY, sqlstate="25006"), True, False),
        (Finding(ErrorKind.READ_ONLY, errno=1290), True, True),
        (Finding(ErrorKind.READ_ONLY, errno=1792), False, False),
        (Finding(ErrorKind.READ_ONLY, errno=8), False, False),
    ],
)
def test_what_a_standby_says(finding: Finding, read_only: bool, expected: bool) -> None:
    """A refused write may succeed elsewhere, unless the transaction was made to read."""
    assert reached_standby(finding, read_only=read_only) is expected


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sqlstate", "detail", "columns"),
    [
        ("23505", "Key (a, b)=(1, 2) already exists.", ("a", "b")),
        ("23505", "Schlüssel »(a, b)=(1, 2)« existiert bereits.", ("a", "b")),
        ("23505", "Key (lower(name))=(x) already exists.", None),
        ("23505", 'Key ("Odd name")=(x) already exists.', None),
        ("23505", "", None),
        ("23503", 'Key (a)=(1) is not present in table "parents".', ("a",)),
        ("23503", 'Key (a)=(1) is still referenced from table "children".', None),
        ("23503", "Schlüssel (a)=(1) ist nicht in Tabelle »parents« vorhanden.", None),
        ("23514", "Failing row contains (1, (a)=(b)).", None),
    ],
)
def test_columns_in_a_detail_of_postgresql(
    sqlstate: str, detail: str, columns: tuple[str, ...] | None
) -> None:
    """A key of plain columns is read in any language; what is in doubt is left out."""
    found = of_pg(sqlstate, detail=detail, table_name="children", constraint_name="c")
    assert found is not None
    assert (found.constraint, found.table, found.columns) == ("c", "children", columns)


@pytest.mark.parametrize(
    ("number", "words", "names"),
    [
        (1062, "Duplicate entry 'x' for key 'name'", ("name", None, None)),
        (1062, "Duplicate entry 'a' for key 'b' for key 't.name'", ("name", "t", None)),
        (1062, "Doppelter Eintrag 'x' für Schlüssel 'name'", (None, None, None)),
        (
            1452,
            "...: (`db`.`t`, CONSTRAINT `c` FOREIGN KEY (`a`, `b`) REFERENCES `p` (`x`, `y`))",
            ("c", "t", ("a", "b")),
        ),
        (1216, "Cannot add or update a child row", (None, None, None)),
        (1048, "Column 'name' cannot be null", (None, None, ("name",))),
        (3819, "Check constraint 'c' is violated.", ("c", None, None)),
        (4025, "CONSTRAINT `t.c` failed for `db`.`t`", ("t.c", "t", None)),
    ],
)
def test_names_in_the_words_of_mysql(
    number: int, words: str, names: tuple[object, object, object]
) -> None:
    """They are read where the words have the known form, and left out otherwise."""
    found = of_mysql(number, words)
    assert found is not None
    assert (found.constraint, found.table, found.columns) == names


def sqlite_names(*statements: str) -> tuple[object, object, object]:
    """Return what is read from the error of the last statement."""
    connection = sqlite3.connect(":memory:")
    try:
        for statement in statements[:-1]:
            connection.execute(statement)
        with pytest.raises(sqlite3.IntegrityError) as caught:
            connection.execute(statements[-1])
    finally:
        connection.close()
    found = classify(caught.value, dialect="sqlite", driver="pysqlite")
    assert found is not None
    return found.constraint, found.table, found.columns


@pytest.mark.parametrize(
    ("definition", "values", "names"),
    [
        ("t (a, b, UNIQUE (a, b))", "('x', 'y'), ('x', 'y')", (None, "t", ("a", "b"))),
        ('t (a, "b c", UNIQUE (a, "b c"))', "('x', 'y'), ('x', 'y')", (None, None, None)),
        ("t (a, CONSTRAINT c CHECK (a > 1))", "(0)", ("c", None, None)),
        ("t (a, CHECK (a > 1))", "(0)", (None, None, None)),
    ],
)
def test_names_in_the_words_of_sqlite(
    definition: str, values: str, names: tuple[object, object, object]
) -> None:
    """Plain names are read; quoted ones and expressions are left out."""
    assert sqlite_names(f"CREATE TABLE {definition}", f"INSERT INTO t VALUES {values}") == names


def test_a_unique_index_on_an_expression_of_sqlite() -> None:
    """It is named, because it has no columns to name."""
    names = sqlite_names(
        "CREATE TABLE t (a)",
        "CREATE UNIQUE INDEX lowered ON t (lower(a))",
        "INSERT INTO t VALUES ('x'), ('X')",
    )
    assert names == ("lowered", None, None)


# --- what is raised -------------------------------------------------------------------------------


def sqlalchemys(error: Exception) -> exc.DBAPIError:
    """Return what SQLAlchemy makes of a driver's error."""
    return exc.OperationalError("UPDATE t", {}, error)


@pytest.mark.parametrize("kind", [*ErrorKind, None])
def test_what_is_raised_at_commit(kind: ErrorKind | None) -> None:
    """The kind decides; where COMMIT may have taken effect, that is said above all else."""
    finding = None if kind is None else Finding(kind, errno=1)
    source = sqlalchemys(FakeMySqlError(1, "words"))
    raised = translated_error(source, finding, phase="commit", driver="pymysql")
    assert isinstance(raised, exc.OperationalError)
    assert raised.errno == 1
    if kind in AMBIGUOUS_AT_COMMIT:
        assert isinstance(raised, errors.CommitOutcomeUnknownError)
        assert raised.outcome == "unknown"
        assert "look before doing its work again" in str(raised)
    elif kind in (None, ErrorKind.AUTHENTICATION):
        assert isinstance(raised, errors.CommitError)
        assert raised.outcome == "rolled_back"
    else:
        assert isinstance(raised, ERRORS[kind])
        assert raised.outcome == "rolled_back"


@pytest.mark.parametrize("kind", [ErrorKind.AUTHENTICATION, None])
def test_what_is_not_understood_stays(kind: ErrorKind | None) -> None:
    """A code that means something while connecting only says nothing about a statement."""
    finding = None if kind is None else Finding(kind)
    source = sqlalchemys(FakeMySqlError(1045, "access denied for the file"))
    assert translated_error(source, finding, phase="statement", driver="pymysql") is None


def test_galeras_conflict_at_commit() -> None:
    """Another node's transaction was first: nothing is stored, and it may be tried again."""
    error = FakeMySqlError(1213, "Deadlock found")
    finding = classify(error, dialect="mysql", driver="pymysql")
    raised = translated_error(sqlalchemys(error), finding, phase="commit", driver="pymysql")
    assert isinstance(raised, errors.DeadlockError)
    assert (raised.retryable, raised.phase, raised.outcome) == (True, "commit", "rolled_back")


# --- dialects of the application ------------------------------------------------------------------


@pytest.fixture
def registered() -> Iterator[None]:
    """Nothing is registered afterwards."""
    yield
    _classifiers.clear()


def test_a_registered_classifier_decides(registered: None) -> None:
    """It is asked first, and what it does not know is the package's to decide."""

    def by_word(error: Exception) -> ErrorKind | None:
        return ErrorKind.SERIALIZATION if "no such table: again" in str(error) else None

    register_classifier("sqlite", by_word)
    database = Database("sqlite://")
    with pytest.raises(SerializationError) as caught, database.session_scope() as session:
        session.execute(text("SELECT * FROM again"))
    assert caught.value.retryable
    assert isinstance(caught.value, exc.OperationalError)
    with pytest.raises(exc.OperationalError) as other, database.session_scope() as session:
        session.execute(text("SELECT * FROM other"))
    assert type(other.value) is exc.OperationalError
    with pytest.raises(CheckError), database.session_scope() as session:
        session.execute(text("CREATE TABLE t (a, CHECK (a > 1))"))
        session.execute(text("INSERT INTO t VALUES (0)"))
    database.dispose()


def test_a_registered_classifier_for_a_dialect_that_is_not_known(registered: None) -> None:
    """The codes are taken from where most drivers have them; any pair of classes can be had."""

    class DriverError(Exception):
        sqlstate = "HY123"
        errno = 60

    register_classifier("other", lambda error: ErrorKind("deadlock"))
    found = classify(DriverError(), dialect="other", driver="own")
    assert found == Finding(ErrorKind.DEADLOCK, sqlstate="HY123", errno=60)
    raised = translated_error(
        exc.ProgrammingError("SELECT", {}, DriverError("words")),
        found,
        phase="statement",
        driver="own",
    )
    assert isinstance(raised, errors.DeadlockError)
    assert isinstance(raised, exc.ProgrammingError)
    assert type(raised) is paired(errors.DeadlockError, exc.ProgrammingError)


def test_engines_of_others_are_left_alone() -> None:
    """What is raised on an engine that the package does not know is SQLAlchemy's."""
    engine = create_engine("sqlite://")
    with pytest.raises(exc.IntegrityError) as caught, engine.connect() as connection:
        connection.execute(text("CREATE TABLE t (a UNIQUE)"))
        connection.execute(text("INSERT INTO t VALUES (1), (1)"))
    assert type(caught.value) is exc.IntegrityError
    engine.dispose()
