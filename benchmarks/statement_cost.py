"""Ask what ``statement_statistics`` costs, and what other ways to count statements would.

    python -m benchmarks.statement_cost [--rounds N]

Scopes with one select and with ten, in tasks on a stub (a driver that answers at once, so that
nothing hides the cost).  Figures are CPU time (user and system) per scope of this process, as
differences to a scope without any statistics, in the same round: medians, and in parentheses where
the middle half lies.

* "never on": an engine on which no session has ever asked for them.  The control is the same again.
* "off": an engine on which another session has asked for them.
* "on": ``statement_statistics=True``, repeated statements looked for; and without that.
* "events": a bare listener before and after each cursor's execution, on the engine.
* "do_orm_execute": a bare listener of the session, which sees no flush and no end of a statement.

What would change a decision: events of the engine that cost less than "on" would be simpler.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import event

from asyncsession_kit import AsyncDatabase, SessionOptions, configure_session
from asyncsession_kit.config import reset_session_config

from ._command import Options, command
from ._findings import Findings
from ._report import Table
from ._stub import stub_engine
from ._timing import difference, measure, ratio, spread
from ._workloads import SELECT, SELECTS, Workload

ROUNDS = 60
NEVER, CONTROL, OFF, ON = "never on", "never on again (A/A)", "off", "on"
COUNTED, EVENTS, ORM = "on, repeat_threshold=None", "events", "do_orm_execute"
WORKLOADS = (SELECT, SELECTS)

Block = Callable[[Workload, int], None]


def _ignore(*arguments: object) -> None:
    """Listen to something."""


class _Side:
    """Is one way to run scopes for each of the names."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self.databases = {name: AsyncDatabase(stub_engine(), name=name) for name in (NEVER, EVENTS)}
        self.databases[ON] = AsyncDatabase(stub_engine(), name=ON)
        core = self.databases[EVENTS].engine.sync_engine
        event.listen(core, "before_cursor_execute", _ignore)
        event.listen(core, "after_cursor_execute", _ignore)
        on: SessionOptions = {"statement_statistics": True}
        listens: SessionOptions = {"event_listeners": {"do_orm_execute": _ignore}}
        database = self.databases
        self.blocks: Mapping[str, Block] = {
            NEVER: self._block(database[NEVER], {}),
            CONTROL: self._block(database[NEVER], {}),
            OFF: self._block(database[ON], {}),
            ON: self._block(database[ON], on),
            COUNTED: self._block(database[ON], {**on, "repeat_threshold": None}),
            EVENTS: self._block(database[EVENTS], {}),
            ORM: self._block(database[NEVER], listens),
        }
        # From now on its other sessions are "off", and no more "never on".
        self.blocks[ON](SELECT, 1)

    def _block(self, database: AsyncDatabase, options: SessionOptions) -> Block:
        async def run(workload: Workload, times: int) -> None:
            reset_session_config()
            configure_session(**options)
            for _ in range(times):
                async with database.session_scope(name="b") as session:
                    await workload.in_task(session)

        return lambda workload, times: self._runner.run(run(workload, times))

    def repeat(self, idiom: str, workload: Workload, times: int) -> None:
        """Run so many scopes."""
        self.blocks[idiom](workload, times)


def look(options: Options) -> Findings:
    """Measure every way."""
    with asyncio.Runner() as runner:
        side = _Side(runner)
        samples = measure(side, WORKLOADS, options.rounds).cpu
        for database in side.databases.values():
            runner.run(database.dispose())
    rows = []
    for workload in WORKLOADS:
        base = spread(samples[workload.name, NEVER]).median
        rows.append([workload.name, NEVER, f"{base * 1e6:.0f}", "", ""])
        for name in list(side.blocks)[1:]:
            more = str(difference(samples, workload.name, name, NEVER))
            rows.append(
                [workload.name, name, "", more, str(ratio(samples, workload.name, name, NEVER))]
            )
    header = ("scope", "way", "us", "us more", "ratio")
    return Findings([Table("CPU time per scope, statements counted", header, rows)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and show what was found."""
    command("statement_cost", __doc__, look, ROUNDS, arguments)


if __name__ == "__main__":
    main()
