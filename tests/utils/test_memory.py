"""Freed memory that goes back to the system."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from llmtune.utils.memory import give_back_memory

on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

HOLES = """
import ctypes, sys
from pathlib import Path
if sys.argv[1] == "mapped":
    from llmtune.utils.memory import map_large_blocks
    map_large_blocks()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def block(size):
    found = libc.malloc(size)
    ctypes.memset(found, 1, size)
    return found

def used():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) >> 10

libc.free(block(8 << 20))  # as the first large tensor that is freed
before = used()
large = []
for _ in range(16):
    large.append(block(8 << 20))
    block(100_000)  # smaller, and kept
for one in large:
    libc.free(one)
print(used() - before)
"""


@on_glibc
@pytest.mark.parametrize(
    ("way", "settings", "holes"),
    [
        ("mapped", {}, False),
        ("plain", {}, True),
        ("mapped", {"MALLOC_MMAP_THRESHOLD_": str(32 << 20)}, True),
    ],
)
def test_large_blocks_leave_no_holes_unless_the_user_says_how(way, settings, holes):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", HOLES, way], env=environment | settings, capture_output=True, text=True, check=True
    )
    assert (int(done.stdout) > 64) == holes, "MiB that stay"


def test_giving_back_is_no_error_anywhere():
    give_back_memory()
