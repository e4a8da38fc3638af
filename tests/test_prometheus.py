"""The statistics as Prometheus scrapes them, name by name."""

from __future__ import annotations

import importlib
import re
import sys
import urllib.request
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import select

from asyncsession_kit import (
    AsyncDatabase,
    PoolExhaustedError,
    RetryExhaustedError,
    RetryPolicy,
    ServerUnavailableError,
    async_with_retry,
    reset_session_stats,
)
from asyncsession_kit.exporters.prometheus import SessionCollector, register_session_collector
from tests.support.fixtures import PgDatabase

ONE = select(1)
NAME = "prometheus"

COUNTERS = {
    "sessions": {},
    "sessions_cancelled": {},
    "sessions_leaked": {},
    "session_timeouts": {},
    "transactions": {"outcome"},
    "transactions_failed": {},
    "errors": {"kind"},
    "retries": {},
    "retries_exhausted": {},
    "scopes_failed": {"scope"},
    "pool_connections_created": {},
    "pool_connections_invalidated": {},
    "pool_timeouts": {},
    "pool_resets": {},
}
GAUGES = {
    "sessions_active": {},
    "sessions_active_peak": {},
    "pool_size": {},
    "pool_overflow": {},
    "pool_waiting": {},
    "pool_connections": {"state"},
}
HISTOGRAMS = {
    "scope_duration_seconds": {"scope"},
    "pool_wait_seconds": {},
    "pool_use_seconds": {},
    "pool_create_seconds": {},
}


@pytest.fixture
async def db(pg_database: PgDatabase) -> AsyncIterator[AsyncDatabase]:
    """A database that has done a little of everything, and holds a connection."""
    reset_session_stats()
    database = AsyncDatabase(
        pg_database.url, name=NAME, pool_size=1, max_overflow=0, pool_timeout=0.05
    )
    async with database.session_scope(name="sign-up") as session:
        await session.execute(ONE)
    with pytest.raises(LookupError):
        async with database.session_scope(name="check-out") as session:
            await session.execute(ONE)
            raise LookupError
    async with database.get_session() as session:
        await session.execute(ONE)
        with pytest.raises(PoolExhaustedError):
            async with database.get_session() as other:
                await other.execute(ONE)
        yield database
    await database.dispose()
    reset_session_stats()


def scrape(registry: CollectorRegistry) -> str:
    """Return what Prometheus would see, over HTTP."""
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def test_a_scrape_name_by_name(db: AsyncDatabase) -> None:
    """Each family is there with its type and its labels, has a sample, and there is no other."""
    registry = CollectorRegistry()
    register_session_collector(registry)
    families = {
        family.name.removeprefix("asyncsession_kit_"): family
        for family in text_string_to_metric_families(scrape(registry))
    }
    kinds = (("counter", COUNTERS), ("gauge", GAUGES), ("histogram", HISTOGRAMS))
    expected = {name: kind for kind, names in kinds for name in names}
    assert {name: family.type for name, family in families.items()} == expected
    for _, names in kinds:
        for name, labels in names.items():
            family = families[name]
            assert family.documentation.endswith(".")
            assert family.samples, name
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == {"database", *labels}


async def test_names_follow_the_conventions(db: AsyncDatabase) -> None:
    """Snake case under one prefix, counters end in _total, durations in _seconds."""
    for family in SessionCollector().collect():
        assert re.fullmatch(r"asyncsession_kit_[a-z]+(_[a-z]+)*", family.name)
        assert not re.search("_(total|count|sum|bucket|ms|milliseconds)$", family.name)
        assert family.name.endswith("_seconds") == (family.type == "histogram")
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")


async def test_the_values_are_those_of_the_statistics(db: AsyncDatabase) -> None:
    """Of the database, by outcome, kind, scope and state."""
    registry = CollectorRegistry()
    register_session_collector(registry)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"asyncsession_kit_{name}", {"database": NAME, **labels})

    assert value("sessions_total") == 4
    assert (value("sessions_active"), value("sessions_active_peak")) == (1, 2)
    assert value("transactions_total", outcome="committed") == 1
    assert value("transactions_total", outcome="rolled_back") == 1
    assert value("transactions_total", outcome="unknown") == 0
    assert value("transactions_failed_total") == 1
    assert value("errors_total", kind="application") == 1
    assert value("errors_total", kind="pool_exhausted") == 1
    assert value("session_timeouts_total") == value("pool_timeouts_total") == 1
    assert value("scopes_failed_total", scope="check-out") == 1
    assert value("scope_duration_seconds_count", scope="sign-up") == 1
    assert value("pool_size") == 1
    assert value("pool_connections", state="used") == 1
    assert value("pool_connections", state="idle") == value("pool_overflow") == 0
    assert value("pool_connections_created_total") == 1
    assert value("pool_use_seconds_count") == value("pool_wait_seconds_count") == 2
    assert value("pool_create_seconds_count") == 1


async def test_buckets_are_exact(db: AsyncDatabase) -> None:
    """They grow, end with all, and have bounds that the statistics have themselves."""
    families = {family.name: family for family in SessionCollector().collect()}
    every = families["asyncsession_kit_pool_use_seconds"].samples
    samples = [sample for sample in every if sample.labels["database"] == db.name]
    buckets = [sample for sample in samples if sample.name.endswith("_bucket")]
    bounds = [sample.labels["le"] for sample in buckets]
    assert bounds[:3] == ["6.4e-05", "0.000256", "0.001024"]
    assert bounds[-2:] == ["268.435456", "+Inf"]
    values = [sample.value for sample in buckets]
    assert values == sorted(values)
    assert values[-1] == 2
    (total,) = [sample.value for sample in samples if sample.name.endswith("_sum")]
    assert 0 < total < 60


async def test_what_belongs_to_no_database() -> None:
    """It has an empty label, which Prometheus takes for none, where there is any."""
    reset_session_stats()

    def databases() -> set[str]:
        families = SessionCollector().collect()
        return {sample.labels["database"] for family in families for sample in family.samples}

    async def fail() -> None:
        raise ServerUnavailableError("down")

    assert "" not in databases()
    with pytest.raises(RetryExhaustedError):
        await async_with_retry(fail, policy=RetryPolicy(attempts=2, delay=0))
    assert "" in databases()
    reset_session_stats()


def test_a_registry_has_it_once() -> None:
    """The second is refused; taken out, it is gone."""
    registry = CollectorRegistry()
    found = register_session_collector(registry)
    with pytest.raises(ValueError, match="Duplicated"):
        register_session_collector(registry)
    registry.unregister(found)
    assert scrape(registry) == ""


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("prometheus", "prometheus_client", "prometheus"),
        ("opentelemetry", "opentelemetry", "opentelemetry"),
    ],
)
def test_a_missing_package_names_its_extra(
    module: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of the import says what to install."""
    name = f"asyncsession_kit.exporters.{module}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'pip install "asyncsession-kit\[{extra}\]"') as raised:
        importlib.import_module(name)
    assert raised.value.name == package
