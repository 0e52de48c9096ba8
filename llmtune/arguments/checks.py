"""Checks that need no torch. All problems of a command are collected and reported at once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtune.arguments.aliases import not_by_train_args
from llmtune.arguments.fields import Problems
from llmtune.data.items import check_items
from llmtune.errors import LlmtuneError, ModelError, TemplateError, UsageError
from llmtune.models.identify import identify
from llmtune.models.info import AUTO, MODEL_MAPPING, ModelInfo
from llmtune.templates.info import TEMPLATE_MAPPING, with_kwargs
from llmtune.utils.logging import get_logger
from llmtune.utils.modules import import_file

if TYPE_CHECKING:
    from llmtune.arguments.groups import DataArguments, ModelArguments


CLASS_NAMES = ("bloom", "llama", "chatglm", "baichuan", "qwen", "internlm")
"""Values of --model_type in MedicalGPT's scripts."""
DEFAULT_MODEL_TYPE = "qwen-7b-chat"
DEFAULT_DATASET = "blossom-math-zh"


def load_custom_register(path: str) -> None:
    """Import a user's registering module; a second call does nothing.

    Raises:
        UsageError: No such file. LlmtuneError: The file raises an exception.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise UsageError(f"--custom_register_path {path}: there is no such file.")
    if file.suffix != ".py":
        raise UsageError(f"--custom_register_path {path} is not a Python file.")
    try:
        import_file(file)
    except LlmtuneError:
        raise
    except (Exception, SystemExit) as err:
        raise LlmtuneError(f"--custom_register_path {path} raises {type(err).__name__}: {err}") from err


def fill_model(args: ModelArguments, problems: Problems) -> None:
    """Look up the model's entry and its template."""
    check_numbers(args, problems)
    if args.custom_register_path is not None:
        load_custom_register(args.custom_register_path)
    forget_class_names(args, has_folder=args.model_id_or_path is not None)
    if args.model_type is None:
        _infer_model_type(args)
    assert args.model_type is not None
    if args.model_type not in MODEL_MAPPING and ("/" in args.model_type or Path(args.model_type).is_dir()):
        problems.need(
            False,
            f"--model_type takes a key, and {args.model_type!r} is a path or hub id. "
            f"Use --model_id_or_path {shlex.quote(args.model_type)}, "
            "with --model_type KEY (llmtune list models).",
        )
        return
    args.model_type = MODEL_MAPPING.canonical(args.model_type)
    problems.need(
        args.model_type != AUTO or args.model_id_or_path is not None,
        f"--model_type {AUTO} takes any model: give it with --model_id_or_path.",
    )
    info = MODEL_MAPPING[args.model_type]
    if args.template_type is None:
        args.template_type = info.template
    args.template_type = TEMPLATE_MAPPING.canonical(args.template_type)
    template = TEMPLATE_MAPPING[args.template_type]
    if args.tool_format is not None:
        args.tool_format = template.with_tools(args.tool_format).tool_format
    system = getattr(args, "system", None)
    problems.need(
        system is None or template.has_system_slot,
        f"The template {args.template_type!r} has no slot for a system prompt: remove --system, or choose another "
        "--template_type.",
    )
    try:
        kwargs = parse_chat_template_kwargs(getattr(args, "chat_template_kwargs", None))
        if not template.from_tokenizer:
            with_kwargs(template, kwargs)
    except (TemplateError, UsageError) as err:
        problems.need(False, f"--chat_template_kwargs: {err}.".replace("..", "."))


def forget_class_names(args: Any, *, has_folder: bool) -> None:
    """Ignore MedicalGPT's `--model_type llama`, a class and not a key: the model's own files say what it is."""
    if args.model_type not in CLASS_NAMES or args.model_type in MODEL_MAPPING:
        return
    if not has_folder:
        raise UsageError(
            f"--model_type {args.model_type} is a model family: give --model_id_or_path FOLDER, or a key (llmtune list "
            "models)."
        )
    get_logger().info(
        "--model_type %s is a model family: the model type is read from the model's files.", args.model_type
    )
    args.model_type = None


def check_numbers(args: Any, problems: Problems) -> None:
    """Refuse NaN, infinity, and integers beyond 64 bits."""
    for item in dataclasses.fields(args):
        value = getattr(args, item.name)
        if isinstance(value, float):
            problems.need(math.isfinite(value), f"--{item.name} must be a finite number, not {value}.")
        elif isinstance(value, int):
            problems.need(abs(value) < 2**63, f"--{item.name} {value} does not fit in 64 bits.")
    seed = getattr(args, "seed", 0)
    problems.need(0 <= seed < 2**32, f"--seed must be from 0 to {2**32 - 1}, not {seed}.")


def parse_chat_template_kwargs(text: str | None) -> dict[str, Any]:
    """`--chat_template_kwargs` as an object.

    Raises:
        UsageError: It is not a JSON object.
    """
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{text!r} is not a JSON object, e.g. '{{\"enable_thinking\": false}}'")
    return found


def _infer_model_type(args: ModelArguments) -> None:
    """Infer the model's key, and its template, from the model's own files."""
    if args.model_id_or_path is None:
        args.model_type = DEFAULT_MODEL_TYPE
        return
    found = identify(args.model_id_or_path, args.hub())
    args.model_type = found.model_type
    if args.template_type is None:
        args.template_type = found.template
    get_logger().info(f"No --model_type given: using {found.model_type} ({found.reason}).")


def check_sources(args: DataArguments) -> None:
    """Check that all datasets exist before anything expensive starts.

    Raises:
        UnknownKeyError: Neither a key nor a path. DataError: A missing file.
    """
    check_items([*args.dataset, *args.val_dataset])


def check_images(args: ModelArguments, info: ModelInfo) -> None:
    """Refuse rows with images if the model needs remote code to process them.

    Raises:
        ModelError: It does, and --trust_remote_code is not set.
    """
    if info.images == "remote_code" and not args.trust_remote_code:
        raise ModelError(
            f"The rows have images, which {args.model_type} only processes with Python code from its checkpoint: use "
            "--trust_remote_code true if you trust it, or a vision model that transformers supports, e.g. --model_type "
            "qwen2.5-vl-7b-instruct. Rows without images need neither."
        )


def check_no_images(args: Any, is_vision_model: bool) -> None:
    """Refuse packing and padding_free for vision models: pixels and spatial positions are per batch.

    Raises:
        UsageError: A vision model with packing or padding_free.
    """
    flag = "--packing" if args.packing else "--padding_free"
    if is_vision_model and (args.packing or args.padding_free == "true"):
        raise UsageError(
            f"{flag} true supports text models only, and {args.model_type} is a vision model. Remove it; "
            "--group_by_length true saves much of the padding."
        )


def is_pattern(text: str) -> bool:
    """Whether a text is a regular expression."""
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def parse_train_args(items: Sequence[str], problems: Problems | None = None) -> dict[str, Any]:
    """`["key=value", ...]` as a dict; values are parsed as YAML, and 1e-5 as a number."""
    import yaml

    problems = problems or Problems()
    found: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key.isidentifier():
            problems.need(False, f"--train_args takes key=value, not {item.partition('=')[0]!r}.")
            continue
        if reason := not_by_train_args(key):
            problems.need(False, f"--train_args {key}: {reason}")
            continue
        try:
            value = yaml.safe_load(text) if text else ""
        except (yaml.YAMLError, ValueError, RecursionError):
            problems.need(False, f"--train_args {key}: cannot parse its value {text[:60]!r}.")
            continue
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)
        found[key] = value
    return found


# Names of layers as users give them: endings, or regular expressions over full names


PATTERN = frozenset("\\^$*+?()[]|{}")


def is_name_pattern(name: str) -> bool:
    """Whether it can be no name, but is a regular expression, which PEFT matches with the whole of a full name."""
    return bool(PATTERN.intersection(name))
