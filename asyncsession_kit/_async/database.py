"""A database: its engine, made on first use, and the sessions and scopes on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Unpack

from sqlalchemy import URL, MetaData

from .._ambient import async_ambient
from .._callsite import caller_origin, user_origin
from .._certainty import COMMITS, NONE, TOKEN, TokenKeeper, check_certainty, remove_old_tokens
from .._concurrency import (
    AsyncShare,
    Home,
    Lock,
    async_home,
    async_run_core,
    async_to_its_end,
    async_wait_for_exits,
)
from .._engine_options import EngineOptions
from .._engines import (
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
from .._forks import reset_in_child
from .._health import SLOW, TIMEOUT, HealthReport, check_limits, judged
from .._holders import Holders
from .._links import async_dispose_engine, links_of
from .._loops import PoolOf, drop_closed, settle
from .._policy import RetryBudget
from .._probe import Probe, look_at_pool
from .._request import scope_request
from .._session import OnBegin
from .._session_classes import async_kit_class
from .._state import Limiter, SessionState, is_gathered
from .._statements import StatementRecorder, record_statements
from .._stats.collector import collector
from .._stragglers import (
    SHUTDOWN_TIMEOUT,
    Straggler,
    check_timeout,
    refuse_inside,
    shutdown_error,
)
from .._terms import DEFAULT, OWN_POOLS, READERS, Terms, execution_options, needs_reader_pool
from .._types import AsyncEngine, AsyncSession, create_async_engine, unwrap_async_engine
from ..config import ScopeOptions, ScopeSettings, get_session_config
from .gate import async_wait_at_gate
from .scope import AsyncSessionScope
from .shutdown import async_end_stragglers, async_wait_until_idle
from .turn import async_begin


class _Variant(NamedTuple):
    """Is what sessions on equal terms share: the engine as it is told to be for them, and more."""

    engine: AsyncEngine
    holders: Holders | None
    limiter: Limiter | None
    on_begin: OnBegin | None


class _Made:
    """Is what was made for one event loop: the engine, and what sessions on its terms share."""

    __slots__ = ("engine", "loop", "usual", "variants")

    def __init__(self, engine: AsyncEngine, usual: _Variant) -> None:
        self.engine = engine
        self.loop: Home | None = None
        # That of the default terms, which nearly all sessions have.
        self.usual = usual
        self.variants: dict[Terms, _Variant] = {DEFAULT: usual}

    def pools(self) -> list[PoolOf]:
        """Return the pools, each by the engine that has it."""
        own = [self.variants[terms] for terms in OWN_POOLS if terms in self.variants]
        return [PoolOf(unwrap_async_engine(v.engine), v.holders) for v in own]

    def engines(self) -> list[AsyncEngine]:
        """Return the engines that have a pool of their own."""
        return [self.variants[terms].engine for terms in OWN_POOLS if terms in self.variants]


# How long disposing waits for sessions that are just ending (seconds).
_LAST_EXITS = 5.0


class AsyncDatabase:
    """Is one database in this world, usable without any global.

    ``url`` is a URL or an engine of the application; ``session_class`` the class its sessions are
    derived from; the other keywords are those of ``create_engine`` (``pool_size``,
    ``max_overflow``, ``pool_timeout``, ``pool_recycle``, ...), ``busy_timeout`` (seconds) for
    SQLite, ``ping_after`` (seconds that a connection is idle before it is asked whether it is
    there, None: never) and ``pgbouncer``.  ``retry_budget`` bounds the retries after connection
    failures, and may be replaced.  Where event loops follow one another, the pool of a closed one
    is replaced by itself; several open ones need ``per_loop=True``, a pool for each (threads have
    no loops, and ignore it).

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
        # By event loop where each has a pool of its own, otherwise one under None.
        self._all: dict[Home | None, _Made] = {}
        # The one that was used last.
        self._made: _Made | None = None
        self._keeper = TokenKeeper()
        self._limits: tuple[str, ...] = ()
        self._shut = False
        reset_in_child(self)
        self._probes: AsyncShare[Probe] = AsyncShare()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self._source.text}>"

    @property
    def engine(self) -> AsyncEngine:
        """Return the engine, made on first use; it connects when a statement is sent.

        With ``per_loop=True`` it is the one of the event loop that runs.

        :raises ConfigurationError: the driver is missing, or refuses an option.
        :raises WrongEventLoopError: it is in use in another loop, which is open.
        :raises DatabaseShutdownError: it was shut down.
        """
        return self._here().engine

    @property
    def is_started(self) -> bool:
        """Tell whether the engine was made."""
        return bool(self._all)

    @property
    def per_loop(self) -> bool:
        """Tell whether each event loop has a pool of its own."""
        return self._source.per_loop

    @property
    def limitations(self) -> tuple[str, ...]:
        """Return what the promises cannot cover on this engine, in words; usually nothing."""
        self._here()
        return self._limits

    @property
    def holders(self) -> Holders | None:
        """Return the gate before the pool; None where the pool has no limit that is known."""
        return self._on(DEFAULT).holders

    def _here(self) -> _Made:
        """Return what was made for the loop that runs."""
        made = self._made
        return made if made is not None and made.loop is async_home() else self._find()

    def _find(self) -> _Made:
        loop = async_home()
        if self._shut and async_ambient.find(self) is None and not is_gathered(self):
            raise shutdown_error(self.name)
        with self._lock:
            drop_closed(self._all)
            key = loop if self._source.per_loop else None
            if key not in self._all:
                self._all[key] = self._make()
            made = self._all[key]
            settle(made, loop)
            self._made = None if self._shut else made
            return made

    def after_fork(self) -> None:
        """Begin anew in a forked child: no loop, lock or connection of the parent is used."""
        self._lock = Lock()
        self._probes = AsyncShare()
        self._made = None
        if self._source.per_loop:
            self._all = {}
        for made in self._all.values():
            made.loop = None

    def _make(self) -> _Made:
        engine = async_engine_of(self._source) or self._create({})
        core = unwrap_async_engine(engine)
        self._limits = prepare(core, self._source, async_begin)
        holders = self._source.holders(core, async_wait_at_gate)
        self.figures.pool.add(core, holders)
        return _Made(engine, self._variant(engine, holders, DEFAULT))

    def _create(self, more: Mapping[str, object]) -> AsyncEngine:
        with making_engine(self._source):
            target = async_source_target(self._source)
            options = self._source.engine_arguments(target)
            return create_async_engine(target.url, **{**options, **more})

    def _variant(self, engine: AsyncEngine, holders: Holders | None, terms: Terms) -> _Variant:
        dialect = self._source.dialect
        return _Variant(engine, holders, limiter_of(dialect, terms), begin_hook(dialect, terms))

    def _on(self, terms: Terms) -> _Variant:
        if terms is DEFAULT:
            return self._here().usual
        # What cannot be had is refused before anything is made.
        options = execution_options(self._source.dialect, terms)
        made = self._here()
        found = made.variants.get(terms)
        if found is not None:
            return found
        with self._lock:
            if terms not in made.variants:
                made.variants[terms] = self._make_variant(made, terms, options)
            return made.variants[terms]

    def _make_variant(self, made: _Made, terms: Terms, options: Mapping[str, object]) -> _Variant:
        dialect = self._source.dialect
        if not needs_reader_pool(dialect, terms):
            told = made.engine.execution_options(**options)
            return self._variant(told, made.usual.holders, terms)
        # Readers without a transaction share one pool, whatever else their terms are.
        if READERS not in made.variants:
            refuse_reader(self._source)
            reader = self._create(self._source.reader_options(dialect))
            core = unwrap_async_engine(reader)
            prepare(core, self._source, async_begin)
            make_reader(core, dialect)
            links_of(core).settle(made.loop)
            holders = self._source.holders(core, async_wait_at_gate)
            self.figures.pool.add(core, holders)
            made.variants[READERS] = self._variant(reader, holders, READERS)
        return made.variants[READERS]

    def new_session(self, state: SessionState) -> AsyncSession:
        """Return a session for that state; nothing is sent.

        :raises ConfigurationError: the database system cannot give what the state asks for.
        """
        loop, made = async_home(), self._made
        state.database, state.loop = self, loop
        config, dialect = state.config, self._source.dialect
        if made is not None and made.loop is loop and state.terms is DEFAULT:
            variant = made.usual
        else:
            variant = self._on(state.terms)
        engine, state.holders, state.limiter, on_begin = variant
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
        pools = self._here().pools()
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
        for engine in self.take_engines():
            await async_dispose_engine(engine)
        self._source.remove_private_file()

    def take_engines(self) -> list[AsyncEngine]:
        """Return the engines, which the caller is to dispose of; a later use makes others."""
        with self._lock:
            engines = [engine for made in self._all.values() for engine in made.engines()]
            self._made, self._all = None, {}
        for engine in engines:
            self.figures.pool.remove(unwrap_async_engine(engine))
        return engines

    def refuse_new(self) -> None:
        """Open no session any more, except inside of a scope that is open."""
        with self._lock:
            self._shut, self._made = True, None

    async def shutdown(self, *, timeout: float = SHUTDOWN_TIMEOUT) -> tuple[Straggler, ...]:
        """Open no new sessions, wait for those that are open, end the others, and close the pool.

        What is opened inside of an open scope still works.  After ``timeout`` seconds the sessions
        that are left are rolled back; they are returned, and logged as a warning.  A caller that is
        cancelled ends them at once.  A second call does no harm; the database stays shut.

        :raises PropagationError: the caller is inside of a scope of this database.
        :raises ConfigurationError: ``timeout`` is no number of seconds.
        """
        check_timeout(timeout)
        refuse_inside(self.name, async_ambient.find(self))
        self.refuse_new()
        stragglers: tuple[Straggler, ...] = ()
        try:
            await async_wait_until_idle((self,), timeout)
        finally:
            stragglers = await async_to_its_end(self._finish)
        return stragglers

    async def _finish(self) -> tuple[Straggler, ...]:
        stragglers = await async_end_stragglers(self)
        await self.dispose()
        return stragglers
