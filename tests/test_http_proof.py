"""What a client is told is stored, on a real server: a short form of ``tests/http_proof.py``."""

from __future__ import annotations

import pytest

from tests.http_apps.orders import MODES
from tests.http_proof import SERVERS, prove
from tests.support.postgres import PostgresCluster

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("framework", SERVERS)
def test_no_client_sees_success_for_what_is_not_stored(
    framework: str, postgres: PostgresCluster
) -> None:
    """Each way in which a COMMIT fails is answered by its cause, and nothing is left open."""
    report = prove(postgres, framework, requests=60, seed=1)
    assert (report.early, report.lies, report.faults) == ([], [], [])
    assert {mode for mode, _ in report.answers} == set(MODES)
    assert set(report.statuses) == {201, 303, 400, 409, 500, 503}


def test_the_proof_finds_the_lies_of_a_textbook(postgres: PostgresCluster) -> None:
    """A dependency that commits after the response tells success for what is not stored."""
    report = prove(postgres, "textbook", requests=60, seed=1)
    assert report.early
    assert report.lies
