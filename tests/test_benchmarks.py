"""The benchmarks as programs: what they decide without measuring, that they run, and clean up."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks._command import Options
from benchmarks._environments import NoEnvironmentError, environment
from benchmarks._findings import Answer, Chart, Findings, dumps, loads
from benchmarks._goals import GOALS, Goal, goals_table, measured_goals
from benchmarks._machine import busy
from benchmarks._peer import PEERS, Measured
from benchmarks._peer import dumps as peer_dumps
from benchmarks._peer import loads as peer_loads
from benchmarks._plots import draw
from benchmarks._questions import question, questions
from benchmarks._report import Table, report
from benchmarks._tables import duration
from benchmarks._timing import Spread, Times, difference, exactly, ratio, spread
from benchmarks.peers_cost import figures as peer_figures
from benchmarks.peers_cost import look as look_at_peers
from benchmarks.throughput import load_of

from .support.fixtures import PgDatabase

ROOT = Path(__file__).parent.parent
LEAST = Goal("time", "t", "<=", 0.85, 0.62)


# --- what is decided without measuring ------------------------------------------------------------


def test_a_spread_is_the_median_and_the_middle_half() -> None:
    """Half of the values lie between its ends; one value is its own middle."""
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    assert spread([7.0]) == exactly(7.0)


def test_a_ratio_is_taken_within_each_round() -> None:
    """What slowed a whole round down does not change it."""
    samples = {("w", "mine"): [1.0, 30.0, 2.0], ("w", "other"): [2.0, 60.0, 4.0]}
    assert ratio(samples, "w", "mine", "other") == exactly(0.5)
    assert difference(samples, "w", "mine", "other").median == pytest.approx(-2e6)


@pytest.mark.parametrize(
    ("median", "verdict"),
    [(0.62, "yes, the aim"), (0.621, "yes, the aim"), (0.63, "yes"), (0.854, "yes"), (0.86, "NO")],
)
def test_a_goal_is_judged_by_what_is_shown(median: float, verdict: str) -> None:
    """Two digits are shown, so two digits decide."""
    assert LEAST.verdict(Spread(median, 0.5, 0.9)) == verdict


@pytest.mark.parametrize(
    ("comparison", "value", "verdict"),
    [("<", 1.0, "NO"), ("<", 0.99, "yes"), (">=", 1.0, "yes"), ("=", 1.0, "yes"), ("=", 2.0, "NO")],
)
def test_a_goal_compares_as_it_says(comparison: str, value: float, verdict: str) -> None:
    """Each comparison means what its sign does."""
    assert Goal("g", "g", comparison, 1.0).verdict(exactly(value)) == verdict  # type: ignore[arg-type]


def test_a_goal_that_was_not_measured_says_so() -> None:
    """It is neither met nor missed."""
    row = LEAST.row(None)
    assert row == ["time", "<= 0.85", "<= 0.62", "not measured", ""]


def test_the_table_of_goals_shows_every_goal() -> None:
    """With the unit, and the middle half where there is one."""
    figures = {"memory": exactly(1854.0), "stats empty": Spread(1.2, 1.1, 1.4)}
    rows = {row[0]: row[1:] for row in goals_table(figures).rows}
    assert len(rows) == len(GOALS)
    memory = rows["memory of an open scope above a bare session"]
    assert memory == ["<= 1024 bytes", "", "1854 bytes", "NO"]
    assert rows["statistics on - off: empty, stub, CPU"][2:] == ["1.20 us (1.10-1.40)", "yes"]
    assert [goal.figure for goal in measured_goals(figures)] == ["stats empty", "memory"]


def test_an_answer_survives_its_journey() -> None:
    """A benchmark's process hands over everything that the report needs."""
    chart = Chart("c", "title", "axis", ["a", "b"], {"s": [Spread(1.0, 0.5, 2.0), None]}, 1.0)
    table = Table("title", ["a"], [["1"]])
    answer = Answer("setting", Findings([table], {"f": exactly(1.0)}, [chart], ["note"]))
    assert loads(dumps(answer)) == answer


def test_a_peers_times_survive_their_journey() -> None:
    """So do those that a peer's process measured."""
    times = Times({("w", "i"): [1.0]}, {("w", "i"): [2.0]})
    assert peer_loads(peer_dumps(Measured("1.0", times))) == Measured("1.0", times)


def test_the_figure_of_peers_is_the_nearest_one() -> None:
    """A scope has to be ahead of every peer with every workload, so the highest ratio counts."""
    samples = {
        ("w", "textbook"): [1.0],
        ("w", "session_scope()"): [0.9],
        ("w", "slow"): [1.8],
        ("w", "fast"): [0.6],
    }
    found = peer_figures({"p": Measured("1.0", Times(samples, samples))})
    assert found == {"peers cpu": exactly(0.9 / 0.6), "peers wall": exactly(0.9 / 0.6)}


def test_a_load_knows_its_percentiles() -> None:
    """Units per second, and what the median and the 99th of a hundred waited."""
    load = load_of([float(number) for number in range(101)], seconds=10.0)
    assert (load.rate, load.p50, load.p99) == (10.1, 50.0, 99.0)
    assert load_of([3.0], seconds=2.0).p99 == 3.0


def test_the_report_shows_plots_that_were_drawn() -> None:
    """Without matplotlib there is none to show."""
    charts = [Chart(name, name, "axis", [], {}) for name in ("drawn", "missing")]
    found = Findings([Table("title", ["a"], [["1"]])], charts=charts, notes=["note"])
    text = report("machine", goals_table({}), [("name", "asks", "setting", found)], ["drawn"])
    assert "![drawn](drawn.svg)" in text
    assert "missing" not in text
    assert "setting  \nnote" in text
    assert "## What is expected" in text
    assert "### title" in text


def test_plots_are_drawn_where_matplotlib_is(tmp_path: Path) -> None:
    """Without it there is a report all the same."""
    series = {"s": [Spread(1.0, 0.5, 2.0), None], "t": [exactly(2.0), exactly(3.0)]}
    drawn = draw([Chart("c", "title", "axis", ["a", "b"], series, 1.0)], tmp_path)
    expected = ["c"] if importlib.util.find_spec("matplotlib") else []
    assert drawn == expected == [file.stem for file in tmp_path.iterdir()]


def test_a_table_needs_no_rich() -> None:
    """As plain text a table is aligned, as Markdown it is a table."""
    table = Table("title", ["a", "long"], [["wide", "1"], ["x", "2"]])
    assert table.plain() == "title\na     long\nwide  1\nx     2"
    assert table.markdown().splitlines()[2:4] == ["| a | long |", "| --- | --- |"]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0000123, "12.3 us"), (0.000456, "456 us"), (0.0123, "12.3 ms")]
)
def test_a_duration_has_a_readable_unit(seconds: float, shown: str) -> None:
    """Microseconds where there are no milliseconds."""
    assert duration(seconds) == shown


def test_a_busy_machine_is_called_busy() -> None:
    """A benchmark and its server make a load of two; more is somebody else's."""
    assert busy([0.5, 2.0], 2) == "The machine was quiet (load 0.5 to 2.0 on 2 cores)."
    assert "busy with other work" in busy([0.5, 3.0], 2)


def test_each_script_asks_something_and_says_what_would_change() -> None:
    """A benchmark whose figure changes no decision is not needed."""
    found = list(questions())
    assert len(found) >= 12
    for one in found:
        assert one.asks.startswith(("Ask ", "Count ")), one.name
        assert "What would change a decision: " in one.explanation.replace("\n\n", " "), one.name


def test_a_question_is_the_first_line() -> None:
    """And the explanation is what follows, without the command."""
    found = question("n", '"""Ask this\nand that.\n\n    python -m x\n\nMore.\n"""\n')
    assert (found.asks, found.explanation) == ("Ask this and that.", "More.")


# --- the relay, and peers -------------------------------------------------------------------------


@contextmanager
def _echo() -> Iterator[int]:
    """Yield the port of a server that sends back what one client says."""

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            while data := connection.recv(100):
                connection.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def test_the_relay_is_late_both_ways_and_ends_with_its_parent() -> None:
    """Nothing arrives before its time, and nothing is left running."""
    with _echo() as port:
        command = [sys.executable, "-m", "benchmarks._relay", "127.0.0.1", str(port), "0.05"]
        with subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as relay:
            assert relay.stdin is not None
            assert relay.stdout is not None
            with socket.create_connection(("127.0.0.1", int(relay.stdout.readline()))) as client:
                begin = time.monotonic()
                client.sendall(b"there and back")
                assert client.recv(100) == b"there and back"
                assert time.monotonic() - begin >= 0.1
                client.shutdown(socket.SHUT_WR)
                assert client.recv(100) == b""
            relay.stdin.close()
            assert relay.wait(10) == 0


def _without_network(folder: Path) -> None:
    """Put environments there whose Python can install nothing."""
    for peer in PEERS:
        python = folder / peer / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text("#!/bin/sh\necho first >&2\necho no network >&2\nexit 1\n")
        python.chmod(0o700)


def test_an_environment_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    """In one line, the last that the failing program wrote."""
    _without_network(tmp_path)
    with (
        pytest.raises(NoEnvironmentError, match=r"\Ano network\Z"),
        environment(PEERS[0], tmp_path),
    ):
        raise AssertionError("there is none")


def test_without_a_network_the_peers_are_left_out(pg_database: PgDatabase, tmp_path: Path) -> None:
    """The benchmark of peers then has nothing to show but lines that say so."""
    _without_network(tmp_path)
    found = look_at_peers(Options(pg_database.url, rounds=1, environments=tmp_path))
    assert (found.tables, found.figures, found.charts) == ([], {}, [])
    assert [note for note in found.notes if note.endswith("is left out: no network")] == [
        f"{peer} is left out: no network" for peer in PEERS
    ]


# --- the command ----------------------------------------------------------------------------------


def test_the_list_shows_every_question() -> None:
    """Without running one."""
    done = _run("--list")
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == len(list(questions()))


@pytest.mark.slow
def test_the_command_writes_one_report(pg_database: PgDatabase, tmp_path: Path) -> None:
    """Each that was asked for has its section; the database is as it was before."""
    only = ("scope_counts", "decorator_cost", "retry_cost")
    options = [option for name in only for option in ("--only", name)]
    done = _run("--rounds", "1", "--url", pg_database.url, "--output", str(tmp_path), *options)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "README.md").read_text()
    assert [f"\n## {name}\n" in text for name in only] == [True] * len(only)
    assert "| greenlets, one select | <= 2 |  | 0 | yes |" in text
    assert pg_database.view.value("SELECT count(*) FROM pg_tables WHERE schemaname='public'") == 0


@pytest.mark.slow
def test_a_benchmark_that_fails_is_told() -> None:
    """Here its server is not there; what else was asked for would still run."""
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    done = _run("--url", nowhere, "--only", "decorator_cost", "--rounds", "1")
    assert done.returncode == 1
    assert "decorator_cost: failed with 1" in done.stderr


@pytest.mark.slow
def test_a_benchmark_runs_alone(tmp_path: Path) -> None:
    """It prints its tables and goals, and writes the same as Markdown."""
    file = tmp_path / "result.md"
    command = [sys.executable, "-W", "error", "-m", "benchmarks.retry_cost", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--markdown", file], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.stderr == ""
    assert "with_retry(fn, 1)" in done.stdout
    assert file.read_text().count("### ") == 3


def _run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
