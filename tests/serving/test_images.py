"""Images in requests: data URLs for models that see, and nothing else."""

from __future__ import annotations

import base64
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from llmtune.types import Conversation, Media, Message

from ..waiting import until

ENDLESS = {"2": -100.0, "0": -100.0}


@pytest.fixture(scope="module")
def seeing(serving, vision_folder):
    with serving(model_type="qwen2-vl-2b-instruct", model_id_or_path=str(vision_folder("qwen2-vl"))) as server:
        yield server


def data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def ask(client: openai.OpenAI, *urls: str, text: str = "What is it?") -> openai.types.chat.ChatCompletion:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
    model = client.models.list().data[0].id
    return client.chat.completions.create(model=model, messages=messages, max_tokens=12, logit_bias=ENDLESS)


def test_images_side_by_side(seeing, pictures):
    """The same as the engine gives for the files, and each request keeps its own pictures."""
    client, engine = seeing.client(), seeing.service.engine
    asked = [(), ("red",), ("blue",), ("red", "blue"), ("blue", "red")] * 2
    lengths = {}
    for names in asked:
        paths = tuple(str(pictures / f"{name}.png") for name in names)
        row = Conversation((Message("user", "<image>" * len(paths) + "What is it?"),), media=tuple(map(Media, paths)))
        lengths[names] = len(engine.template.prompts([row])[0].input_ids)
    before = set(Path(tempfile.gettempdir()).glob("llmtune-serve-*"))
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda names: ask(client, *(data_url(pictures / f"{n}.png") for n in names)), asked))
    assert [one.usage.prompt_tokens for one in found] == [lengths[names] for names in asked]
    texts = [one.choices[0].message.content for one in found]
    assert texts[:5] == texts[5:]
    until(lambda: set(Path(tempfile.gettempdir()).glob("llmtune-serve-*")) <= before)  # files go with their requests


def test_nothing_is_fetched_and_no_file_is_read(seeing, pictures):
    client = seeing.client()
    red = data_url(pictures / "red.png")
    for url, text in (
        ("http://127.0.0.1:1/x.png", "fetches no URLs"),
        (str(pictures / "red.png"), "reads no files"),
        (f"file://{pictures / 'red.png'}", "reads no files"),
        ("data:image/png;base64,####", "not base64"),
        ("data:image/png;base64,AAAA", "messages: "),
    ):
        with pytest.raises(openai.BadRequestError, match=text):
            ask(client, url)
    for mark in ("<image>", f"<img>{pictures / 'red.png'}</img>"):  # text that names an image brings none
        with pytest.raises(openai.BadRequestError, match="marks"):
            ask(client, text=f"{mark}What is it?")
        with pytest.raises(openai.BadRequestError, match="marks"):
            ask(client, red, text=f"{mark}What is it?")
