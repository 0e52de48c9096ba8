"""Load a vision model, with its image processor attached to its tokenizer."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from llmtune.errors import MissingPackageError, ModelError, one_line
from llmtune.models.loading import load_causal_lm
from llmtune.templates.images import ImageReader, carry_images
from llmtune.utils.files import read_json, write_json
from llmtune.utils.system import need

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def load_image_text(model_dir: str, *, load_tokenizer: bool = True, **options: Any) -> tuple[Any, Any]:
    """The get_function of vision models that transformers supports; same arguments as `load_causal_lm`.

    Images are read as the model's own folder says, even where the tokenizer comes from another one: a checkpoint's.
    The processors of transformers, which join tokenizer and image processor, are not used: those of the Qwen family
    cannot be made without torchvision, for the sake of videos.
    """
    from transformers import AutoModelForImageTextToText

    model, tokenizer = load_causal_lm(
        model_dir, load_tokenizer=load_tokenizer, model_class=AutoModelForImageTextToText, **options
    )
    if load_tokenizer:
        folder = Path(model_dir)
        carry_images(tokenizer, image_reader(folder, tokenizer))
        if not tokenizer.chat_template:  # older repositories keep it beside the processor
            tokenizer.chat_template = read_json(folder / "chat_template.json").get("chat_template")
    return model, tokenizer


def image_reader(folder: Path, tokenizer: Any) -> ImageReader:
    """Return the image processor of a model folder.

    Raises:
        ModelError: It has none. MissingPackageError: Pillow is not installed.
    """
    need("PIL", "An image", extra="vision", name="Pillow")
    from transformers import AutoImageProcessor

    config = read_json(folder / "config.json")
    token_id = config.get("image_token_id", config.get("image_token_index"))
    if token_id is None:
        raise ModelError(f"{folder}/config.json names no token for images (image_token_id).")
    try:
        processor = AutoImageProcessor.from_pretrained(str(folder))
    except ImportError as err:  # older transformers ask for it even where Pillow would do
        raise MissingPackageError("Images need torchvision here. Install it with: pip install torchvision") from err
    except (OSError, ValueError, KeyError) as err:
        text = one_line(err)
        raise ModelError(f"The image processor of {folder} cannot be loaded: {text}") from err
    return ImageReader(
        processor,
        token_id=token_id,
        token=tokenizer.convert_ids_to_tokens(token_id),
        num_tokens=partial(_num_tokens, processor, read_json(folder / "processor_config.json"), config),
        save=partial(_save_processor, folder, processor),
    )


def _num_tokens(processor: Any, settings: dict[str, Any], config: dict[str, Any], height: int, width: int) -> int:
    """Number of positions of an image, from its size only."""
    merge_size = getattr(processor, "merge_size", None)
    if merge_size is not None:  # Qwen2-VL and after: squares of patches of the image in its own shape
        return int(processor.get_number_of_image_patches(height, width, {}) // merge_size**2)
    # LLaVA: all images are cut to one size; "default" drops the position that stands for the whole image.
    crop, vision = processor.crop_size, config.get("vision_config", {})
    patch_size = settings.get("patch_size") or vision["patch_size"]
    strategy = settings.get("vision_feature_select_strategy") or config.get("vision_feature_select_strategy", "default")
    count = (crop["height"] // patch_size) * (crop["width"] // patch_size)
    return int(count + settings.get("num_additional_image_tokens", 1) - (strategy == "default"))


def _save_processor(source: Path, processor: Any, target: Path, changed: bool) -> None:
    """Copy the image processor settings of a folder, with `changed` values replaced.

    They are in preprocessor_config.json, in newer repositories in processor_config.json.
    """
    for name in PROCESSOR_FILES:
        if (source / name).is_file() and source.resolve() != target.resolve():
            shutil.copyfile(source / name, target / name)
    if not changed:
        return
    processor.save_pretrained(str(target))
    whole = read_json(target / "processor_config.json")
    if "image_processor" in whole:
        own = read_json(target / "preprocessor_config.json")
        write_json(target / "processor_config.json", whole | {"image_processor": own})
