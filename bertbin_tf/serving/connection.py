"""A connection that does not wait for ever for a request to begin."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """uvicorn's, which is closed when the headers of a request do not arrive in time.

    uvicorn counts the time between two requests alone: a connection that sends nothing, or half a header, stays, and as
    many as it allows at once keep everybody else out.

    Args:
        seconds: Float > 0, for the headers to arrive, from the first byte or from the connection's beginning.
        **kwargs: uvicorn's.
    """

    def __init__(self, *, seconds: float, **kwargs):
        super().__init__(**kwargs)
        self._seconds = seconds
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport):
        super().connection_made(transport)
        self._watch()

    def data_received(self, data):
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc):
        self._forget()
        super().connection_lost(exc)

    def _watch(self):
        if self.conn.their_state is not h11.IDLE:  # a request has begun
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self._seconds, self.transport.close)

    def _forget(self):
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
