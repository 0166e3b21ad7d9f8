"""Sending messages through Flower's Grid and waiting for replies, whatever sites do with them."""

import time
from collections.abc import Iterable
from typing import Any

from flwr.app import Error, Message
from flwr.serverapp import Grid

from pipeline.flower.records import printable

PAUSE = 0.5  # seconds between two looks for replies
REFUSED = "refused"  # the record of a reply that says why there is no other


class Patient:
    """A Grid in which one site's message cannot end the others' run.

    As Grid.send_and_receive, but replies are fetched one by one: Flower rebuilds a site's objects
    there, and what it cannot rebuild is that site's error instead of all sites'. A node that did
    not reply last time is waited for twice as long as the others took, not longer, so that a dead
    one does not hold up every round.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.late: set[int] = set()

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are connected."""
        return self.grid.get_node_ids()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """One reply, or error of Flower, of each node that replies in time."""
        asked = list(messages)
        # Of what is too large Flower returns no id.
        sent = [*(self.grid.push_messages(asked) if asked else ()), *[None] * len(asked)]
        pairs = list(zip(sent, asked, strict=False))
        waiting = {id: message for id, message in pairs if id is not None}
        came = [
            _error("the SuperLink did not take its message", m) for id, m in pairs if id is None
        ]
        begun, allowed = time.monotonic(), timeout if timeout is not None else float("inf")
        while waiting and time.monotonic() - begun < allowed:
            for id, message in list(waiting.items()):
                reply = self._pulled(id, message)
                if reply is None:
                    continue
                came.append(reply)
                del waiting[id]
                if _nodes(waiting) <= self.late:
                    allowed = min(allowed, 2 * (time.monotonic() - begun))
            if waiting:
                time.sleep(PAUSE)
        self.late = _nodes(waiting)
        return came

    def _pulled(self, id: str, asked: Message) -> Message | None:
        try:
            replies = list(self.grid.pull_messages([id]))
            if not replies:
                return None
            if replies[0].has_error():
                return _error(f"Flower: {replies[0].error.reason}", asked)
            if REFUSED in replies[0].content:
                why = replies[0].content.config_records[REFUSED]["why"]
                return _error(str(why), asked)
            # From whom it was asked, nobody else.
            return Message(replies[0].content, reply_to=asked)
        except Exception as error:
            return _error(f"Flower cannot read its answer ({type(error).__name__})", asked)


def _nodes(messages: dict[Any, Message]) -> set[int]:
    return {message.metadata.dst_node_id for message in messages.values()}


def _error(why: str, asked: Message) -> Message:
    return Message(Error(0, printable(why)), reply_to=asked)
