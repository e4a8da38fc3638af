"""The long form, shortened: its report and its exit code."""

from __future__ import annotations

import pytest

from .__main__ import main


@pytest.mark.slow
def test_a_run_prints_both_sides(capsys: pytest.CaptureFixture[str]) -> None:
    """What the package kept and what the textbook broke stand side by side."""
    assert main(["--driver", "aiosqlite", "--only", "error swallowed", "--minutes", "0.2"]) == 0
    report = capsys.readouterr().out
    assert "error swallowed" in report
    assert "textbook:" in report
    assert "asyncsession-kit:" in report
    assert " 0 violations" in report


def test_cells_that_were_not_reached_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """When the time is over the rest is told, not taken for good."""
    main(["--driver", "aiosqlite", "--only", "cancelled in a hook", "--minutes", "0"])
    assert "not reached: cancelled in a hook: on_commit, aiosqlite" in capsys.readouterr().out


def test_an_unknown_cell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is no cell's ends with 2."""
    assert main(["--only", "no such fault"]) == 2
    assert "--list" in capsys.readouterr().out


def test_the_cells_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Each cell is named with its driver."""
    assert main(["--list", "--only", "black hole", "--driver", "psycopg"]) == 0
    assert "black hole: COMMIT, psycopg, textbook" in capsys.readouterr().out
