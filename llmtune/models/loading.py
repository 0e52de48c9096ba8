"""Load a model and its tokenizer, or a model on the meta device. Here torch and transformers begin, in functions."""

from __future__ import annotations

import copy
import importlib.metadata
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtune.compat.tokenizers import drop_copies
from llmtune.errors import LlmtuneError, MissingPackageError, ModelError, UsageError, one_line
from llmtune.hub.clients import HubOptions
from llmtune.models.dtypes import resolve_dtype
from llmtune.models.folder import model_folder
from llmtune.models.info import MODEL_MAPPING, ModelInfo
from llmtune.models.ports import find_port, read_config
from llmtune.models.quantization import check_prequantized, leave_uncompiled, loads_with, saved_quantization
from llmtune.models.whole_weights import check_loaded
from llmtune.registry import resolve_reference
from llmtune.utils.files import read_json
from llmtune.utils.logging import get_logger, quiet_gptqmodel
from llmtune.utils.memory import give_back_memory

if TYPE_CHECKING:
    import torch

    from llmtune.templates.media import MediaReader


TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab*", "*.tiktoken", "tekken.json", "tokenization_*.py", "*.vocab")
IMAGE_READER = "llmtune.models.vision:image_reader"
OURS = ("trust_remote_code", "allow_pickle", "rope", "model_class", "new_tensors", "unused_tensors")
"""Options of loading that are no arguments of `from_pretrained`; a get_function gets them by name, if it has them."""


def get_model_tokenizer(
    model_type: str | None = None,
    *,
    model_id_or_path: str | None = None,
    torch_dtype: Any = None,
    load_model: bool = True,
    load_tokenizer: bool = True,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Load the model of a key in MODEL_MAPPING; missing files are downloaded.

    Args:
        model_type: The key. None: inferred from `model_id_or_path`, see `llmtune.models.identify`.
        model_id_or_path: Local folder or hub id to load instead of the entry's.
        torch_dtype: A torch dtype or `bf16`, `fp16`, `fp32`. None: see `resolve_dtype`.
        load_model: False returns None in the model's place, without reading or fetching weights.
        load_tokenizer: False returns None in the tokenizer's place.
        kwargs: `tokenizer_id_or_path`, `trust_remote_code`, `allow_pickle`, `use_flash_attn`; `rope`, kind and
            factor of the RoPE scaling (see `llmtune.models.rope`); `device`, where quantised weights are placed;
            of the hub, `use_hf`, `revision`, `hub_token`, `cache_dir`; the rest goes to `from_pretrained`.

    Raises:
        UnknownKeyError, UsageError: The key or the dtype. MissingPackageError: Something the entry requires.
        HubError: The hub does not give the model. ModelError: The folder lacks files, or they cannot be read.
    """
    hub = HubOptions(*(kwargs.pop(name, None) for name in ("use_hf", "revision", "hub_token", "cache_dir")))
    if model_type is None:
        from llmtune.models.identify import identify

        if model_id_or_path is None:
            raise UsageError("Say which model: a key (llmtune list models), or a folder or hub id as model_id_or_path.")
        model_type = identify(model_id_or_path, hub).model_type
    info = MODEL_MAPPING[model_type]
    if load_model:
        check_requirements(model_type, info)
    folder = model_folder(info, model_id_or_path, hub=hub, weights=load_model)
    dtype, _ = resolve_dtype(info, torch_dtype) if load_model else (None, "")
    device = kwargs.pop("device", None)
    if load_model and saved_quantization(folder):
        given = kwargs.get("quantization_config")
        bits = 0 if given is None else 4 if getattr(given, "load_in_4bit", False) else 8
        check_prequantized(folder, sft_type=None, quantization_bit=bits)
        kwargs.setdefault("device_map", {"": str(device or "cpu")})
    function = resolve_reference(info.get_function, what=f"The get_function of the model {model_type!r}")
    tokenizer_folder = kwargs.pop("tokenizer_id_or_path", None)
    use_flash_attn = kwargs.pop("use_flash_attn", None)
    if use_flash_attn is not None:
        kwargs["attn_implementation"] = "flash_attention_2" if use_flash_attn else "sdpa"
    own = {name: kwargs.pop(name) for name in OURS if name in kwargs}
    place = None if tokenizer_folder is None else str(model_folder(info, tokenizer_folder, hub=hub, weights=False))
    own |= {"load_tokenizer": load_tokenizer, "tokenizer_dir": place, "model_info": info}
    model, tokenizer = function(
        str(folder),
        torch_dtype=dtype,
        model_kwargs=kwargs.pop("model_kwargs", {}) | kwargs,
        load_model=load_model,
        **_accepted(function, own, model_type),
    )
    if load_tokenizer:
        _complete_tokenizer(tokenizer, folder)
        drop_copies(tokenizer)
    give_back_memory()  # what files were read into
    return (model if load_model else None), (tokenizer if load_tokenizer else None)


def get_media_reader(
    model_type: str,
    tokenizer: Any,
    *,
    model_id_or_path: str | None = None,
    max_pixels: int | None = None,
    use_hf: bool | None = None,
    revision: str | None = None,
    hub_token: str | None = None,
    cache_dir: str | None = None,
) -> MediaReader | None:
    """Return what reads the images of a vision model, for `get_template(..., media=...)`; None for a text model.

    Images are read as the model's own folder says, even where the tokenizer comes from another one: a checkpoint's.

    Args:
        max_pixels: Limit on the size of images, below the model's own.
        use_hf, revision, hub_token, cache_dir: As for `get_model_tokenizer`.

    Raises:
        ModelError: The folder has no image processor. MissingPackageError: Pillow is not installed.
        UsageError: The model cannot follow `max_pixels`.
    """
    info = MODEL_MAPPING[model_type]
    if info.images != "native":
        if max_pixels is not None:
            get_logger().warning("--max_pixels has no effect: the model takes text only.")
        return None
    function = resolve_reference(
        info.get_media_reader or IMAGE_READER, what=f"The get_media_reader of the model {model_type!r}"
    )
    reader: MediaReader = function(
        model_folder(info, model_id_or_path, hub=HubOptions(use_hf, revision, hub_token, cache_dir), weights=False),
        tokenizer,
    )
    if max_pixels is not None:
        reader.limit_pixels(max_pixels)
    return reader


def _accepted(function: Any, options: dict[str, Any], model_type: str) -> dict[str, Any]:
    """Those of our own options that a get_function has a parameter for; what it loads by is then its own affair.

    Raises:
        ModelError: It would not do what was asked for.
    """
    parameters = inspect.signature(function).parameters
    named = [name for name, one in parameters.items() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    if options.get("rope") is not None and "rope" not in named and not _hands_on(function):
        raise ModelError(
            f"--rope_scaling cannot be followed: {model_type} is loaded by a get_function of its own, which has no "
            "parameter `rope`."
        )
    if options.get("model_class") is not None and "model_class" not in named and not _hands_on(function):
        raise ModelError(
            f"{model_type} cannot be loaded with a score: it has a get_function of its own, which has no parameter "
            "`model_class`."
        )
    takes_all = len(named) < len(parameters)
    return {name: value for name, value in options.items() if takes_all or name in named}


def _hands_on(function: Any) -> bool:
    """Whether it is one of llmtune's, which hand all that they do not name on to `load_causal_lm`."""
    return str(getattr(function, "__module__", "")).startswith("llmtune.")


def load_causal_lm(
    model_dir: str,
    *,
    torch_dtype: torch.dtype | None,
    model_kwargs: dict[str, Any],
    load_model: bool = True,
    load_tokenizer: bool = True,
    tokenizer_dir: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    rope: tuple[str, float] | None = None,
    model_class: Any = None,
    new_tensors: Sequence[str] = (),
    unused_tensors: Sequence[str] = (),
    **_: Any,
) -> tuple[Any, Any]:
    """Load any causal language model that transformers has a class for: the get_function of most entries.

    Args:
        model_kwargs: For `from_pretrained`: device_map, quantization_config, attn_implementation ... The next three are
            taken out of it, too.
        trust_remote_code: Run Python code of the checkpoint.
        allow_pickle: Read `.bin` files where there are no safetensors.
        rope: Kind and factor of the RoPE scaling.
        model_class: What loads the weights instead of AutoModelForCausalLM or a port.
        new_tensors: Beginnings of the names of tensors that no file has to have: a classifier's new head, say.
        unused_tensors: Beginnings of the names of tensors that files may have in vain: the head that it replaces.

    Raises:
        ModelError: A tensor that the model needs is in no file, or one in the files is of no use to it.
    """
    folder = Path(model_dir)
    options = dict(model_kwargs)
    trust_remote_code = bool(options.pop("trust_remote_code", trust_remote_code))
    allow_pickle = bool(options.pop("allow_pickle", allow_pickle))
    rope = options.pop("rope", rope)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json, so it is not a model folder.")
    tokenizer = model = None
    if load_tokenizer:
        from llmtune.models.ports.tokenizers import tokenizer_loader

        place = tokenizer_dir or model_dir
        _check_tokenizer_files(Path(place))
        loader = tokenizer_loader(place, trust_remote_code=trust_remote_code)
        tokenizer = _load(loader, place, trust_remote_code=trust_remote_code)
    if load_model:
        from llmtune.models.ports import causal_lm_loader

        _check_weights(folder, allow_pickle)
        if rope is not None or saved_quantization(folder):
            on_gpu = "cpu" not in str(options.get("device_map", "cpu"))
            options["config"] = _changed_config(folder, rope, on_gpu, trust_remote_code)
        model = _load_whole(
            model_class or causal_lm_loader(folder, trust_remote_code=trust_remote_code),
            model_dir,
            dtype=torch_dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=not allow_pickle,
            new_tensors=new_tensors,
            unused_tensors=unused_tensors,
            **options,
        )
        if model.device.type == "cpu":
            leave_uncompiled(model)
    return model, tokenizer


def _changed_config(folder: Path, rope: tuple[str, float] | None, on_gpu: bool, trust_remote_code: bool) -> Any:
    from llmtune.models.ports import native_config
    from llmtune.models.rope import scale_rope

    config = native_config(folder, trust_remote_code=trust_remote_code)
    if rope is not None:
        scale_rope(config, *rope)
    if saved := getattr(config, "quantization_config", None):
        quiet_gptqmodel()
        config.quantization_config = loads_with(saved, on_gpu=on_gpu)
    return config


def _load(loader: Any, folder: str, **options: Any) -> Any:
    try:
        return loader.from_pretrained(folder, **options)
    except LlmtuneError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError) as err:
        if "trust_remote_code" in str(err):
            raise ModelError(
                f"{folder} needs Python code of its own to load. If you trust it: --trust_remote_code true."
            ) from err
        text = one_line(err, 10_000)
        raise ModelError(f"{folder} cannot be loaded: {text[:400]}") from err
    except Exception as err:  # safetensors' own error type, of a cut-off file, derives from Exception
        raise ModelError(f"{folder} cannot be loaded, a file in it may be cut off: {err}") from err


def _load_whole(
    loader: Any, folder: str, *, new_tensors: Sequence[str], unused_tensors: Sequence[str], **options: Any
) -> Any:
    model, report = _load(loader, folder, output_loading_info=True, **options)
    check_loaded(Path(folder), report, model.config, new=new_tensors, unused=unused_tensors)
    return model


def _check_tokenizer_files(folder: Path) -> None:
    """Refuse a folder without a tokenizer, from which transformers would make an empty one."""
    if "auto_map" in read_json(folder / "tokenizer_config.json"):  # code of its own, of which the loader speaks
        return
    if not any(next(folder.glob(pattern), None) for pattern in TOKENIZER_FILES):
        raise ModelError(
            f"{folder} has no tokenizer (tokenizer.json, tokenizer.model, vocab.json ...). The download may be "
            "incomplete; another folder's is given with --tokenizer_id_or_path."
        )


def _check_weights(folder: Path, allow_pickle: bool) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for path in folder.glob("*.bin") if path.name != "training_args.bin")
    if not pickles:
        raise ModelError(f"{folder} has no weights (*.safetensors). The download may be incomplete.")
    if not allow_pickle:
        raise ModelError(
            f"{folder} has its weights in {pickles[0]}, a pickle file, which can run any code when it is read. "
            "If you trust it: --allow_pickle true."
        )


def check_requirements(model_type: str, info: ModelInfo) -> None:
    """Raise MissingPackageError if a requirement of the entry is not installed."""
    from packaging.requirements import Requirement

    for text in info.requires:
        requirement = Requirement(text)
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            raise MissingPackageError(
                f"The model {model_type!r} needs {text}. Install it with: pip install '{text}'"
            ) from None
        if not requirement.specifier.contains(version, prereleases=True):
            raise MissingPackageError(
                f"The model {model_type!r} needs {text}, and {requirement.name} {version} is installed. "
                f"Install it with: pip install '{text}'"
            )


def _complete_tokenizer(tokenizer: Any, folder: Path) -> None:
    if tokenizer.eos_token_id is None:
        raise ModelError(f"The tokenizer of {folder} names no end-of-text token (eos_token), which training needs.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


# On the meta device, without weights


def from_config(config: Any, folder: Path, dtype: torch.dtype, trust_remote_code: bool, *, scores: bool = False) -> Any:
    """Build the model of a configuration; with `scores`, the class of a reward model, with a head of one number."""
    port = None if trust_remote_code else find_port(read_config(folder))
    try:
        if port is not None:
            model_class: Any = resolve_reference(port.model_class, what=f"The class of {port.family}")
            # upstream: transformers 5.23.0 transformers/modeling_utils.py: only Auto classes have a public from_config
            return model_class._from_config(config, dtype=dtype)
        from transformers import (
            AutoModelForCausalLM,
            AutoModelForImageTextToText,
            AutoModelForSequenceClassification,
        )

        has_vision = getattr(config, "vision_config", None) is not None
        model_class = AutoModelForImageTextToText if has_vision else AutoModelForCausalLM
        if scores:
            model_class, config.num_labels = AutoModelForSequenceClassification, 1
        options = {"trust_remote_code": True} if trust_remote_code else {}
        return model_class.from_config(config, dtype=dtype, **options)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, AssertionError) as err:
        raise ModelError(f"Cannot build a model from {folder}/config.json: {one_line(err)}") from err


def layer_count(config: Any) -> int:
    return int(config.get_text_config().num_hidden_layers)


def with_layers(config: Any, count: int) -> Any:
    """Return the configuration with fewer layers."""
    found = copy.deepcopy(config)
    text = found.get_text_config()
    text.num_hidden_layers = count
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:count]
    return found
