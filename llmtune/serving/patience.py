"""Close connections that send nothing, or only a part of a request's head; uvicorn would keep them forever."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

__all__ = ["READ_TIMEOUT_S", "PatientProtocol"]

READ_TIMEOUT_S = 20.0
"""Seconds for the head of a request, and between two chunks of its body."""
if TYPE_CHECKING:
    _Base: Any = object
else:
    _Base = AutoHTTPProtocol


class PatientProtocol(_Base):
    """Uvicorn's protocol with a timeout for the head of a request."""

    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._awaits_head():
            self._start()
        else:
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _awaits_head(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _start(self) -> None:
        """Start the timer at the first byte; further bytes do not extend it."""
        if self._clock is None:
            self._clock = asyncio.get_running_loop().call_later(READ_TIMEOUT_S, self._end)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _end(self) -> None:
        self._clock = None
        if self._awaits_head() and not self.transport.is_closing():
            self.transport.close()
