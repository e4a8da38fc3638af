"""The fault proxy, as type checkers see it; nothing here is run."""

from __future__ import annotations

from typing import assert_type

from asyncsession_kit.testing import (
    Action,
    Fault,
    FaultChooser,
    FaultProxy,
    ThreadedFaultProxy,
    WireMessage,
)


def choose(message: WireMessage) -> Fault | None:
    """Choose a fault."""
    assert_type(message.sql, str | None)
    assert_type(message.number + message.connection, int)
    return Fault("cut_within", share=0.9) if message.sql == "COMMIT" else None


async def in_a_task(url: str, action: Action) -> None:
    """Use the proxy in a task."""
    async with FaultProxy(url) as proxy:
        assert_type(proxy, FaultProxy)
        assert_type(proxy.url(), str)
        assert_type(proxy.executed, list[str])
        assert_type(proxy.target, tuple[str, int])
        proxy.latency = 0.1
        proxy.inject(action, on="INSERT .*", times=None)
        proxy.inject("cut_soon")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        proxy.inject_at("cut_before", 3)
        proxy.inject_where(choose)
        await proxy.until_fired(2)


def in_a_thread(url: str) -> None:
    """Use the proxy in a thread."""
    chooser: FaultChooser = choose
    with ThreadedFaultProxy(url) as proxy:
        assert_type(proxy, ThreadedFaultProxy)
        proxy.inject_where(chooser)
        proxy.inject_where(lambda message: Fault("delay", seconds=message.number))
