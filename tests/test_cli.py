"""The command line: what the demo shows and leaves behind, and what it says to bad input."""

from __future__ import annotations

import io
import itertools
import os
import runpy
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

import asyncsession_kit
from asyncsession_kit._demo.command import run_demo
from asyncsession_kit._demo.job import Settings, Watch
from asyncsession_kit._demo.ledger import Kind, plan
from asyncsession_kit._demo.place import choose_place
from asyncsession_kit.cli import main
from asyncsession_kit.testing import Action, ThreadedFaultProxy

from .support.fixtures import PgDatabase
from .support.machine import wait_for

SMALL = ("--transfers", "40", "--workers", "8", "--accounts", "10")
SETTINGS = Settings(transfers=40, workers=8, accounts=10)
# One unit of work after the other, so that nothing else is under way when a watcher is called.
IN_TURN = Settings(transfers=40, workers=1, accounts=10)
UNITS = 40 + 20 + 4 + 4
TABLES = ["asyncsession_kit_demo_account", "asyncsession_kit_demo_entry"]
ACCOUNT, ENTRY = TABLES


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the demo makes its own files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def run(*arguments: str) -> int:
    """Run the command line in this process and return its exit code."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def row(output: str, start: str) -> list[str]:
    """Return the cells to the right of what a line of a table starts with."""
    (line,) = [line for line in output.splitlines() if line.strip().startswith(start)]
    return line.strip().removeprefix(start).split()


def failures(output: str) -> set[str]:
    """Return the first words of the checks that failed."""
    rows = [line.split("  ")[0].strip() for line in output.splitlines() if "  FAILED" in line]
    return set(rows)


def query(file: Path, sql: str) -> Any:
    """Return what an independent reader finds in a SQLite file."""
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(sql).fetchone()[0]


def change(file: Path, *statements: str) -> None:
    """Change a SQLite file behind the demo's back."""
    with closing(sqlite3.connect(file, timeout=10)) as connection, connection:
        for sql in statements:
            connection.execute(sql)


def at(actions: Mapping[int, Callable[[], object]]) -> Watch:
    """Return a watcher that acts when so many results are in."""
    numbers = itertools.count(1)
    return lambda _: actions.get(next(numbers), bool)()


def tables(database: PgDatabase) -> list[str]:
    """Return the tables of a PostgreSQL database."""
    with psycopg.connect(database.url) as connection:
        sql = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
        return [name for (name,) in connection.execute(sql)]


def entries(database: PgDatabase) -> int:
    """Return how many ledger rows a PostgreSQL database has."""
    with psycopg.connect(database.url) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {ENTRY}").fetchone() or (0,)
        return int(count)


# --- what it does ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_demo_needs_no_options(temporary_folder: Path) -> None:
    """It runs on a file of its own, names it, and leaves nothing behind."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "asyncsession_kit", "demo"],
        env={**os.environ, "TMPDIR": str(temporary_folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert f"{temporary_folder}/asyncsession-kit-demo-" in done.stdout
    assert row(done.stdout, "transfer ")[:4] == ["1,000", "1,000", "0", "0"]
    assert list(temporary_folder.iterdir()) == []


@pytest.mark.parametrize("world", [[], ["--threads"]])
def test_table_counts_what_the_scopes_say(
    world: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kind has its scopes, commits, rollbacks, unknown ends and two times above zero."""
    assert run("demo", *SMALL, *world) == 0

    output = capsys.readouterr().out
    assert row(output, "transfer ")[:4] == ["40", "40", "0", "0"]
    assert row(output, "read all balances")[:4] == ["20", "20", "0", "0"]
    assert row(output, "fail after a flush")[:4] == ["4", "0", "4", "0"]
    assert row(output, "break a constraint")[:4] == ["4", "0", "4", "0"]
    *counts, middle, worst = row(output, "all ")
    assert counts == ["68", "60", "8", "0"]
    assert 0 < float(middle) <= float(worst)
    assert "transfers/s" in output
    assert row(output, "sum of all balances") == ["10,000", "10,000", "OK"]
    assert row(output, "ledger rows (2 for each transfer)") == ["80", "80", "OK"]
    assert failures(output) == set()


@pytest.mark.parametrize("world", [[], ["--threads"]])
def test_demo_runs_on_postgresql(
    pg_database: PgDatabase, world: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With --url it runs on that database, drops its tables there and shows no password."""
    url = pg_database.url.replace("postgres@", "postgres:hunter2@")

    assert run("demo", "--url", url, *SMALL, *world) == 0

    output = "".join(capsys.readouterr())
    assert row(output, "all ")[:4] == ["68", "60", "8", "0"]
    assert "hunter2" not in output
    assert tables(pg_database) == []


def test_tables_can_be_kept(pg_database: PgDatabase, capsys: pytest.CaptureFixture[str]) -> None:
    """With --keep the tables stay, and the next run refuses to touch them and says what to do."""
    assert run("demo", "--url", pg_database.url, "--keep", *SMALL) == 0
    assert tables(pg_database) == TABLES
    capsys.readouterr()

    assert run("demo", "--url", pg_database.url, *SMALL) == 2

    assert f"DROP TABLE {ENTRY}; DROP TABLE {ACCOUNT}" in capsys.readouterr().err
    assert tables(pg_database) == TABLES


def test_file_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --file the ledger is in that file afterwards, as any SQLite reader can see."""
    file = tmp_path / "ledger.db"

    assert run("demo", "--file", str(file), *SMALL) == 0

    assert str(file) in capsys.readouterr().out
    assert query(file, f"SELECT sum(balance) FROM {ACCOUNT}") == 10_000
    assert query(file, f"SELECT count(*) FROM {ENTRY}") == 80


@pytest.mark.parametrize("place", [[], ["--url", "sqlite://"]])
def test_temporary_file_can_be_kept(
    place: list[str], temporary_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --keep the temporary file stays, and the last line names it; in memory is the same."""
    assert run("demo", "--keep", *place, *SMALL) == 0

    (file,) = temporary_folder.rglob("ledger.db")
    assert capsys.readouterr().out.splitlines()[-1] == f"the ledger is in {file}"


def test_other_tables_are_left_alone(tmp_path: Path) -> None:
    """On a database that was there before, the demo drops its own tables only."""
    file = tmp_path / "app.db"
    change(file, "CREATE TABLE app (id)")

    assert run("demo", "--url", f"sqlite:///{file}", *SMALL) == 0

    assert query(file, "SELECT group_concat(name) FROM sqlite_master") == "app"


def test_plan_is_the_same_for_a_seed() -> None:
    """A seed decides every unit of work, and another one decides otherwise."""
    assert plan(40, 10, seed=7) == plan(40, 10, seed=7)
    assert plan(40, 10, seed=7) != plan(40, 10, seed=8)
    assert all(unit.payer != unit.payee for unit in plan(40, 2, seed=7))


def test_every_kind_takes_part() -> None:
    """Even a single transfer is accompanied by a read and by both failures."""
    assert {unit.kind for unit in plan(1, 2, seed=1)} == set(Kind)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gets a bar that counts up to the number of scopes."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")

    assert run_demo(SETTINGS, choose_place(None, None, keep=False)) == 0

    assert f"{UNITS}/{UNITS}" in terminal.getvalue()


def test_progress_is_not_shown_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipe or file gets no bar, even where colors are asked for."""
    monkeypatch.setenv("FORCE_COLOR", "1")

    assert run("demo", *SMALL) == 0

    assert f"/{UNITS}" not in capsys.readouterr().out


def test_narrow_plain_terminal_gets_every_digit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a table does not fit it is folded, and nothing in it is shortened."""
    monkeypatch.setenv("COLUMNS", "40")

    assert run("demo", *SMALL) == 0

    assert "\N{HORIZONTAL ELLIPSIS}" not in capsys.readouterr().out


# --- what it finds --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (
            [f"UPDATE {ACCOUNT} SET balance = balance + 1 WHERE id = 3"],
            {"sum of all balances", "accounts that contradict their rows"},
        ),
        (
            [
                f"UPDATE {ACCOUNT} SET balance = balance + 1 WHERE id = 3",
                f"UPDATE {ACCOUNT} SET balance = balance - 1 WHERE id = 4",
            ],
            {"accounts that contradict their rows"},
        ),
        (
            [f"DELETE FROM {ENTRY} WHERE rowid = 1"],
            {
                "ledger rows (2 for each transfer)",
                "transfers there by half",
                "accounts that contradict their rows",
            },
        ),
        (
            [f"DELETE FROM {ENTRY} WHERE transfer_id = (SELECT min(transfer_id) FROM {ENTRY})"],
            {
                "ledger rows (2 for each transfer)",
                "transfers committed, but missing",
                "accounts that contradict their rows",
            },
        ),
        (
            [f"INSERT INTO {ENTRY} VALUES (0, 1, -5), (0, 2, 5)"],
            {
                "ledger rows (2 for each transfer)",
                "transfers rolled back, but there",
                "accounts that contradict their rows",
            },
        ),
        (
            [f"DELETE FROM {ENTRY}", f"DELETE FROM {ACCOUNT}"],
            {
                "sum of all balances",
                "ledger rows (2 for each transfer)",
                "transfers committed, but missing",
            },
        ),
    ],
    ids=["sum", "balances", "half", "missing", "ghost", "empty"],
)
@pytest.mark.parametrize("in_threads", [False, True])
def test_damaged_ledger_fails(
    damage: list[str],
    found: set[str],
    in_threads: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What was changed before the verification makes it fail, in the rows that say what it was."""
    file = tmp_path / "ledger.db"
    watch = at({UNITS: lambda: change(file, *damage)})

    code = run_demo(SETTINGS, choose_place(None, file, False), in_threads=in_threads, watch=watch)

    output = capsys.readouterr().out
    assert code == 1
    assert failures(output) == found
    assert output.splitlines()[-1] == f"FAILED; the ledger is kept in {file}"


@pytest.mark.parametrize("in_threads", [False, True])
def test_damaged_tables_are_kept(
    in_threads: bool, pg_database: PgDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a failure the tables stay where they are, to be looked at, even without --keep."""

    def damage() -> None:
        with psycopg.connect(pg_database.url) as connection:
            connection.execute(f"UPDATE {ACCOUNT} SET balance = 0 WHERE id = 3")

    place = choose_place(pg_database.url, None, keep=False)
    assert run_demo(SETTINGS, place, in_threads=in_threads, watch=at({UNITS: damage})) == 1

    assert "sum of all balances" in failures(capsys.readouterr().out)
    assert tables(pg_database) == TABLES


def test_damaged_temporary_file_is_kept(temporary_folder: Path) -> None:
    """After a failure the temporary file stays too."""

    def damage() -> None:
        (file,) = temporary_folder.rglob("ledger.db")
        change(file, f"UPDATE {ACCOUNT} SET balance = 0 WHERE id = 3")

    place = choose_place(None, None, keep=False)
    assert run_demo(SETTINGS, place, watch=at({UNITS: damage})) == 1

    (file,) = temporary_folder.rglob("ledger.db")
    assert query(file, f"SELECT balance FROM {ACCOUNT} WHERE id = 3") == 0


def test_read_scopes_look_at_the_sum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sum that was wrong for a while is found, because the read scopes look at it too."""
    file = tmp_path / "ledger.db"
    add = f"UPDATE {ACCOUNT} SET balance = balance + {{}} WHERE id = 3"
    watch = at(
        {1: lambda: change(file, add.format(1)), UNITS: lambda: change(file, add.format(-1))}
    )

    assert run_demo(IN_TURN, choose_place(None, file, keep=False), watch=watch) == 1

    output = capsys.readouterr().out
    assert failures(output) == {"wrong sums seen by a read scope"}
    assert 19 <= int(row(output, "wrong sums seen by a read scope")[1]) <= 20
    assert 19 <= int(row(output, "read all balances")[2]) <= 20


def test_unexpected_error_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A transfer that fails unasked is counted, shown, and reason enough for exit code 1."""
    file = tmp_path / "ledger.db"
    trigger = f"CREATE TRIGGER t BEFORE INSERT ON {ENTRY} BEGIN SELECT RAISE(ABORT, 'full'); END"
    watch = at({1: lambda: change(file, trigger)})

    assert run_demo(IN_TURN, choose_place(None, file, keep=False), watch=watch) == 1

    output = capsys.readouterr().out
    assert failures(output) == {"unexpected errors"}
    assert output.count("unexpected: ConstraintError: full\n") == 3
    assert "more\n" in output


def test_missing_error_fails(pg_database: PgDatabase, capsys: pytest.CaptureFixture[str]) -> None:
    """A constraint that lets something pass is found, and so is what got in."""

    def damage() -> None:
        with psycopg.connect(pg_database.url) as connection:
            name = "asyncsession_kit_demo_no_overdraft"
            connection.execute(f"ALTER TABLE {ACCOUNT} DROP CONSTRAINT {name}")

    place = choose_place(pg_database.url, None, keep=False)
    assert run_demo(IN_TURN, place, watch=at({1: damage})) == 1

    output = capsys.readouterr().out
    assert "unexpected: no IntegrityError was raised" in output
    assert {"sum of all balances", "unexpected errors"} < failures(output)


@pytest.mark.parametrize("fault", ["cut_before", "cut_answered"])
@pytest.mark.parametrize("in_threads", [False, True])
def test_unknown_outcome_is_no_wrong_outcome(
    fault: Action,
    in_threads: bool,
    pg_database: PgDatabase,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where a link is lost at COMMIT, with or without effect, the ledger still is as was said."""
    with ThreadedFaultProxy(pg_database.url) as proxy:
        watch = at({1: lambda: proxy.inject(fault, on="COMMIT", times=1)})
        place = choose_place(proxy.url(pg_database.url), None, keep=False)

        assert run_demo(IN_TURN, place, in_threads=in_threads, watch=watch) == 1

    output = capsys.readouterr().out
    assert failures(output) == {"unexpected errors"}
    assert row(output, "all ")[3] == "1"


# --- what it says to bad input --------------------------------------------------------------------

NOWHERE = "postgresql://someone:hunter2@127.0.0.1:1/nothing"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--transfers", "0"], "--transfers is 0; give 1 or more"),
        (["--workers", "-3"], "--workers is -3; give 1 or more"),
        (["--accounts", "1"], "--accounts is 1; give 2 or more"),
        (["--url", "sqlite:///a.db", "--file", "b.db"], "name two places; give one"),
        (["--url", "nonsense"], "'nonsense' is not a database URL"),
        (["--url", "postgresql://someone:hunter2@host:port/x"], "the port is not a number"),
        (["--url", "mysql://someone:hunter2@host/x"], "not on mysql; leave out --url"),
        (["--url", "sqlite:////nowhere/a.db"], "does not exist; make it first"),
        (["--url", f"sqlite:///{__file__}"], "file is not a database"),
        (["--url", NOWHERE], "start the server"),
        (["--url", NOWHERE, "--threads"], "start the server"),
        (["--file", "/nowhere/a.db"], "does not exist; make it first"),
        (["--file", __file__], "name another file, or delete this one"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad input ends with exit code 2 and one line that says what to do, without the password."""
    assert run("demo", *arguments) == 2

    output, error = capsys.readouterr()
    assert message in error
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    assert "hunter2" not in output + error


@pytest.mark.parametrize("world", [[], ["--threads"]])
def test_words_of_the_driver_are_one_line(
    world: list[str], pg_database: PgDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    """What only the server knows is shown in its words, without the statement and a link."""
    view = pg_database.view
    view.execute("CREATE ROLE guest LOGIN PASSWORD 'hunter2'")
    try:
        url = pg_database.url.replace("postgres@", "guest:hunter2@")
        assert run("demo", "--url", url, *SMALL, *world) == 2
    finally:
        view.execute("DROP ROLE guest")

    error = capsys.readouterr().err
    assert error.startswith("Error: permission denied for schema public")
    assert error.count("\n") == 1


def test_not_a_number_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """An option that is no number is refused with its name."""
    assert run("demo", "--transfers", "many") == 2

    assert "'--transfers'" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_missing_extra_is_named(missing: str) -> None:
    """Without typer or rich the module can be imported, and the command names the extra."""
    program = f"""
import sys
sys.modules[{missing!r}] = None
from asyncsession_kit.cli import main
sys.argv = ["asyncsession-kit", "demo"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert 'pip install "asyncsession-kit[cli]"' in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("world", [[], ["--threads"]])
def test_interrupt_cleans_up(world: list[str], pg_database: PgDatabase) -> None:
    """Ctrl-C ends it soon, with exit code 130, no traceback, and no table left."""
    line = ["-m", "asyncsession_kit", "demo", "--transfers", "20000", "--accounts", "10", *world]
    process = subprocess.Popen(
        [sys.executable, "-W", "error", *line, "--url", pg_database.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        wait_for(lambda: ENTRY in tables(pg_database) and entries(pg_database) > 10, "transfers")
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=20)

    assert (process.returncode, error) == (130, "Interrupted; nothing was verified.\n")
    assert "OK" not in output
    assert tables(pg_database) == []


def test_version_is_that_of_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``python -m asyncsession_kit`` is the same command, and --version says which release."""
    monkeypatch.setattr(sys, "argv", ["asyncsession_kit", "--version"])

    with pytest.raises(SystemExit) as caught:
        runpy.run_module("asyncsession_kit", run_name="__main__")

    assert caught.value.code == 0
    assert capsys.readouterr().out == f"asyncsession-kit {asyncsession_kit.__version__}\n"
