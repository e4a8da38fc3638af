"""One client's connection through the proxy, and what goes wrong on it."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from ._conversation import Conversation, Question, Reply, Request
from ._ends import End, Lane
from ._exchange import Exchange
from ._faults import Fault


class Link:
    """Is one client's connection and the connection to the server that was made for it."""

    def __init__(
        self, exchange: Exchange, conversation: Conversation, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._exchange = exchange
        self._conversation = conversation
        self._loop = loop
        self.client = End(self._client_made, self._client_sent, self._client_lost)
        self._server = End(self._server_made, self._server_sent, self._server_lost)
        self.client.peer, self._server.peer = self._server, self.client
        self._to_client = Lane(self.client, loop, held=exchange.held)
        self._to_server = Lane(self._server, loop, held=exchange.held)
        self._connecting: asyncio.Task[None] | None = None
        self._number = 0
        self._messages = 0

    def hold(self, held: bool) -> None:
        """Stop forwarding in both directions, or go on."""
        self._to_server.hold(held)
        self._to_client.hold(held)

    def abort(self) -> None:
        """Close both sockets at once."""
        if self._connecting is not None:
            self._connecting.cancel()
        self._server.abort()
        self.client.abort()

    def _client_made(self) -> None:
        self._number = self._exchange.add_link(self)
        self._connecting = self._loop.create_task(self._connect())
        self._connecting.add_done_callback(self._connected)

    async def _connect(self) -> None:
        with suppress(OSError):
            await self._loop.create_connection(lambda: self._server, *self._exchange.target)

    def _connected(self, task: asyncio.Task[None]) -> None:
        """Turn away a client whose server cannot be reached."""
        self._connecting = None
        if self._server.transport is None:
            self._server.lost = True
            self.client.abort()
            self._finish()

    def _server_made(self) -> None:
        self._to_server.flush()

    def _client_lost(self) -> None:
        # Behind what the client sent before: a COMMIT on its way still arrives.
        self._to_server.push(None, self._exchange.latency)
        self._to_server.flush()
        self._finish()

    def _server_lost(self) -> None:
        self._to_client.push(None, self._exchange.latency)
        self._to_client.flush()
        self._finish()

    def _finish(self) -> None:
        if self.client.lost and self._server.lost:
            self._to_client.stop_timer()
            self._to_server.stop_timer()
            self._exchange.remove_link(self)

    def _client_sent(self, data: bytes) -> None:
        for request in self._conversation.sent(data):
            if not self.client.open:
                break
            self._forward(request)
        self._to_server.flush()
        self._to_client.flush()

    def _forward(self, request: Request) -> None:
        """Let a message pass to the server, or do what was asked for instead."""
        latency = self._exchange.latency
        if request.reply:
            self._to_client.push(request.reply, 2 * latency)
            return
        fault = self._fault_for(request)
        self._exchange.record(request)
        action = fault.action if fault is not None else None
        if action == "black_hole":
            self.hold(True)
        if action != "cut_before":
            late = fault.seconds if fault is not None and action == "cut_late" else 0.0
            self._to_server.push(request.data, latency + late)
        if fault is not None and fault.cuts_at_once:
            self.client.abort()

    def _fault_for(self, request: Request) -> Fault | None:
        if request.question is None:
            return None
        self._messages += 1
        fault = self._exchange.find_fault(self._number, self._messages, request.sql)
        request.question.fault = fault or request.question.fault
        return fault

    def _server_sent(self, data: bytes) -> None:
        for reply in self._conversation.returned(data):
            self._return(reply)
        self._to_client.flush()

    def _return(self, reply: Reply) -> None:
        """Let a message pass to the client, or do what was asked for instead."""
        self._exchange.counts.round_trips += reply.round_trips
        question = reply.question
        fault = question.fault if question is not None else None
        if question is not None and fault is not None and fault.withholds:
            self._withhold(reply, question, fault)
            return
        late = fault.seconds if fault is not None and fault.action == "delay" else 0.0
        self._to_client.push(reply.data, self._exchange.latency + late)

    def _withhold(self, reply: Reply, question: Question, fault: Fault) -> None:
        """Keep a message back; at the end of the answer, cut where that was asked for."""
        question.kept += reply.data
        if reply.ends and fault.action != "swallow":
            self._to_client.push(fault.passed(bytes(question.kept)), self._exchange.latency)
            self._to_client.push(None, self._exchange.latency)
