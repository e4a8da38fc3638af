"""A database: its engine, made on first use, and the sessions and scopes on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Unpack

from sqlalchemy import URL, MetaData

from .._ambient import async_ambient
from .._callsite import caller_origin, user_origin
from .._certainty import COMMITS, NONE, TOKEN, TokenKeeper, check_certainty, remove_old_tokens
from .._concurrency import AsyncShare, Lock, async_run_core, async_wait_for_exits
from .._engines import (
    EngineOptions,
    EngineSource,
    SessionClass,
    async_engine_of,
    async_source_target,
    begin_hook,
    check_statement_timeout,
    limiter_of,
    make_reader,
    making_engine,
    prepare,
    refuse_reader,
)
from .._health import SLOW, TIMEOUT, HealthReport, check_limits, judged
from .._holders import Holders
from .._policy import RetryBudget
from .._pool import async_drop_connects
from .._probe import OwnPool, Probe, look_at_pool
from .._request import scope_request
from .._session import OnBegin
from .._session_classes import async_kit_class
from .._state import Limiter, SessionState
from .._statements import StatementRecorder, record_statements
from .._stats.collector import collector
from .._terms import DEFAULT, OWN_POOLS, READERS, Terms, execution_options, needs_reader_pool
from .._types import AsyncEngine, AsyncSession, create_async_engine, unwrap_async_engine
from ..config import ScopeOptions, ScopeSettings, get_session_config
from .gate import async_wait_at_gate
from .scope import AsyncSessionScope
from .turn import async_begin


class _Variant(NamedTuple):
    """Is what sessions on equal terms share: the engine as it is told to be for them, and more."""

    engine: AsyncEngine
    holders: Holders | None
    limiter: Limiter | None
    on_begin: OnBegin | None


# How long disposing waits for sessions that are just ending (seconds).
_LAST_EXITS = 5.0


class AsyncDatabase:
    """Is one database in this world, usable without any global.

    ``url`` is a URL or an engine of the application; ``session_class`` the class its sessions are
    derived from; the other keywords are those of ``create_engine`` (``pool_size``,
    ``max_overflow``, ``pool_timeout``, ``pool_recycle``, ...), and ``busy_timeout`` (seconds) for
    SQLite.  ``retry_budget`` bounds the retries after connection failures, and may be replaced.

    :raises ConfigurationError: the URL or an option is invalid.
    """

    def __init__(
        self,
        url: str | URL | AsyncEngine,
        *,
        name: str = "default",
        session_class: SessionClass = AsyncSession,
        **engine_options: Unpack[EngineOptions],
    ) -> None:
        self.name = name
        self.figures = collector.figures(name)
        self.retry_budget = RetryBudget()
        self._source = EngineSource(url, engine_options)
        self._session_class = async_kit_class(session_class)
        self._lock = Lock()
        self._engine: AsyncEngine | None = None
        self._variants: dict[Terms, _Variant] = {}
        # That of the default terms, which nearly all sessions have.
        self._usual: _Variant | None = None
        self._keeper = TokenKeeper()
        self._limits: tuple[str, ...] = ()
        self._probes: AsyncShare[Probe] = AsyncShare()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self._source.text}>"

    @property
    def engine(self) -> AsyncEngine:
        """Return the engine, made on first use; it connects when a statement is sent.

        :raises ConfigurationError: the driver is missing, or refuses an option.
        """
        engine = self._engine
        return self._make_engine() if engine is None else engine

    @property
    def is_started(self) -> bool:
        """Tell whether the engine was made."""
        return self._engine is not None

    @property
    def limitations(self) -> tuple[str, ...]:
        """Return what the promises cannot cover on this engine, in words; usually nothing."""
        self._make_engine()
        return self._limits

    @property
    def holders(self) -> Holders | None:
        """Return the gate before the pool; None where the pool has no limit that is known."""
        return self._on(DEFAULT).holders

    def _make_engine(self) -> AsyncEngine:
        with self._lock:
            if self._engine is None:
                engine = async_engine_of(self._source) or self._create({})
                core = unwrap_async_engine(engine)
                self._limits = prepare(core, self._source, async_begin)
                holders = self._source.holders(core, async_wait_at_gate)
                self._usual = self._variant(engine, holders, DEFAULT)
                self._variants = {DEFAULT: self._usual}
                self._engine = engine
            return self._engine

    def _create(self, more: Mapping[str, object]) -> AsyncEngine:
        with making_engine(self._source):
            target = async_source_target(self._source)
            options = self._source.engine_arguments(target)
            return create_async_engine(target.url, **{**options, **more})

    def _variant(self, engine: AsyncEngine, holders: Holders | None, terms: Terms) -> _Variant:
        dialect = self._source.dialect
        return _Variant(engine, holders, limiter_of(dialect, terms), begin_hook(dialect, terms))

    def _on(self, terms: Terms) -> _Variant:
        found = self._usual if terms is DEFAULT else self._variants.get(terms)
        if found is not None:
            return found
        # What cannot be had is refused before anything is made.
        options = execution_options(self._source.dialect, terms)
        engine = self.engine
        with self._lock:
            if terms not in self._variants:
                self._variants[terms] = self._make_variant(engine, terms, options)
            return self._variants[terms]

    def _make_variant(
        self, engine: AsyncEngine, terms: Terms, options: Mapping[str, object]
    ) -> _Variant:
        dialect = self._source.dialect
        if not needs_reader_pool(dialect, terms):
            told = engine.execution_options(**options)
            return self._variant(told, self._variants[DEFAULT].holders, terms)
        # Readers without a transaction share one pool, whatever else their terms are.
        if READERS not in self._variants:
            refuse_reader(self._source)
            reader = self._create(self._source.reader_options(dialect))
            core = unwrap_async_engine(reader)
            prepare(core, self._source, async_begin)
            make_reader(core, dialect)
            holders = self._source.holders(core, async_wait_at_gate)
            self._variants[READERS] = self._variant(reader, holders, READERS)
        return self._variants[READERS]

    def new_session(self, state: SessionState) -> AsyncSession:
        """Return a session for that state; nothing is sent.

        :raises ConfigurationError: the database system cannot give what the state asks for.
        """
        state.database = self
        config, dialect = state.config, self._source.dialect
        engine, state.holders, state.limiter, on_begin = self._on(state.terms)
        state.engine = engine
        if config.statement_timeout is not None:
            check_statement_timeout(dialect, state.terms, config.statement_timeout)
        if config.commit_check != NONE:
            check_certainty(dialect, config.commit_check)
            state.keeper = self._keeper if config.commit_check == TOKEN else None
        if config.statement_statistics:
            record_statements(unwrap_async_engine(engine))
            state.recorder = StatementRecorder(
                state.origin, config.repeat_threshold, config.log_parameters
            )
        session = self._session_class(
            engine,
            kit_on_begin=on_begin,
            kit_state=state,
            expire_on_commit=config.expire_on_commit,
            autoflush=config.autoflush,
            close_resets_only=False,
        )
        if config.enable_monitoring:
            self.figures.open(state)
        return session

    def session_scope(
        self, *, session: AsyncSession | None = None, **settings: Unpack[ScopeSettings]
    ) -> AsyncSessionScope:
        """Return a scope on this database, as the function of the package does on a registered one.

        :raises ConfigurationError: an option is unknown or invalid.
        """
        return AsyncSessionScope(self, scope_request(settings, caller_origin(1)), session)

    def get_session(self, **options: Unpack[ScopeOptions]) -> AsyncSession:
        """Return a session that the caller commits and closes.

        It belongs to the task (or thread) that made it and is no ambient scope.

        :raises ConfigurationError: an option is unknown or invalid.
        """
        config = get_session_config().merged(options)
        return self.new_session(SessionState(config, caller_origin(1)))

    async def check_health(
        self, *, timeout: float = TIMEOUT, slow_threshold: float = SLOW
    ) -> HealthReport:
        """Ask the database, and say how it is; it takes ``timeout`` seconds at the longest.

        It never waits for the pool: where that has no free connection it asks on one of its own,
        which is closed afterwards.  All who ask at the same time share one question.  An answer
        that takes longer than ``slow_threshold`` seconds degrades.

        :raises ConfigurationError: a value is invalid, or no engine can be made.
        """
        check_limits(timeout, slow_threshold)
        state = SessionState(get_session_config(), user_origin())
        usual = self._on(DEFAULT)
        pools = self._own_pools()
        before = [look_at_pool(*pool) for pool in pools]
        probe = await self._probes.ask(
            lambda: Probe(
                unwrap_async_engine(usual.engine), usual.holders, state, timeout, self._source.text
            ),
            timeout,
        )
        after = [look_at_pool(*pool) for pool in pools]
        return judged(
            probe.findings,
            list(zip(before, after, strict=True)),
            dialect=self._source.dialect,
            timeout=timeout,
            slow_threshold=slow_threshold,
        )

    def _own_pools(self) -> list[OwnPool]:
        with self._lock:
            own = [self._variants[terms] for terms in OWN_POOLS if terms in self._variants]
        return [(unwrap_async_engine(one.engine), one.holders) for one in own]

    async def create_all(self, metadata: MetaData) -> None:
        """Create the tables that are missing, and commit; in an open scope, leave that to it."""
        options: ScopeOptions = {"auto_commit": True, "statement_timeout": None}
        if async_ambient.find(self) is not None:
            options = {}
        async with self.session_scope(name="create_all", **options) as session:
            await async_run_core(session, lambda core: metadata.create_all(core.connection()))

    async def create_commit_table(self) -> None:
        """Create what ``commit_check="token"`` writes to, and remove what is old in it.

        Old tokens are removed by themselves later on; a second call does no harm.
        """
        await self.create_all(COMMITS.metadata)
        async with self.session_scope(name="create_commit_table") as session:
            await async_run_core(session, lambda core: remove_old_tokens(core.connection()))

    async def dispose(self) -> None:
        """Close the pool, once the sessions that are just ending have ended.

        A later use opens it again.  The private file behind a database in memory is removed.
        """
        await async_wait_for_exits(_LAST_EXITS)
        with self._lock:
            pools = [self._variants[terms].engine for terms in OWN_POOLS if terms in self._variants]
            self._engine, self._usual, self._variants = None, None, {}
        for engine in pools:
            await async_drop_connects(unwrap_async_engine(engine).pool)
            await engine.dispose()
        self._source.remove_private_file()
