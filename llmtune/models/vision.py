"""Vision models: load them, and read the images of their rows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtune.data.image_marks import is_address
from llmtune.errors import MissingPackageError, ModelError, UsageError, one_line
from llmtune.models.loading import load_causal_lm
from llmtune.templates.media import MediaError, MediaToken, Sizes
from llmtune.types import Media, MediaKind
from llmtune.utils.files import read_json, write_json
from llmtune.utils.system import need

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def load_image_text(model_dir: str, *, load_tokenizer: bool = True, **options: Any) -> tuple[Any, Any]:
    """The get_function of vision models that transformers supports; same arguments as `load_causal_lm`.

    The processors of transformers, which join tokenizer and image processor, are not used: those of the Qwen family
    cannot be made without torchvision, for the sake of videos.
    """
    from transformers import AutoModelForImageTextToText

    model, tokenizer = load_causal_lm(
        model_dir, load_tokenizer=load_tokenizer, model_class=AutoModelForImageTextToText, **options
    )
    if load_tokenizer and not tokenizer.chat_template:  # older repositories keep it beside the processor
        tokenizer.chat_template = read_json(Path(model_dir) / "chat_template.json").get("chat_template")
    return model, tokenizer


def image_reader(folder: Path, tokenizer: Any) -> ImageReader:
    """The get_media_reader of these models, for the images of a model folder.

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
        raise MissingPackageError(
            "Images of this model need torchvision. Install it with: pip install 'llmtune[vision]'"
        ) from err
    except (OSError, ValueError, KeyError) as err:
        text = one_line(err)
        raise ModelError(f"The image processor of {folder} cannot be loaded: {text}") from err
    return ImageReader(
        processor,
        token=MediaToken(tokenizer.convert_ids_to_tokens(token_id), token_id),
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


# Reader of images


NUM_THREADS = 8


class ImageReader:
    """Image processor of one model.

    Args:
        processor: The model's image processor in transformers.
        token: The token of one image position.
        num_tokens: (height, width) in pixels -> positions of the image.
        save: Copies the processor's files of the model folder into another one; True: the processor was changed.
    """

    def __init__(
        self,
        processor: Any,
        *,
        token: MediaToken,
        num_tokens: Callable[[int, int], int],
        save: Callable[[Path, bool], None],
    ) -> None:
        self.processor = processor
        self.tokens: dict[MediaKind, MediaToken] = {"image": token}
        self._num_tokens = num_tokens
        self._save = save
        self._is_limited = False

    def limit_pixels(self, max_pixels: int) -> None:
        """Lower the model's own limit.

        Raises:
            UsageError: The model resizes all images to one size, or to more pixels than that.
        """
        size = self.processor.size
        least, most = size.get("shortest_edge"), size.get("longest_edge")
        if getattr(self.processor, "merge_size", None) is None or least is None or most is None:
            raise UsageError("--max_pixels: this model resizes all images to one size. Remove the flag.")
        if max_pixels < least:
            raise UsageError(f"--max_pixels {max_pixels:,}: this model needs {least:,} pixels or more.")
        self.processor.size = type(size)(shortest_edge=least, longest_edge=min(max_pixels, most))
        self._is_limited = True

    def save(self, folder: Path) -> None:
        self._save(folder, self._is_limited)

    def measure(self, media: Iterable[Media]) -> Sizes:
        """Return the tokens of each image, or its error.

        Each is decoded once, at the lowest resolution its format has, to find truncated files now and not in the
        middle of a run; the pixels are not kept.
        """
        unique = list(dict.fromkeys(media))
        if len(unique) < NUM_THREADS:
            return dict(zip(unique, map(self._measured, unique), strict=True))
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            return dict(zip(unique, pool.map(self._measured, unique), strict=True))

    def _measured(self, image: Media) -> int | MediaError:
        try:
            height, width = _checked_size(image.path)
            return self._num_tokens(height, width)
        except MediaError as err:
            return err
        except ValueError as err:  # an aspect ratio that no model has patches for
            return MediaError(f"{image.path}: {err}")

    def inputs(self, media: Sequence[Media], input_ids: Tensor) -> dict[str, Tensor]:
        """Return the model's inputs besides the ids: pixels, and their positions in `input_ids` [B, T].

        Empty without images.

        Raises:
            MediaError: An image has gone since its row was encoded.
        """
        if not media:
            return {}
        found = dict(self.processor(images=[open_image(image.path) for image in media], return_tensors="pt"))
        if "image_grid_thw" in found:  # models with positions in three dimensions receive token types
            found["mm_token_type_ids"] = (input_ids == self.tokens["image"].id).to(input_ids.dtype)
        return found

    def state(self, media: Iterable[Media]) -> Any:
        """Return sizes and times of the files (0 where there is none), and the processor's settings."""
        return [(path, *_stat(path)) for path in sorted({image.path for image in media})], self.processor.to_dict()


def open_image(path: str) -> Image:
    """Return an image, upright, in RGB.

    Raises:
        MediaError: It is missing, or cannot be read.
    """
    from PIL import ImageOps

    with _opened(path) as image:
        try:
            return ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, ValueError, SyntaxError) as err:
            raise _broken(path, err) from err


def _checked_size(path: str) -> tuple[int, int]:
    """Return (height, width) of the upright image, which is decoded to check that it is complete."""
    with _opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) >= 5  # the orientations that lie on their side
        try:
            image.draft("RGB", (1, 1))
            image.load()
        except (OSError, ValueError, SyntaxError) as err:
            raise _broken(path, err) from err
    return (width, height) if turned else (height, width)


FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "AVIF", "JPEG2000")
"""Accepted image formats; others of Pillow start programs (EPS: Ghostscript) or follow paths."""


def _opened(path: str) -> Image:
    need("PIL", "An image", extra="vision", name="Pillow")
    from PIL import Image, UnidentifiedImageError

    if is_address(path):
        raise MediaError(f"{path[:80]}: a URL; download the image and give the file")
    try:
        Image.init()
        return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])
    except FileNotFoundError:
        raise MediaError(f"{path}: there is no such file") from None
    except UnidentifiedImageError as err:
        raise MediaError(f"{path}: not a readable image") from err
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
        raise _broken(path, err) from err


def _broken(path: str, err: Exception) -> MediaError:
    return MediaError(f"{path}: it cannot be read; the file may be truncated ({err})")


def _stat(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return 0, 0
    return found.st_size, found.st_mtime_ns
