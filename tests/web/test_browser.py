"""The page in a real browser: open, ask, read the streamed answer, move a slider, stop, retry, clear, compare."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ..waiting import SECONDS

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
PATIENCE = 1000 * SECONDS
"""Milliseconds, as the browser counts."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed, and make could not install chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=list(OPTIONS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def page(browser: Any, start_page: Any, tuned: Path) -> Any:
    address = start_page("--ckpt_dir", str(tuned), "--max_new_tokens", "64")
    opened = visit(browser, address)
    opened.get_by_placeholder("Ask something").wait_for()
    return opened


@pytest.fixture(scope="module")
def expected(tuned: Path) -> Callable[..., str]:
    """(max_new_tokens, adapter) -> the letters that the checkpoint, or its base, answers to `q3`."""
    from llmtune import InferArguments
    from llmtune.inference.load import load_engine
    from llmtune.inference.sampling import Sampling
    from llmtune.types import Conversation, Message

    engine = load_engine(InferArguments(ckpt_dir=str(tuned), eval_human=True))
    row = Conversation((Message("user", "q3"),))

    def answer(max_new_tokens: int, adapter: str | None = None) -> str:
        return plain("".join(engine.stream(row, Sampling(max_new_tokens=max_new_tokens), adapter=adapter)))

    return answer


WATCH = """() => {
    window.seen = [];
    new MutationObserver(() => {
        for (const one of document.querySelectorAll('[data-testid=stChatMessage] [data-testid=stMarkdown]'))
            if (one.innerText.includes('▌')) window.seen.push(one.innerText);
    }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""
"""Keep every text of an answer that has not ended."""


def plain(text: str) -> str:
    """Letters and digits alone: Markdown has its own ideas of the rest."""
    return "".join(re.findall(r"[^\W_]", text))


def visit(browser: Any, address: str, *, width: int = 1280, height: int = 900) -> Any:
    """Return a page of a new profile, without the cookies of the others."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    return page


def until(page: Any, holds: Callable[[], bool]) -> None:
    for _ in range(PATIENCE // 100):
        if holds():
            return
        page.wait_for_timeout(100)
    raise AssertionError(page.locator("[data-testid=stApp]").inner_text())


def answers(page: Any) -> list[str]:
    """The answers that the page shows, without the name of the picture beside each."""
    shown = page.locator("[data-testid=stChatMessage]", has_text="smart_toy").all_inner_texts()
    return [plain(text.replace("smart_toy", "")) for text in shown]


def ask(page: Any, question: str) -> None:
    box = page.get_by_placeholder("Ask something")
    box.fill(question)
    box.press("Enter")


def move(page: Any, slider: Any, *keys: str) -> None:
    """Streamlit sends a value 200 ms after the last key, and one that comes later starts a response anew. The page's
    timers run in order: behind a longer one, the value is on its way before anything else."""
    for key in keys:
        slider.press(key)
    page.evaluate("() => new Promise(done => setTimeout(done, 400))")


def send(page: Any, question: str, *files: Path) -> None:
    """As `ask`, with pictures. The button waits for what is being uploaded, but not for what has not begun to be."""
    page.locator("[data-testid=stChatInput] input[type=file]").set_input_files([str(file) for file in files])
    until(page, lambda: page.get_by_test_id("stFileChip").count() == len(files))
    page.get_by_placeholder("Ask something").fill(question)
    page.get_by_test_id("stChatInputSubmitButton").click()


def images(page: Any) -> Any:
    return page.locator("[data-testid=stChatMessage] img")


def test_a_question_gets_its_response_until_clear(page, expected):
    page.get_by_role("button", name="Clear").click()
    until(page, lambda: answers(page) == [])
    ask(page, "q3")
    until(page, lambda: answers(page) == [expected(64)])
    page.get_by_role("button", name="Clear").click()
    until(page, lambda: answers(page) == [])


def test_a_slider_and_retry(page, expected):
    page.get_by_role("button", name="Clear").click()
    slider = page.get_by_role("slider", name="Max new tokens")
    move(page, slider, "Home", "ArrowRight")
    until(page, lambda: slider.input_value() == "2")
    ask(page, "q3")
    until(page, lambda: answers(page) == [expected(2)])
    move(page, slider, "ArrowRight")
    page.get_by_role("button", name="Retry").click()
    until(page, lambda: answers(page) == [expected(3)])


def test_stop_keeps_the_text_so_far(page):
    page.evaluate(WATCH)
    slider = page.get_by_role("slider", name="Max new tokens")
    move(page, slider, "End")  # more than would ever end by itself in time
    page.get_by_role("button", name="Clear").click()
    until(page, lambda: answers(page) == [])
    ask(page, "q3")
    button = page.get_by_role("button", name="Stop")
    place = button.bounding_box()
    page.get_by_text("▌").wait_for()
    assert button.bounding_box() == place  # a button that moves cannot be hit
    button.click()
    page.get_by_text("[stopped]").wait_for()
    (stopped,) = answers(page)
    page.wait_for_timeout(1000)
    assert answers(page) == [stopped]
    seen = [plain(text) for text in page.evaluate("() => window.seen")]
    assert seen, "it was not shown while it was written"
    assert seen[0].startswith("very")
    assert stopped.startswith(seen[-1])
    # the slider's value may arrive in mid-response on a slow machine, which starts it anew: the same text once more
    assert [pair for pair in pairwise(sorted(seen, key=len)) if not pair[1].startswith(pair[0])] == []


def test_two_models_respond_side_by_side(page, expected):
    move(page, page.get_by_role("slider", name="Max new tokens"), "Home")
    page.get_by_role("button", name="Clear").click()
    until(page, lambda: answers(page) == [])
    page.get_by_role("combobox").nth(1).click()
    page.get_by_role("option", name="base").click()
    ask(page, "q3")
    first, base = expected(1), expected(1, "base")
    assert first != base
    until(page, lambda: answers(page) == ["llmtunetiny" + first, "base" + base])


def test_a_reload_keeps_the_conversation(page, browser):
    if not answers(page):  # alone, or on a worker that stole it
        ask(page, "q3")
    until(page, lambda: answers(page) != [] and page.get_by_text("▌").count() == 0)
    before = answers(page)
    page.reload()
    page.get_by_placeholder("Ask something").wait_for()
    until(page, lambda: len(answers(page)) == 1)  # one model again: settings are as at the start
    assert before[0].endswith(answers(page)[0])
    stranger = visit(browser, page.url.split("?")[0])
    stranger.get_by_placeholder("Ask something").wait_for()
    stranger.wait_for_timeout(1000)
    assert answers(stranger) == []
    stranger.close()


def test_a_question_is_shown_as_it_was_typed(page):
    typed = "$x^2$ *is* <b>bold</b> [link](http://x.y)"
    ask(page, typed)
    page.locator("[data-testid=stChatMessage]").get_by_text(typed, exact=True).wait_for()


@pytest.mark.parametrize(("width", "height"), [(1366, 768), (390, 844)])
def test_a_laptop_and_a_phone_show_the_input_box_at_first(page, browser, width, height):
    opened = visit(browser, page.url.split("?")[0], width=width, height=height)
    box = opened.get_by_placeholder("Ask something")
    box.wait_for()
    opened.get_by_text("Greedy: always the most likely token.").wait_for()
    until(opened, lambda: (place := box.bounding_box()) and place["y"] + place["height"] < height)
    stop, form = (opened.locator(found).bounding_box() for found in (".st-key-stop", "[data-testid=stChatInput]"))
    assert stop["y"] + stop["height"] <= form["y"], "the box covers the buttons"
    assert opened.evaluate("() => document.documentElement.scrollWidth") <= width
    opened.close()


def test_a_key_is_asked_for_once_in_a_browser(browser, start_page, tuned):
    address = start_page("--ckpt_dir", str(tuned), "--lang", "zh", LLMTUNE_API_KEY="open-sesame")
    page = visit(browser, address)
    box = page.get_by_label("访问密钥")
    box.wait_for()
    box.fill("wrong")
    box.press("Enter")
    page.get_by_text("密钥不对。").wait_for()
    assert page.get_by_placeholder("请输入问题").count() == 0
    assert "chat=" not in page.url
    box.fill("open-sesame")
    box.press("Enter")
    page.get_by_placeholder("请输入问题").wait_for()
    until(page, lambda: "chat=" in page.url)
    page.reload()
    page.get_by_placeholder("请输入问题").wait_for()
    for opened, place in ((visit(browser, page.url), "a link"), (page, "another id")):
        if opened is page:
            opened.goto(page.url[:-3] + "abc")
        opened.get_by_label("访问密钥").wait_for()
        assert opened.get_by_placeholder("请输入问题").count() == 0, place


def test_an_image_is_decoded_once(browser, start_page, vision_folder, pictures, tmp_path):
    """What was uploaded reaches the model, belongs to its question alone, and a broken file is told."""
    from llmtune import InferArguments
    from llmtune.inference.load import load_engine
    from llmtune.inference.sampling import Sampling
    from llmtune.types import Conversation, Media, Message

    flags = {"model_type": "qwen2-vl-2b-instruct", "model_id_or_path": str(vision_folder("qwen2-vl"))}
    engine = load_engine(InferArguments(**flags, eval_human=True))

    def written(*turns: Message, names: tuple[str, ...] = ()) -> str:
        row = Conversation(turns, media=tuple(Media(str(pictures / f"{name}.png")) for name in names))
        return "".join(engine.stream(row, Sampling(max_new_tokens=12)))

    asked = Message("user", "<image>What is it?")
    red, blue = written(asked, names=("red",)), written(asked, names=("blue",))
    assert len({plain(red), plain(blue), plain(written(Message("user", "What is it?")))}) == 3, "they tell nothing"
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    page = visit(browser, start_page(*words, "--temperature", "0", "--max_new_tokens", "12"))
    page.get_by_placeholder("Ask something").wait_for()
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    box = page.get_by_placeholder("Ask something")
    send(page, "What is it?", pictures / "red.png", broken)
    page.get_by_text("broken.png is not a readable image").wait_for()
    until(page, lambda: box.input_value() == "What is it?")
    assert answers(page) == []
    send(page, "What is it?", pictures / "red.png")
    until(page, lambda: answers(page) == [plain(red)])
    until(page, lambda: images(page).count() == 1)
    again = written(asked, Message("assistant", red), Message("user", "Sure?"), names=("red",))
    ask(page, "Sure?")
    until(page, lambda: answers(page) == [plain(red), plain(again)])
    until(page, lambda: images(page).count() == 1)
    page.get_by_role("button", name="Clear").click()
    until(page, lambda: answers(page) == [])
    send(page, "<image><image>What is it?", pictures / "red.png")
    page.get_by_text("2 image marks").wait_for()
