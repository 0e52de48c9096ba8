"""Picture of the web page for docs/images: python docs/screenshots.py CHECKPOINT

CHECKPOINT is one that `make demo` has trained. It needs playwright and a Chromium.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from llmtune.utils.system import free_port

IMAGES = Path(__file__).parent / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
CONVERSATION = (("Who are you?", "Tuny"), ("What is the capital of France?", "Paris"))
PATIENCE = 120_000
"""Milliseconds: the first visit loads torch and the model."""


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"There is none of {', '.join(BROWSERS)} on this machine.")
    port = free_port("127.0.0.1", 0)
    command = [sys.executable, "-m", "llmtune", "web", "--ckpt_dir", sys.argv[1], "--port", str(port)]
    page_process = subprocess.Popen(command, env=os.environ | {"LLMTUNE_OFFLINE": "1"})
    try:
        address = f"http://127.0.0.1:{port}"
        wait(f"{address}/_stcore/health")
        with sync_playwright() as driver:
            started = driver.chromium.launch(executable_path=browser, args=OPTIONS)
            take(started.new_page(viewport={"width": 1366, "height": 768}), address)
            started.close()
    finally:
        page_process.terminate()
        page_process.wait(20)


def wait(address: str) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("The page did not start within two minutes.")


def take(page: Any, address: str) -> None:
    page.goto(address)
    box = page.get_by_placeholder("Ask something")
    box.wait_for(timeout=PATIENCE)
    for question, answer in CONVERSATION:
        box.fill(question)
        box.press("Enter")
        page.get_by_text(answer).first.wait_for(timeout=PATIENCE)
    page.get_by_role("button", name="Retry").wait_for(timeout=PATIENCE)
    page.wait_for_timeout(3000)
    page.screenshot(path=str(IMAGES / "web-chat.png"))


if __name__ == "__main__":
    main()
