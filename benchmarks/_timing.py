"""Compare idioms by the CPU time of one scope, in one process and interleaved.

The idioms of a side take turns in short blocks, in another order every round, and an idiom's time
is divided by the textbook's of the same round.  What slows the machine down for seconds slows both
alike, so the ratio can be told where the times themselves cannot.
"""

from __future__ import annotations

import gc
import random
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ._idioms import TEXTBOOK, Workload

# CPU seconds of one block: long against the clock's grain, short against the machine's moods.
BLOCK = 0.02
_WARM_UP = 10
_CALIBRATION = 40

# Seconds per scope, one value per round, by workload and idiom.
Samples = dict[tuple[str, str], list[float]]


class Side(Protocol):
    """Is one world's idioms, by name."""

    @property
    def blocks(self) -> Mapping[str, Any]:
        """Return what can be measured."""

    def cpu(self, idiom: str, workload: Workload, times: int) -> float:
        """Return the CPU seconds that so many scopes take."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Holds the middle of many values, and between which two the middle half of them lies."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles; of one value, three times the same."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def ratio(samples: Samples, workload: str, idiom: str) -> Spread:
    """Return an idiom's cost against the textbook's of the same round."""
    pairs = zip(samples[workload, idiom], samples[workload, TEXTBOOK], strict=True)
    return spread([mine / textbook for mine, textbook in pairs])


def measure(side: Side, workloads: Iterable[Workload], rounds: int) -> Samples:
    """Run every idiom with every workload once per round."""
    plan = {
        workload: {idiom: _scopes_per_block(side, idiom, workload) for idiom in side.blocks}
        for workload in workloads
    }
    # What is alive now lives on; without it a collection costs what the scopes have left behind.
    gc.collect()
    gc.freeze()
    samples: Samples = {(w.name, idiom): [] for w, counts in plan.items() for idiom in counts}
    for number in range(rounds):
        _report_progress(number, rounds)
        for workload, counts in plan.items():
            for idiom in random.sample(list(counts), len(counts)):
                seconds = side.cpu(idiom, workload, counts[idiom]) / counts[idiom]
                samples[workload.name, idiom].append(seconds)
        gc.collect()
    gc.unfreeze()
    return samples


def _scopes_per_block(side: Side, idiom: str, workload: Workload) -> int:
    side.cpu(idiom, workload, _WARM_UP)
    seconds = side.cpu(idiom, workload, _CALIBRATION) / _CALIBRATION
    return max(1, round(BLOCK / seconds))


def _report_progress(number: int, rounds: int) -> None:
    if sys.stderr.isatty():
        print(f"\rround {number + 1} of {rounds} ", end="", file=sys.stderr, flush=True)
