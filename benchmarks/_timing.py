"""Compare idioms by the CPU time and the time of one unit, in one process and interleaved.

The idioms of a side take turns in short blocks, in another order every round, and an idiom's time
is divided by the textbook's of the same round.  What slows the machine down for seconds slows both
alike, so the ratio can be told where the times themselves cannot.
"""

from __future__ import annotations

import gc
import random
import statistics
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ._workloads import Workload

# CPU seconds of one block: long against the clock's grain, short against the machine's moods.
BLOCK = 0.02
# Seconds of one block where the server is away, and CPU time hardly passes.
AWAY_BLOCK = 0.05
_WARM_UP = 10

# Seconds per unit, one value per round, by workload and idiom.
Samples = dict[tuple[str, str], list[float]]


@dataclass(frozen=True, slots=True)
class Times:
    """Holds CPU seconds (user and system, of this process) and seconds per unit."""

    cpu: Samples = field(default_factory=dict)
    wall: Samples = field(default_factory=dict)

    @property
    def idioms(self) -> list[str]:
        """Return what was measured, in order."""
        return list(dict.fromkeys(idiom for _, idiom in self.cpu))


class Side(Protocol):
    """Is one world's idioms, by name."""

    @property
    def blocks(self) -> Mapping[str, Any]:
        """Return what can be measured."""

    def repeat(self, idiom: str, workload: Workload, times: int) -> None:
        """Run the workload in so many scopes."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Holds the middle of many values, and between which two the middle half of them lies."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def exactly(value: float) -> Spread:
    """Return a value that has no spread: a count."""
    return Spread(value, value, value)


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles; of one value, three times the same."""
    if len(values) == 1:
        return exactly(values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def ratio(samples: Samples, workload: str, idiom: str, against: str) -> Spread:
    """Return an idiom's cost against another's of the same round."""
    pairs = zip(samples[workload, idiom], samples[workload, against], strict=True)
    return spread([mine / other for mine, other in pairs])


def difference(samples: Samples, workload: str, idiom: str, against: str) -> Spread:
    """Return how many microseconds more an idiom takes than another in the same round."""
    pairs = zip(samples[workload, idiom], samples[workload, against], strict=True)
    return spread([(mine - other) * 1e6 for mine, other in pairs])


def measure(
    side: Side,
    workloads: Iterable[Workload],
    rounds: int,
    *,
    only: Collection[str] | None = None,
    away: bool = False,
) -> Times:
    """Run every idiom (or only some) with every workload once per round."""
    idioms = [idiom for idiom in side.blocks if only is None or idiom in only]
    plan = {
        workload: {idiom: _units_per_block(side, idiom, workload, away) for idiom in idioms}
        for workload in workloads
    }
    # What is alive now lives on; without it a collection costs what the scopes have left behind.
    gc.collect()
    gc.freeze()
    keys = [(w.name, idiom) for w, counts in plan.items() for idiom in counts]
    times = Times({key: [] for key in keys}, {key: [] for key in keys})
    for number in range(rounds):
        _report_progress(number, rounds)
        for workload, counts in plan.items():
            for idiom in random.sample(list(counts), len(counts)):
                cpu, wall = _seconds(side, idiom, workload, counts[idiom])
                times.cpu[workload.name, idiom].append(cpu)
                times.wall[workload.name, idiom].append(wall)
        gc.collect()
    gc.unfreeze()
    return times


def _seconds(side: Side, idiom: str, workload: Workload, units: int) -> tuple[float, float]:
    """Return the CPU seconds and the seconds per unit."""
    cpu, wall = time.process_time(), time.perf_counter()
    side.repeat(idiom, workload, units)
    return (time.process_time() - cpu) / units, (time.perf_counter() - wall) / units


def _units_per_block(side: Side, idiom: str, workload: Workload, away: bool) -> int:
    block = AWAY_BLOCK if away else BLOCK
    side.repeat(idiom, workload, _WARM_UP)
    units = 1
    while (cost := _seconds(side, idiom, workload, units)[away]) * units < block / 4:
        units *= 4
    return max(1, round(block / cost))


def _report_progress(number: int, rounds: int) -> None:
    if sys.stderr.isatty():
        print(f"\rround {number + 1} of {rounds} ", end="", file=sys.stderr, flush=True)
