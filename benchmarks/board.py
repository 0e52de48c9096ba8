"""Seconds from a visit of the board's New run page until its fields stand there, and from a change to the command.

    python benchmarks/board.py [--visits 5]

Medians over visits of a headless Chromium on this machine; the limits are those measured for four boards of the same
fields on 29 November 2026: 2.5 s and 0.4 s. It needs playwright and a Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
LIMITS = {"visit until all fields stand there": 2.5, "a changed field until its command": 0.4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visits", type=int, default=5)
    visits = parser.parse_args().visits
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"There is none of {', '.join(BROWSERS)} on this machine.")
    command = [sys.executable, "-m", "llmtune", "board", "--root", tempfile.mkdtemp(), "--port", "0"]
    board = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert board.stdout is not None
        entry = board.stdout.readline().split()[1]
        with sync_playwright() as driver:
            started = driver.chromium.launch(executable_path=browser, args=OPTIONS)
            page = started.new_page(viewport={"width": 1366, "height": 768})
            page.goto(entry)
            found = [measure(page, entry.partition("/?")[0], number) for number in range(visits)]
            started.close()
    finally:
        board.terminate()
        board.wait(20)
    print(f"{'':<40}{'median s':>10}{'limit s':>10}{'ratio':>8}")
    for place, (name, limit) in enumerate(LIMITS.items()):
        median = statistics.median(one[place] for one in found)
        print(f"{name:<40}{median:>10.2f}{limit:>10.2f}{median / limit:>8.2f}")


def measure(page: Any, address: str, number: int) -> tuple[float, float]:
    began = time.perf_counter()
    page.goto(f"{address}/new")
    page.locator(".all-fields").click()
    page.locator(".search-fields").wait_for()
    page.locator(".field-lora_rank input").wait_for()
    ready = time.perf_counter() - began
    began = time.perf_counter()
    page.locator(".field-lora_rank input").fill(str(20 + number))
    page.locator(".command", has_text=f"--lora_rank {20 + number}").wait_for()
    return ready, time.perf_counter() - began


if __name__ == "__main__":
    main()
