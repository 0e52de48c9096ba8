"""Models that see: their entries, their eyes, their parts, and that they compute what transformers computes."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from llmtune.arguments.infer import InferArguments
from llmtune.arguments.stage import SftArguments
from llmtune.errors import MissingPackageError, ModelError
from llmtune.inference.infer import infer
from llmtune.models.identify import identify
from llmtune.models.info import MODEL_MAPPING
from llmtune.models.loading import get_media_reader, get_model_tokenizer
from llmtune.models.supervised_loss import install_supervised_loss
from llmtune.models.vision import ImageReader, image_reader, open_image
from llmtune.samples.collate import PaddingCollator
from llmtune.samples.prepare import prepare
from llmtune.templates.info import TEMPLATE_MAPPING
from llmtune.templates.lookup import get_template
from llmtune.templates.media import MediaError, MediaToken
from llmtune.tuners.targets import freeze_parts, part_of, target_modules

from ..tiny_vision import KEYS, KINDS, images, reader_of, template_of

SEEING = [key for key, info in MODEL_MAPPING.items() if info.images == "native"]


def load(kind: str, folder: Path, **options: Any) -> tuple[Any, Any]:
    return get_model_tokenizer(KEYS[kind], model_id_or_path=str(folder), torch_dtype="fp32", **options)


# Entries


def test_every_vision_entry_names_template_and_architecture():
    assert len(SEEING) == 15
    assert set(KEYS.values()) <= set(SEEING)
    for key in SEEING:
        info = MODEL_MAPPING[key]
        assert TEMPLATE_MAPPING[info.template].image
        assert info.architecture.endswith("ForConditionalGeneration")
    assert MODEL_MAPPING.canonical("qwen2_5-vl-7b-instruct") == "qwen2.5-vl-7b-instruct"
    seeing = [key for key, info in TEMPLATE_MAPPING.items() if info.image]
    assert sorted(seeing) == ["llava", "qwen2-vl", "qwen2.5-vl", "qwen3-vl"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_vision_model_has_a_reader_of_images(kind, vision_folder):
    model, tokenizer = load(kind, vision_folder(kind))
    assert type(model).__name__ == MODEL_MAPPING[KEYS[kind]].architecture
    reader = reader_of(kind, tokenizer)
    assert reader.tokens["image"].id == model.config.image_token_id
    assert reader.tokens["image"].text in TEMPLATE_MAPPING[MODEL_MAPPING[KEYS[kind]].template].image
    assert get_template(MODEL_MAPPING[KEYS[kind]].template, tokenizer, media=reader).media is reader
    without_place = get_template("chatml", tokenizer, media=reader)
    assert without_place.media is None, "a template without a place for images shows none"
    _, blind = get_model_tokenizer("llmtune-tiny", load_model=False)
    assert get_media_reader("llmtune-tiny", blind) is None


@pytest.mark.parametrize("kind", ["qwen2-vl", "llava"])
def test_a_folder_is_recognised_by_its_files(kind, vision_folder, tmp_path):
    folder = tmp_path / "some-name"
    shutil.copytree(vision_folder(kind), folder)
    found = identify(str(folder))
    info = MODEL_MAPPING[found.model_type]
    assert info.images == "native"
    assert info.architecture == MODEL_MAPPING[KEYS[kind]].architecture
    assert (found.template or info.template) == kind


def test_a_checkpoint_without_a_processor_takes_the_model_s(vision_folder, tmp_path):
    """A LoRA checkpoint of an older version: a tokenizer and no preprocessor_config.json."""
    folder = vision_folder("qwen2-vl")
    for file in folder.glob("*token*"):
        shutil.copy(file, tmp_path)
    _, tokenizer = get_model_tokenizer(
        KEYS["qwen2-vl"], model_id_or_path=str(folder), tokenizer_id_or_path=str(tmp_path), load_model=False
    )
    assert tokenizer.name_or_path == str(tmp_path)
    assert reader_of("qwen2-vl", tokenizer, folder) is not None


def test_a_chat_template_beside_the_processor_is_found(vision_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(vision_folder("llava"), folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text('{"chat_template": "{{ messages }}"}')
    _, tokenizer = get_model_tokenizer(KEYS["llava"], model_id_or_path=str(folder), load_model=False)
    assert tokenizer.chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("preprocessor_config.json", None, "The image processor of .* cannot be loaded"),
        ("config.json", '{"model_type": "qwen2_vl"}', "names no token for images"),
    ],
)
def test_a_folder_without_image_processor_is_refused(name, text, said, vision_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(vision_folder("qwen2-vl"), folder)
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    with pytest.raises(ModelError, match=said):
        reader_of("qwen2-vl", load("qwen2-vl", folder, load_model=False)[1])


def test_missing_pillow_is_named_with_its_pip_line(monkeypatch, vision_folder):
    folder = vision_folder("qwen2-vl")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'llmtune\[vision\]'"):
        reader_of("qwen2-vl", load("qwen2-vl", folder, load_model=False)[1])


@pytest.mark.parametrize("key", ["qwen-vl", "qwen-vl-chat", "qwen-vl-chat-int4"])
def test_a_first_generation_model_says_what_it_needs(key, tmp_path, monkeypatch):
    """With images; a text is encoded as for any model, here with the embedded tokenizer in the place of its own."""
    with_image, text = tmp_path / "image.jsonl", tmp_path / "text.jsonl"
    with_image.write_text('{"query": "<img>a.jpg</img>What is it?", "response": "A tree."}\n')
    text.write_text('{"query": "What is a tree?", "response": "A plant."}\n')
    with pytest.raises(ModelError, match=r"--trust_remote_code true .* qwen2\.5-vl-7b-instruct"):
        prepare(SftArguments(model_type=key, dataset=[str(with_image)]))
    with pytest.raises(ModelError, match=r"--trust_remote_code true .* qwen2\.5-vl-7b-instruct"):
        infer(InferArguments(model_type=key, val_dataset=[str(with_image)], result_dir=str(tmp_path)))
    _, tiny = get_model_tokenizer("llmtune-tiny", load_model=False)
    monkeypatch.setattr(SftArguments, "load_tokenizer", lambda *_: tiny)
    assert prepare(SftArguments(model_type=key, dataset=[str(text)])).train_tokens.report.num_samples == 1


# Images


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_has_the_tokens_that_the_processor_gives_it(kind, vision_folder, pictures, tmp_path):
    folder = vision_folder(kind)
    reader = reader_of(kind, load(kind, folder)[1])
    processor = AutoImageProcessor.from_pretrained(str(folder))
    paths = [str(pictures / name) for name in ("red.png", "blue.png", "turned.jpg")]
    for number, size in enumerate([(10, 10), (28, 28), (500, 20), (33, 471), (640, 480)]):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("L", size).save(paths[-1])
    for image, count in reader.measure(images(*paths)).items():
        made = processor(images=[open_image(image.path)], return_tensors="pt")
        grid = made.get("image_grid_thw")
        assert count == (16 if grid is None else int(grid.prod()) // 4), image
    assert len(set(reader.measure(images(*paths)).values())) > (3 if kind != "llava" else 0)


@pytest.mark.parametrize("layout", ["preprocessor", "processor", "2024"])
def test_a_limit_is_saved_whatever_the_layout(layout, vision_folder, tmp_path, pictures):
    folder, saved = tmp_path / "model", tmp_path / "saved"
    shutil.copytree(vision_folder("qwen2-vl"), folder)
    saved.mkdir()
    file = folder / "preprocessor_config.json"
    own = json.loads(file.read_text())
    if layout == "processor":  # transformers 5
        file.unlink()
        whole = {"image_processor": own, "processor_class": "Qwen2VLProcessor"}
        (folder / "processor_config.json").write_text(json.dumps(whole))
    if layout == "2024":  # Qwen's own repositories
        size = own.pop("size")
        pixels = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
        file.write_text(json.dumps(own | pixels))
    reader = reader_of("qwen2-vl", load("qwen2-vl", folder)[1])
    reader.save(saved)
    assert [name.name for name in saved.iterdir()] == [name.name for name in folder.glob("*processor_config.json")]
    reader.limit_pixels(56 * 56)
    reader.save(saved)
    assert dict(AutoImageProcessor.from_pretrained(str(saved)).size)["longest_edge"] == 56 * 56
    shutil.copy(folder / "config.json", saved)
    again = image_reader(saved, load("qwen2-vl", folder)[1])
    turned, unlimited = images(pictures / "turned.jpg"), reader_of("qwen2-vl", load("qwen2-vl", folder)[1])
    assert again.measure(turned) == reader.measure(turned) != unlimited.measure(turned)


def test_a_photograph_is_seen_upright(pictures):
    image = open_image(str(pictures / "turned.jpg"))
    assert (image.size, image.mode) == ((80, 160), "RGB")
    reader = ImageReader(None, token=MediaToken("", 0), num_tokens=lambda height, width: height, save=print)
    assert list(reader.measure(images(pictures / "turned.jpg")).values()) == [160]


def test_what_is_no_image_is_told(vision_folder, tmp_path):
    reader = reader_of("qwen2-vl", load("qwen2-vl", vision_folder("qwen2-vl"))[1])
    Image.effect_noise((300, 200), 80).save(tmp_path / "half.jpg")
    whole = (tmp_path / "half.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    (tmp_path / "text.jpg").write_text("no image")
    Image.new("RGB", (10, 3000)).save(tmp_path / "strip.png")
    (tmp_path / "folder.png").mkdir()
    expected = {
        "half.jpg": "truncated", "text.jpg": "not a readable image", "none.jpg": "no such file",
        "strip.png": "aspect ratio", "folder.png": "cannot be read",
    }  # fmt: skip
    found = reader.measure(images(*(tmp_path / name for name in expected)))
    for name, said in expected.items():
        (problem,) = (found[one] for one in images(tmp_path / name))
        assert isinstance(problem, MediaError)
        assert str(problem).startswith(str(tmp_path / name))
        assert said in str(problem)
    (address,) = reader.measure(images("https://example.org/a.png")).values()
    assert "download" in str(address)
    with pytest.raises(MediaError, match="no such file"):
        reader.inputs(images(tmp_path / "none.jpg"), torch.zeros(1, 1))


# Numbers


def batch_of(kind: str, tokenizer: Any, pictures: Path) -> dict[str, torch.Tensor]:
    """Rows with one image, none, and two."""
    red, blue = str(pictures / "red.png"), str(pictures / "blue.png")
    template = template_of(kind, tokenizer)
    rows = [
        {"query": "<image>What colour is it?", "response": "It is red.", "images": [red]},
        {"query": "What is 1 plus 2?", "response": "3."},
        {"query": "Which of <image> and <image> is red?", "response": "The second.", "images": [blue, red]},
    ]
    return PaddingCollator(tokenizer.pad_token_id, template.media)([template.encode(row) for row in rows])


@pytest.mark.parametrize("kind", KINDS)
def test_the_learned_loss_is_the_model_s_own(kind, vision_folder, pictures, capsys):
    model, tokenizer = load(kind, vision_folder(kind))
    batch = batch_of(kind, tokenizer, pictures)
    model.train()
    own = model(**batch)
    own.loss.backward()
    name, weight = next((n, p) for n, p in model.named_parameters() if part_of(n) == "vit" and p.grad is not None)
    gradient = weight.grad.clone()
    model.zero_grad()
    install_supervised_loss(model)
    assert "in its own way" not in capsys.readouterr().err, "logits are never built whole"
    ours = model(**batch)
    assert ours.loss.item() == pytest.approx(own.loss.item(), rel=1e-5)
    ours.loss.backward()
    assert gradient.abs().max() > 0, name
    torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_loses_nothing_in_a_batch(kind, vision_folder, pictures):
    """Each row alone gives the loss that it has beside rows with other images, or none."""
    model, tokenizer = load(kind, vision_folder(kind))
    install_supervised_loss(model.eval())
    batch = batch_of(kind, tokenizer, pictures)
    grids, counts = batch.get("image_grid_thw"), [1, 0, 2]
    together, total = model(**batch), torch.tensor(0.0)
    first_image = first_patch = 0
    for row, count in enumerate(counts):
        length = int(batch["attention_mask"][row].sum())
        names = ("input_ids", "attention_mask", "labels", "mm_token_type_ids")
        alone = {name: batch[name][row : row + 1, :length] for name in names if name in batch}
        patches = count
        if grids is not None:
            patches = int(grids[first_image : first_image + count].prod(-1).sum())
            alone["image_grid_thw"] = grids[first_image : first_image + count]
        alone["pixel_values"] = batch["pixel_values"][first_patch : first_patch + patches]
        if not count:
            alone = {name: alone[name] for name in names[:3]}
        first_image, first_patch = first_image + count, first_patch + patches
        found = model(**alone)
        total += found.loss * found.num_trainable
    assert (total / together.num_trainable).item() == pytest.approx(together.loss.item(), rel=1e-5)


# Parts


@pytest.mark.parametrize("kind", KINDS)
def test_lora_stays_in_the_language_model(kind, vision_folder):
    model, _ = load(kind, vision_folder(kind))
    info = MODEL_MAPPING[KEYS[kind]]
    default = target_modules(model, [], info)
    assert len(default) == 2 * 3
    assert all(re.search(r"language_model\.layers\.\d\.self_attn\.[qkv]_proj$", name) for name in default)
    everything = target_modules(model, ["ALL"], info)
    assert {part_of(name) for name in everything} == {"language"}
    assert len(everything) == 2 * 7
    assert all(name.endswith("up_proj") for name in target_modules(model, ["up_proj"], info))
    for frozen, parts in (({"vit"}, {"language", "aligner"}), ({"aligner"}, {"language", "vit"})):
        found = target_modules(model, [], info, frozenset(frozen))
        assert {part_of(name) for name in found} == parts
        assert set(default) < set(found)
        modules = dict(model.named_modules())
        assert all(hasattr(modules[name], "in_features") for name in found)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_parts_have_no_trainable_parameters(kind, vision_folder):
    model, _ = load(kind, vision_folder(kind))
    freeze_parts(model, frozenset({"vit"}))
    trained = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"language", "aligner"}
    freeze_parts(model, frozenset({"aligner"}))
    assert {part_of(n) for n, p in model.named_parameters() if p.requires_grad} == {"language"}
    assert not any(p.requires_grad for n, p in model.named_parameters() if part_of(n) != "language")
