"""The short form of the proof: no client of a real server sees success for what is not stored."""

from __future__ import annotations

import pytest

from tests.http_apps.orders import MODES
from tests.support.postgres import PostgresCluster
from tests.wsgi_proof import Report, orders, prove

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("framework", "worker"), [("flask", "sync"), ("wsgi", "gthread")])
def test_a_success_is_stored(postgres: PostgresCluster, framework: str, worker: str) -> None:
    """What is there when the status line is read is what was answered with success."""
    report = prove(postgres, framework, worker, requests=24, seed=3)
    assert report.lies == []
    assert sum(report.answers.values()) == 24
    assert {mode for mode, _ in report.answers} == set(MODES)


def test_the_proof_sees_what_lies(postgres: PostgresCluster) -> None:
    """An application that commits after it has answered is found out."""
    report = prove(postgres, "late", "gthread", requests=24, seed=3)
    assert any("201, and stored is False" in lie for lie in report.lies)


def test_a_report_compares_answers() -> None:
    """Success without a row, a row without success, and a wrong status are told."""
    report = Report()
    report.note(1, "stored", 201, stored=True)
    assert report.lies == []
    report.note(2, "stored", 201, stored=False)
    report.note(3, "refused", 400, stored=True)
    report.note(4, "refused", 500, stored=False)
    assert len(report.lies) == 3
    assert report.statuses == {201: 2, 400: 1, 500: 1}
    assert orders(30, 1) == orders(30, 1) != orders(30, 2)
