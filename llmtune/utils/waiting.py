"""One event loop for the whole process, in a thread, for the user's asynchronous functions.

Clients of servers keep their connections from call to call, and a notebook has a loop of its own, which asyncio.run
refuses.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Awaitable, Iterable
from typing import Any


def wait(call: Awaitable[Any]) -> Any:
    """Return the result of an awaitable."""
    return asyncio.run_coroutine_threadsafe(_one(call), _loop(os.getpid())).result()


async def gather(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """Return the results of awaitables that run concurrently."""
    return await asyncio.gather(*calls)


async def _one(call: Awaitable[Any]) -> Any:
    return await call


@functools.cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    # By process, as a fork has the loop without its thread.
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="llmtune-functions", daemon=True).start()
    return loop
