"""How much of a write a statement may be, statement by statement."""

from __future__ import annotations

import pytest
from sqlalchemy import (
    DDL,
    Integer,
    Sequence,
    case,
    column,
    delete,
    exists,
    func,
    insert,
    lambda_stmt,
    literal,
    literal_column,
    select,
    text,
    union,
    union_all,
    update,
    values,
)
from sqlalchemy.orm import Bundle, aliased, selectinload

from asyncsession_kit._reads import OPAQUE, READ, WRITE, statement_level
from tests.support.models import Account, Entry

WRITTEN = insert(Account).values(name="a").returning(Account.id).cte("written")
PLAIN = select(Account.id).where(Account.balance == 1).cte("plain")
NUMBERS = values(column("number", Integer), name="numbers").data([(1,)])
CALLED = select(func.nextval("s").label("number")).subquery()
OTHER = aliased(Account)

READS = {
    "entity": select(Account),
    "columns": select(Account.id, Account.name),
    "condition": select(Account).where(Account.id == 1),
    "function among the conditions": select(Account).where(func.lower(Account.name) == "a"),
    "function that orders": select(Account).order_by(func.random()),
    "join": select(Account).join(Account.entries).join(OTHER, OTHER.id == Account.id),
    "options": select(Account).options(selectinload(Account.entries)),
    "lock": select(Account).with_for_update(),
    "alias": select(OTHER),
    "bundle": select(Bundle("b", Account.id, Account.name)),
    "star": select(func.count()).select_from(Account),
    "aggregate": select(func.max(Account.balance)),
    "literal": select(literal(1), literal_column("1")),
    "plain cte": select(PLAIN.c.id),
    "alias of a plain cte": select(PLAIN.alias("p").c.id),
    "subquery": select(select(Account.id).subquery().c.id),
    "scalar subquery": select(select(func.count(Entry.id)).scalar_subquery()),
    "exists": exists().where(Account.id == 1).select(),
    "values": select(NUMBERS),
    "union": select(Account.id).union(select(Entry.id)),
    "union with limits": union(select(Account.id).limit(1), select(Entry.id).limit(1)),
    "lambda": lambda_stmt(lambda: select(Account)),
    "known function": func.now(),
}

OPAQUES = {
    "unknown function": select(func.touch(Account.id)),
    "unknown function in a case": select(case((Account.id == 1, func.touch()), else_=1)),
    "unknown function beside a cte": select(PLAIN.c.id, func.touch()),
    "unknown function in a subquery": select(CALLED.c.number),
    "unknown function in a scalar subquery": select(select(func.touch()).scalar_subquery()),
    "unknown function in a lateral": select(select(func.touch().label("t")).lateral().c.t),
    "unknown function as a table": select(func.touch().table_valued("a").c.a),
    "unknown function alone": func.touch(),
    "sequence": select(Sequence("s").next_value()),
    "text with a call as a column": select(text("touch()"), literal_column("touch()")),
    "text": text("SELECT 1"),
    "text with columns": text("SELECT id FROM accounts").columns(Account.id),
    "text for an entity": select(Account).from_statement(text("SELECT * FROM accounts")),
    "text in a union": union(select(Account.id), select(func.touch())),
    "text in a cte": select(text("SELECT 1").columns(column("a")).cte("q").c.a),
}

WRITES = {
    "flush": None,
    "insert": insert(Account),
    "update": update(Account).values(balance=1),
    "delete": delete(Account),
    "returning": insert(Account).returning(Account),
    "schema": DDL("CREATE TABLE t (x INTEGER)"),
    "entity from an insert": select(Account).from_statement(insert(Account).returning(Account)),
    "cte": select(WRITTEN.c.id),
    "cte as the second column": select(Account.id, WRITTEN.c.id),
    "cte of an alias": select(WRITTEN.alias("w").c.id),
    "cte in a join": select(Account).join(WRITTEN, WRITTEN.c.id == Account.id),
    "cte in select_from": select(literal(1)).select_from(WRITTEN),
    "cte in select_from a join": select(literal(1)).select_from(
        WRITTEN.join(Account, WRITTEN.c.id == Account.id)
    ),
    "cte in a condition": select(Account).where(Account.id.in_(select(WRITTEN.c.id))),
    "cte added": select(literal(1)).add_cte(WRITTEN),
    "cte in a subquery": select(select(WRITTEN.c.id).subquery().c.id),
    "cte in a scalar subquery": select(select(WRITTEN.c.id).scalar_subquery()),
    "cte in a union": union_all(select(Account.id), select(WRITTEN.c.id)),
    "lambda": lambda_stmt(lambda: delete(Account)),
    "what nobody knows": object(),
}


@pytest.mark.parametrize(
    ("statement", "level"),
    [
        pytest.param(statement, level, id=f"{word}: {name}")
        for word, level, table in (
            ("read", READ, READS),
            ("opaque", OPAQUE, OPAQUES),
            ("write", WRITE, WRITES),
        )
        for name, statement in table.items()
    ],
)
def test_a_statement_has_the_level_of_what_it_may_do(statement: object, level: int) -> None:
    """A read is one that certainly changes nothing; what cannot be told is opaque or a write."""
    assert statement_level(statement) == level


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "  select 1 ;  ",
        "(SELECT 1) UNION (SELECT 2)",
        "-- insert\nSELECT 1",
        "/* delete\n from */ SELECT 1",
        "SELECT 1 -- insert",
        "SELECT * FROM log WHERE kind = 'delete'",
        "SELECT * FROM log WHERE kind = 'it''s an update'",
        'SELECT "update" FROM log',
        "SELECT `delete` FROM log",
        "SELECT $$insert$$, $x$insert$x$",
        "SELECT replace(name, 'a', 'b'), updated_at FROM log",
        "SELECT * FROM log FOR UPDATE",
        "SELECT * FROM log FOR NO KEY UPDATE SKIP LOCKED",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "VALUES (1)",
        "TABLE log",
        "EXPLAIN SELECT 1",
        "SHOW search_path",
        "DESCRIBE log",
        "PRAGMA user_version",
    ],
)
def test_text_that_reads_is_opaque(sql: str) -> None:
    """Text may call anything, so that it is never certain to change nothing."""
    assert statement_level(text(sql)) == OPAQUE


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO log VALUES (1)",
        "/* SELECT */ INSERT INTO log VALUES (1)",
        "REPLACE INTO log VALUES (1)",
        "WITH a AS (INSERT INTO log VALUES (1) RETURNING *) SELECT * FROM a",
        "WITH a AS (SELECT 1) UPDATE log SET x = 1",
        "SELECT * INTO new FROM log",
        "EXPLAIN ANALYZE DELETE FROM log",
        "SELECT 1; CREATE TABLE t (x INTEGER)",
        "CREATE TABLE t (x INTEGER)",
        "SET LOCAL x = 1",
        "CALL touch()",
        "VACUUM",
        "",
        "-- nothing",
    ],
)
def test_other_text_is_a_write(sql: str) -> None:
    """What does not begin like a read, or has a writing word outside of quotes, is a write."""
    assert statement_level(text(sql)) == WRITE
