"""How measured times are laid out: idioms by workloads, as ratios to one of the idioms."""

from __future__ import annotations

from collections.abc import Sequence

from ._findings import Chart
from ._idioms import TEXTBOOK
from ._report import Table
from ._timing import Samples, Spread, ratio, spread
from ._workloads import Workload


def ratios(
    title: str, samples: Samples, workloads: Sequence[Workload], against: str = TEXTBOOK
) -> Table:
    """Return a table of ratios; the idiom that is compared with shows its time."""
    rows = [
        [idiom, *(_cell(samples, workload.name, idiom, against) for workload in workloads)]
        for idiom in idioms(samples)
    ]
    return Table(title, ("idiom", *(workload.name for workload in workloads)), rows)


def bars(
    name: str, title: str, samples: Samples, workloads: Sequence[Workload], shown: Sequence[str]
) -> Chart:
    """Return a plot of the ratios of some idioms to the textbook."""
    series = {
        idiom: [_ratio_or_none(samples, workload.name, idiom) for workload in workloads]
        for idiom in shown
        if idiom in idioms(samples)
    }
    labels = [workload.name for workload in workloads]
    return Chart(name, title, "ratio to the textbook idiom (less is better)", labels, series, 1.0)


def idioms(samples: Samples) -> list[str]:
    """Return what was measured, in order."""
    return list(dict.fromkeys(idiom for _, idiom in samples))


def duration(seconds: float) -> str:
    """Return so many seconds in a readable unit."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.1f} us" if seconds < 0.0001 else f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _cell(samples: Samples, workload: str, idiom: str, against: str) -> str:
    if (workload, idiom) not in samples:
        return ""
    if idiom == against:
        return f"1 = {duration(spread(samples[workload, idiom]).median)}"
    return str(ratio(samples, workload, idiom, against))


def _ratio_or_none(samples: Samples, workload: str, idiom: str) -> Spread | None:
    if (workload, idiom) not in samples:
        return None
    return ratio(samples, workload, idiom, TEXTBOOK)
