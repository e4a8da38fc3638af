"""Ask what a scope costs where the driver answers at once, so that nothing hides it.

    python -m benchmarks.stub_cost [--rounds N] [--markdown FILE]

The idioms of ``scope_cost``, in tasks, on a driver that is none: it answers every statement after
one turn of the event loop.  Figures are CPU time (user and system, of this process) per unit as a
ratio to the textbook.  Nothing of a server, a network or another process is in them, so they repeat
within two in a hundred where those on PostgreSQL move by ten: changes are judged by these.

What would change a decision:

* An empty scope above 0.20 of the textbook's: making the session on entry costs too much, and it
  would have to be made on first use.
* One select above 0.85: what a scope checks and counts costs more than it saves.
"""

from __future__ import annotations

from collections.abc import Sequence

from ._command import Options, command
from ._findings import Findings
from ._idioms import ASYNC_METHOD, BY_HAND, MAKER_BEGIN, TEXTBOOK, StubSide
from ._tables import bars, ratios
from ._timing import measure, ratio
from ._workloads import EMPTY, SELECT, SELECTS

ROUNDS = 60
WORKLOADS = (EMPTY, SELECT, SELECTS)
SHOWN = (MAKER_BEGIN, BY_HAND, ASYNC_METHOD)


def look(options: Options) -> Findings:
    """Measure every idiom."""
    with StubSide() as side:
        cpu = measure(side, WORKLOADS, options.rounds).cpu
    figures = {
        f"stub {short}": ratio(cpu, workload.name, ASYNC_METHOD, TEXTBOOK)
        for short, workload in (("select", SELECT), ("empty", EMPTY))
    }
    title = "CPU time per unit where the driver answers at once"
    return Findings(
        [ratios(f"{title}, against the textbook", cpu, WORKLOADS)],
        figures,
        [bars("stub_cost", title, cpu, WORKLOADS, SHOWN)],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and show what was found."""
    command("stub_cost", __doc__, look, ROUNDS, arguments)


if __name__ == "__main__":
    main()
