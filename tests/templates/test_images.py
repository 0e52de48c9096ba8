"""Rows with images: ids as the processor makes them, masks around them, and what stops a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, LlavaProcessor, Qwen2VLProcessor

from llmtune.data.image_marks import named_images, split_marks
from llmtune.errors import RowError, TemplateError, UsageError
from llmtune.models.info import register_model
from llmtune.models.loading import get_media_reader, get_model_tokenizer
from llmtune.templates.chat import ChatTemplate
from llmtune.templates.jinja import to_jinja
from llmtune.templates.lookup import get_template
from llmtune.templates.media import MediaToken
from llmtune.templates.parity import first_difference
from llmtune.types import IGNORE_INDEX, Conversation

from ..tiny_vision import images, template_of


@pytest.fixture
def processor(monkeypatch) -> Any:
    """The processor of transformers itself. Qwen's wants a video processor, which wants torchvision: it gets none."""

    def make(folder: Path, tokenizer: Any) -> Any:
        image_processor = AutoImageProcessor.from_pretrained(str(folder))
        if "<image>" in tokenizer.get_vocab():
            return LlavaProcessor(
                image_processor, tokenizer, patch_size=14, vision_feature_select_strategy="default",
                num_additional_image_tokens=1, chat_template=tokenizer.chat_template,
            )  # fmt: skip
        monkeypatch.setattr(Qwen2VLProcessor, "check_argument_for_proper_class", lambda *_: None)
        return Qwen2VLProcessor(image_processor, tokenizer, chat_template=tokenizer.chat_template)

    return make


def question(*parts: str) -> list[dict[str, str]]:
    """Parts of a message of ours and of the processor's: a path that ends in .png or .jpg is an image."""
    return [
        {"type": "image", "image": part} if part.endswith((".png", ".jpg")) else {"type": "text", "text": part}
        for part in parts
    ]


TALKS = [
    [["red.png", "What is it?"]],
    [["What is it?", "red.png"]],
    [["Which of ", "red.png", " and ", "blue.png", " is red?"]],
    [["turned.jpg", "blue.png", "你好"], "A leaf.", ["And this?", "red.png"], "Red.", ["Why?"]],
    [["Just a text."]],
]


# LLaVA's chat template moves images to the start of a question, so its talks begin with them.
CASES = [("qwen2-vl", number) for number in range(len(TALKS))] + [("llava", 0), ("llava", 4)]

# Parity


@pytest.mark.parametrize(("kind", "number"), CASES)
def test_ids_are_the_processor_s(kind, number, eyes, processor, vision_folder, pictures):
    talk = TALKS[number]
    tokenizer = eyes(kind)
    theirs_messages, opened = [], []
    for place, turn in enumerate(talk):
        parts = [str(pictures / part) if part.endswith((".png", ".jpg")) else part for part in turn]
        content = question(*parts) if place % 2 == 0 else [{"type": "text", "text": turn}]
        opened += [Image.open(part["image"]) for part in content if part["type"] == "image"]
        theirs_messages.append({"role": "user" if place % 2 == 0 else "assistant", "content": content})
    upright = [_upright(image) for image in opened]
    made = processor(vision_folder(kind), tokenizer)
    text = made.apply_chat_template(theirs_messages, tokenize=False, add_generation_prompt=True)
    inputs = dict(made(text=[text], images=upright or None, return_tensors="pt"))
    theirs = inputs.pop("input_ids")[0].tolist()
    del inputs["attention_mask"]
    template = template_of(kind, tokenizer)
    ours = template.encode({"messages": theirs_messages}, generation=True)
    assert ours["input_ids"] == theirs
    found = template.media.inputs(images(*ours.get("images", [])), torch.tensor([ours["input_ids"]]))
    if opened:
        assert set(found) == set(inputs)
        for name, value in inputs.items():
            assert torch.equal(found[name], value), name
    assert [Path(path).name for path in ours.get("images", [])] == [Path(image.filename).name for image in opened]
    answered = [*theirs_messages, {"role": "assistant", "content": "Yes."}]
    sample = template.encode({"messages": answered})
    assert sample["input_ids"][: len(theirs)] == list(theirs), "the prompt of inference begins what is trained"


def _upright(image: Any) -> Any:
    from PIL import ImageOps

    found = ImageOps.exif_transpose(image)
    return found.convert("RGB")


def test_the_demo_rows_are_the_processor_s(assets, eyes, processor, vision_folder):
    folder = assets / "data"
    tokenizer = eyes()
    made, template = processor(vision_folder("qwen2-vl"), tokenizer), template_of("qwen2-vl", tokenizer)
    for row in json.loads((folder / "mllm_demo.json").read_text(encoding="utf-8")):
        row["images"] = [str(folder / path) for path in row["images"]]
        paths = iter(row["images"])
        messages = []
        for message in row["messages"]:
            texts = [next(paths) if text is None else text for text in split_marks(message["content"])]
            messages.append({"role": message["role"], "content": question(*texts)})
        text = made.apply_chat_template(messages, tokenize=False)
        theirs = made(text=[text], images=[Image.open(path) for path in row["images"]])["input_ids"][0]
        ours = template.encode(row)["input_ids"]
        assert len(theirs) - len(ours) == 1, "the line break behind the last <|im_end|>"
        assert ours == list(theirs)[: len(ours)]


@pytest.mark.parametrize("kind", ["qwen2-vl", "llava"])
def test_the_tokenizer_s_own_template_agrees(kind, eyes, pictures):
    row = Conversation(*_messages("<image>What is it?", "Red."), media=images(pictures / "red.png"))
    template = template_of(kind, eyes(kind))
    assert first_difference(template, [row]) is None
    template.system = "Another."
    other = Conversation(*_messages("What is it?<image>", "Red."), media=images(pictures / "red.png"))
    assert (first_difference(template_of(kind, eyes(kind)), [other]) is None) == (kind == "qwen2-vl")


def _messages(*texts: str) -> Any:
    from llmtune.types import Message

    roles = ("user", "assistant")
    return (tuple(Message(roles[n % 2], text, loss=n % 2 == 1) for n, text in enumerate(texts)),)


@pytest.mark.parametrize("kind", ["qwen2-vl", "qwen3-vl"])
def test_the_jinja_template_writes_images_alike(kind, eyes, pictures):
    """What a checkpoint carries, where its tokenizer brought no template."""
    template = template_of(kind, eyes(kind))
    jinja = to_jinja(template.info, eyes(kind))
    rows = [["red.png", "What is it?"], ["{{ x }}"], ["a", "blue.png", "red.png", "b"]]
    for parts in rows:
        paths = [str(pictures / part) if part.endswith(".png") else part for part in parts]
        messages = [{"role": "user", "content": question(*paths)}]
        own = eyes(kind).apply_chat_template(messages, chat_template=jinja, tokenize=False, add_generation_prompt=True)
        assert own == template.render({"messages": messages}, generation=True)
    plain = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    assert eyes(kind).apply_chat_template(plain, chat_template=jinja, tokenize=False) == template.render(
        {"messages": plain}
    )


# Masks


ROW = {
    "messages": [
        {"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "And <image>, and <image>?"}, {"role": "assistant", "content": "<image> dogs."},
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "llava"])
@pytest.mark.parametrize("loss_on", ["auto", "last", "everything"])
def test_image_tokens_never_contribute_to_the_loss(kind, loss_on, eyes, pictures):
    tokenizer = eyes(kind)
    template = template_of(kind, tokenizer, loss_on=loss_on)
    paths = [str(pictures / name) for name in ("red.png", "blue.png", "turned.jpg")]
    text, token_id = template.media.tokens["image"]
    sizes = template.media.measure(images(*paths))
    samples = template.encode_all(ROW | {"images": paths})
    for sample in samples:
        labels = sample["labels"]
        for token, label in zip(sample["input_ids"], labels, strict=True):
            assert label in (IGNORE_INDEX, token)
            assert label != token_id
        assert sample["input_ids"].count(token_id) == sum(sizes[one] for one in images(*sample["images"]))
        assert sample["images"] == paths[: len(sample["images"])]
    split = kind == "llava" and loss_on == "auto"  # it ends an answer at the end of a talk alone
    assert [len(sample["images"]) for sample in samples] == ([1, 3] if split else [3])
    trainable = "".join(
        tokenizer.decode([label for label in sample["labels"] if label != IGNORE_INDEX]) for sample in samples
    )
    end = "</s>" if kind == "llava" else "<|im_end|>"
    first, last = ("", " ") if kind == "llava" else ("", "")
    answers = [f"{last}A cat.{end}", f"{last}<image> dogs.{end}"]
    if loss_on == "everything":
        assert "Who?" in trainable
        assert text not in trainable.replace("<image> dogs.", "")
    else:
        assert trainable == first + "".join(answers[-1:] if loss_on == "last" else answers)


def test_a_mark_in_an_answer_is_text(eyes, pictures):
    tokenizer = eyes("llava")
    template = template_of("llava", tokenizer)
    row = {"query": "<image>Write the tag.", "response": "<image>", "images": [str(pictures / "red.png")]}
    sample = template.encode(row)
    assert sample["input_ids"].count(template.media.tokens["image"].id) == 16, "those of the image, none for the text"


def test_the_spelling_of_the_image_token_is_text(eyes, pictures):
    row = {"query": "<image>What is <|image_pad|>?", "response": "A token.", "images": [str(pictures / "red.png")]}
    template = template_of("qwen2-vl", eyes())
    (expected,) = template.media.measure(images(*row["images"])).values()
    assert template.encode(row)["input_ids"].count(template.media.tokens["image"].id) == expected
    with pytest.raises(TemplateError, match="the image token"):
        template_of("qwen2-vl", eyes(), special_tokens_in_text="special").encode(row)


# Marks


@pytest.mark.parametrize(
    ("questions", "given", "expected"),
    [
        ([], ["a"], ["a"]),
        (["<image>x<image>"], ["a", "b"], ["a", "b"]),
        (["x<img>a</img>"], [], ["a"]),
        (["x<img> a </img>"], ["a"], ["a"]),
        (["<img>a</img><image>", "<img>b</img>"], ["c"], ["a", "c", "b"]),
        (["<image><img>a</img>"], ["c", "a"], ["c", "a"]),
        (["<img></img>"], ["a"], ["a"]),
    ],
)
def test_the_images_of_a_row(questions, given, expected):
    assert named_images(questions, given) == images(*expected)


def test_images_that_fill_no_marks():
    with pytest.raises(RowError, match="2 image marks, and its images column has 3"):
        named_images(["<image><img>a</img>"], ["a", "b", "c"])


def test_unnamed_images_come_first(eyes, pictures):
    template = template_of("qwen2-vl", eyes())
    paths = [str(pictures / "red.png"), str(pictures / "blue.png")]
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    messages += [{"role": "user", "content": "c<image>"}, {"role": "assistant", "content": "d"}]
    text = template.render({"messages": messages, "images": paths})
    mark = template.info.image
    assert text.count(mark) == 2
    assert f"user\n{mark}a" in text
    assert f"c{mark}" in text


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"query": "<image><image>", "response": "b", "images": ["red.png"]}, "2 image marks .* has 1 images"),
        ({"query": "<image>", "response": "b"}, "1 image marks .* has 0 images"),
        ({"text": "plain", "images": ["red.png"]}, "1 images and no user message"),
        ({"query": "<image>", "response": "b", "images": ["none.png"]}, r"none\.png: there is no such file"),
    ],
)
def test_rows_that_cannot_be_shown(row, said, eyes, pictures):
    row = {**row, "images": [str(pictures / path) for path in row.get("images", [])]}
    with pytest.raises((TemplateError, RowError), match=said):
        template_of("qwen2-vl", eyes()).encode(row)


def test_llava_s_line_break_is_not_doubled(eyes, pictures):
    template = template_of("llava", eyes("llava"))
    row = {"response": "b", "images": [str(pictures / "red.png")]}
    expected = "<s>USER: <image>\nWhat? ASSISTANT: b</s>"
    assert template.render(row | {"query": "<image>\nWhat?"}) == expected
    assert template.render(row | {"query": "<image>What?"}) == expected


def test_a_text_model_trains_on_the_text(pictures):
    _, tokenizer = get_model_tokenizer("llmtune-tiny", load_model=False)
    template = get_template("chatml", tokenizer)
    row = {"query": "<image>What is it?", "response": "b", "images": [str(pictures / "none.png")]}
    assert template.render(row).count("<image>What is it?") == 1
    assert "images" not in template.encode(row)


# Length


def length_of(template: ChatTemplate, row: dict[str, Any]) -> int:
    return len(template.encode(row)["input_ids"])


def test_no_cut_goes_through_an_image(eyes, pictures):
    row = {"query": "Look at this. <image>What is it?", "response": "red " * 40, "images": [str(pictures / "red.png")]}
    tokenizer = eyes()
    whole = template_of("qwen2-vl", tokenizer)
    length = length_of(whole, row)
    conversations = [whole_row(row)]
    for strategy, cut, kept in (("right", 20, True), ("left", 5, True), ("left", length - 25, False)):
        template = template_of("qwen2-vl", tokenizer, max_length=length - cut, truncation_strategy=strategy)
        (found,) = template.encode_rows(conversations)
        assert (len(found.samples), found.num_truncated, found.num_cut_images) == ((1, 1, 0) if kept else (0, 0, 1))
        if kept:
            (sample,) = found.samples
            assert sample.media == images(*row["images"])
            (size,) = template.media.measure(sample.media).values()
            assert sample.input_ids.count(template.media.tokens["image"].id) == size
    short = template_of("qwen2-vl", tokenizer, max_length=12)
    with pytest.raises(TemplateError, match=r"images included; --max_length is 12"):
        short.encode_prompts([whole_row(row)])


def whole_row(row: dict[str, Any]) -> Conversation:
    from llmtune.data.formats import to_conversation

    return to_conversation(row)


# A reader of one's own


class Stamps:
    """Every image takes two positions."""

    tokens: ClassVar = {"image": MediaToken("<|image_pad|>", 5)}

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.tokens["image"] = MediaToken("<|image_pad|>", tokenizer.convert_tokens_to_ids("<|image_pad|>"))

    def measure(self, media: Any) -> dict[Any, int]:
        return dict.fromkeys(media, 2)

    def limit_pixels(self, max_pixels: int) -> None:
        raise UsageError(f"--max_pixels {max_pixels}: stamps have one size")


def test_a_registered_model_brings_its_own_reader(eyes, vision_folder):
    folder = str(vision_folder("qwen2-vl"))
    register_model("stamps", model_id_or_path=folder, template="qwen2-vl", images="native", get_media_reader=Stamps)
    reader = get_media_reader("stamps", eyes())
    template = get_template("qwen2-vl", eyes(), media=reader)
    row = {"query": "<image>What is <image>?", "response": "b", "images": ["no", "file"]}
    assert template.encode(row)["input_ids"].count(reader.tokens["image"].id) == 4
    with pytest.raises(UsageError, match="one size"):
        get_media_reader("stamps", eyes(), max_pixels=9)


def test_without_a_reader_images_are_ignored_and_said(eyes, pictures, capsys):
    row = {"query": "<image>What is it?", "response": "Red.", "images": [str(pictures / "red.png")]}
    sample = get_template("qwen2-vl", eyes()).encode(row)
    assert "images" not in sample
    assert "Pass get_template(..., media=get_media_reader(model_type, tokenizer))" in capsys.readouterr().err
