"""Freed memory of this process goes back to the system, as far as the C library lets it."""

from __future__ import annotations

import contextlib
import ctypes
import os

LARGE_BYTES = 4 << 20
"""Blocks from here on are mapped by themselves. See benchmarks/memory.py."""
M_MMAP_THRESHOLD = -3
"""Of mallopt, in glibc's malloc.h."""


def map_large_blocks() -> None:
    """Let large blocks, such as activations on a CPU, leave no holes behind, unless the user has set it otherwise.

    glibc maps the first large block by itself and, once it is freed, puts all others of its size onto the heap, where
    what lies between them keeps their memory: 1.3 to 1.5 times what a run of a small model needs. A mapped block is
    zeroed by the system page by page, so torch is asked for huge pages, which it reads at its first allocation.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        with contextlib.suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def give_back_memory() -> None:
    """Return freed memory to the system where the C library can: glibc keeps what lies below a block still in use."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
