"""How long many things took, in buckets whose width grows with the time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import TypedDict

# Upper bounds from a microsecond to an hour, eight to the double: what is read from a bucket is
# less than 5 % away from what was put in.
_PER_DOUBLE = 8
BOUNDS = tuple(1e-6 * 2 ** (n / _PER_DOUBLE) for n in range(32 * _PER_DOUBLE))
# From the upper bound to the middle of a bucket.
_TO_MIDDLE = 2 ** (-0.5 / _PER_DOUBLE)
_SIZE = len(BOUNDS) + 1


# How many durations wait at most to be counted.
MOST_NOTED = 256


class Histogram:
    """Counts durations (seconds); whoever adds has to hold the lock that readers hold.

    To note one takes no lock: it is counted by the next reader, or with many others at once.
    """

    __slots__ = ("_noted", "buckets", "largest", "note", "total")

    def __init__(self) -> None:
        self.buckets = [0] * _SIZE
        self.total = 0.0
        self.largest = 0.0
        self._noted: list[float] = []
        # One step, which no other thread divides.
        self.note: Callable[[float], None] = self._noted.append

    @property
    def is_due(self) -> bool:
        """Tell whether so many are noted that they are to be counted."""
        return len(self._noted) > MOST_NOTED

    def settle(self) -> None:
        """Count what was noted; the caller holds the lock."""
        noted = self._noted
        while noted:
            self.add(noted.pop())

    def add(self, seconds: float) -> None:
        """Count one more."""
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds
        if seconds > self.largest:
            self.largest = seconds

    def taken(self) -> Distribution:
        """Return what was counted so far."""
        self.settle()
        return Distribution(tuple(self.buckets), self.total, self.largest)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Holds how long many things took, as far as the buckets tell; in seconds.

    Of a difference, ``largest`` is that of the later one where it grew meanwhile, and otherwise the
    upper bound of the highest bucket that did.
    """

    buckets: tuple[int, ...] = (0,) * _SIZE
    total: float = 0.0
    largest: float = 0.0

    @property
    def count(self) -> int:
        """Return how many there were."""
        return sum(self.buckets)

    @property
    def mean(self) -> float:
        """Return the average; 0.0 of nothing."""
        count = self.count
        return self.total / count if count else 0.0

    def percentile(self, share: float) -> float:
        """Return what that share of them (0 to 1) took at the most; 0.0 of nothing."""
        sums = list(accumulate(self.buckets))
        if not sums[-1]:
            return 0.0
        place = bisect_left(sums, max(1.0, share * sums[-1]))
        return min(self.largest, BOUNDS[min(place, _SIZE - 2)] * _TO_MIDDLE)

    def __add__(self, other: Distribution) -> Distribution:
        buckets = tuple(map(int.__add__, self.buckets, other.buckets))
        return Distribution(buckets, self.total + other.total, max(self.largest, other.largest))

    def __sub__(self, earlier: Distribution) -> Distribution:
        buckets = tuple(map(int.__sub__, self.buckets, earlier.buckets))
        return Distribution(buckets, self.total - earlier.total, self._grown(buckets, earlier))

    def _grown(self, buckets: tuple[int, ...], earlier: Distribution) -> float:
        if self.largest > earlier.largest:
            return self.largest
        highest = max((place for place, count in enumerate(buckets) if count), default=None)
        return 0.0 if highest is None else min(self.largest, BOUNDS[min(highest, _SIZE - 2)])


NOTHING = Distribution()


class DurationStats(TypedDict):
    """Says how long many things took; in seconds, 0.0 where there were none."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


def duration_stats(times: Distribution) -> DurationStats:
    """Return the figures of a distribution."""
    return {
        "count": times.count,
        "mean": times.mean,
        "p50": times.percentile(0.5),
        "p90": times.percentile(0.9),
        "p99": times.percentile(0.99),
        "max": times.largest,
    }
