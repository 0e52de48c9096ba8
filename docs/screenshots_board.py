"""Pictures of the board for docs/images: python docs/screenshots_board.py ROOT

ROOT is a folder with two finished runs of the embedded model. It needs playwright, a Chromium, and for the Chinese page
a font that has the characters (fonts-noto-cjk).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from llmtune.run.found import find_runs

IMAGES = Path(__file__).parent / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
LAPTOP, PHONE = {"width": 1366, "height": 768}, {"width": 390, "height": 844}
DRAFT = {"model_type": "llmtune-tiny", "dataset": ["my.jsonl"], "sft_type": "full", "learning_rate": "2e-3"}
ROWS = ["What is a run folder?", "A folder with the log, the checkpoints and the state of one training."]


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"There is none of {', '.join(BROWSERS)} on this machine.")
    root = Path(sys.argv[1]).resolve()
    row = json.dumps({"query": ROWS[0], "response": ROWS[1]})
    (root / "my.jsonl").write_text("\n".join([row] * 40), encoding="utf-8")
    (root / ".board").mkdir(exist_ok=True)
    (root / ".board/draft.json").write_text(json.dumps({"stage": "sft", "values": DRAFT}))
    command = [sys.executable, "-m", "llmtune", "board", "--root", str(root), "--port", "0"]
    board = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert board.stdout is not None
        entry = board.stdout.readline().split()[1]
        with sync_playwright() as driver:
            started = driver.chromium.launch(executable_path=browser, args=OPTIONS)
            take(started, entry, [str(run.folder.relative_to(root)) for run in find_runs(root)])
            started.close()
    finally:
        board.terminate()
        board.wait(20)


def take(browser: Any, entry: str, runs: list[str]) -> None:
    address = entry.partition("/?")[0]
    both = "&".join(f"f={run}" for run in runs[:2])
    page = visit(browser, entry, LAPTOP)
    shoot(page, address, "/", "board-runs")
    shoot(page, address, f"/run?f={runs[0]}", "board-run")
    shoot(page, address, f"/compare?{both}", "board-compare")
    page.goto(f"{address}/new")
    page.locator(".show-rows").click()
    page.locator(".preview .tokens").first.wait_for(timeout=120_000)
    page.locator(".memory-bar").wait_for(timeout=120_000)
    page.wait_for_timeout(1000)
    page.screenshot(path=IMAGES / "board-new-run.png")
    page.goto(f"{address}/chat?f={runs[0]}/{checkpoint(runs[0], page, address)}")
    page.get_by_role("button", name="Unload").wait_for(timeout=120_000)
    page.locator(".question textarea").fill("Who are you?")
    page.keyboard.press("Enter")
    page.wait_for_timeout(6000)
    page.screenshot(path=IMAGES / "board-chat.png")
    shoot(visit(browser, entry, PHONE), address, f"/run?f={runs[0]}", "board-phone")
    shoot(visit(browser, entry, LAPTOP, "zh-CN"), address, f"/run?f={runs[0]}", "board-zh")


def checkpoint(run: str, page: Any, address: str) -> str:
    page.goto(f"{address}/run?f={run}")
    return str(page.locator(".checkpoints a").first.inner_text())


def visit(browser: Any, entry: str, size: dict[str, int], locale: str = "en-US") -> Any:
    page = browser.new_context(viewport=size, locale=locale).new_page()
    page.goto(entry)
    return page


def shoot(page: Any, address: str, path: str, name: str) -> None:
    page.goto(address + path)
    page.wait_for_timeout(2500)
    page.screenshot(path=IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
