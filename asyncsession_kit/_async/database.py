"""A database: its engine, made on first use, and the sessions and scopes on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

from sqlalchemy import URL, MetaData

from .._ambient import async_ambient
from .._callsite import caller_origin
from .._certainty import COMMITS, TOKEN, TokenKeeper, check_certainty, remove_old_tokens
from .._concurrency import Lock, async_run_core, async_wait_for_exits
from .._engines import (
    READER_OPTIONS,
    EngineOptions,
    EngineSource,
    SessionClass,
    async_engine_of,
    async_source_target,
    begin_hook,
    limiter_for,
    make_reader,
    making_engine,
    prepare,
    refuse_reader,
)
from .._holders import Holders
from .._policy import RetryBudget
from .._request import scope_request
from .._session import async_kit_class
from .._state import SessionState
from .._terms import DEFAULT, OWN_POOLS, READERS, Terms, execution_options, needs_reader_pool
from .._types import AsyncEngine, AsyncSession, create_async_engine, unwrap_async_engine
from ..config import ScopeOptions, ScopeSettings, get_session_config
from .gate import async_wait_at_gate
from .scope import AsyncSessionScope
from .turn import async_begin

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
        self.retry_budget = RetryBudget()
        self._source = EngineSource(url, engine_options)
        self._session_class = async_kit_class(session_class)
        self._lock = Lock()
        self._engine: AsyncEngine | None = None
        # By terms: the engine as it is told to be for them, and who is at its pool.
        self._variants: dict[Terms, tuple[AsyncEngine, Holders | None]] = {}
        self._keeper = TokenKeeper()
        self._limits: tuple[str, ...] = ()

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
        return self._on(DEFAULT)[1]

    def _make_engine(self) -> AsyncEngine:
        with self._lock:
            if self._engine is None:
                engine = async_engine_of(self._source) or self._create({})
                core = unwrap_async_engine(engine)
                self._limits = prepare(core, self._source, async_begin)
                holders = self._source.holders(core, async_wait_at_gate)
                self._variants = {DEFAULT: (engine, holders)}
                self._engine = engine
            return self._engine

    def _create(self, more: Mapping[str, object]) -> AsyncEngine:
        with making_engine(self._source):
            target = async_source_target(self._source)
            options = self._source.engine_arguments(target)
            return create_async_engine(target.url, **{**options, **more})

    def _on(self, terms: Terms) -> tuple[AsyncEngine, Holders | None]:
        found = self._variants.get(terms)
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
    ) -> tuple[AsyncEngine, Holders | None]:
        dialect = self._source.dialect
        if not needs_reader_pool(dialect, terms):
            return engine.execution_options(**options), self._variants[DEFAULT][1]
        # Readers without a transaction share one pool, whatever else their terms are.
        if READERS not in self._variants:
            refuse_reader(self._source)
            reader = self._create(READER_OPTIONS[dialect])
            core = unwrap_async_engine(reader)
            prepare(core, self._source, async_begin)
            make_reader(core, dialect)
            holders = self._source.holders(core, async_wait_at_gate)
            self._variants[READERS] = (reader, holders)
        return self._variants[READERS]

    def new_session(self, state: SessionState) -> AsyncSession:
        """Return a session for that state; nothing is sent.

        :raises ConfigurationError: the database system cannot give what the state asks for.
        """
        state.database = self
        state.engine, state.holders = self._on(state.terms)
        dialect = self._source.dialect
        check_certainty(dialect, state.config.commit_check)
        state.keeper = self._keeper if state.config.commit_check == TOKEN else None
        state.limiter = limiter_for(dialect, state.terms, state.config.statement_timeout)
        return self._session_class(
            state.engine,
            kit_on_begin=begin_hook(dialect, state.terms),
            kit_state=state,
            expire_on_commit=state.config.expire_on_commit,
            autoflush=state.config.autoflush,
            close_resets_only=False,
        )

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
            pools = [self._variants[terms][0] for terms in OWN_POOLS if terms in self._variants]
            self._engine, self._variants = None, {}
        for engine in pools:
            await engine.dispose()
        self._source.remove_private_file()
