"""Load a checkpoint folder as an inference engine, or as a scorer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtune.arguments.checks import parse_chat_template_kwargs
from llmtune.arguments.infer import InferArguments, LoadArguments
from llmtune.checkpoint import checkpoint_kind
from llmtune.errors import UsageError
from llmtune.inference.engine import BASE, Adapters, Engine, peft_name
from llmtune.inference.score import Scorer
from llmtune.templates.chat import ChatTemplate
from llmtune.templates.lookup import get_template
from llmtune.templates.media import MediaReader
from llmtune.tuners.load import load_tuned
from llmtune.tuners.lora import load_adapter
from llmtune.tuners.vocabulary import has_own_tokens


def load_engine(args: LoadArguments, others: Mapping[str, LoadArguments] | None = None) -> Engine:
    """Load model, adapter and template as the arguments say.

    Args:
        others: Name -> the settings of a further adapter of the same base, each with a checkpoint folder. With these,
            or with an adapter of its own, the engine also has the base model, named BASE.

    Raises:
        UsageError: The checkpoint, or one of `others`, is a reward model.
    """
    for one in (args, *(others or {}).values()):
        if one.scores:
            raise UsageError(f"{one.ckpt_dir} is a reward model: it scores responses, and generates none.")
    model, tokenizer = load_tuned(args)
    kind = None if args.ckpt_dir is None else checkpoint_kind(Path(args.ckpt_dir))
    media = args.media_reader(tokenizer, args.ckpt_dir if kind == "full" else None, args.max_pixels)
    template = _template(args, tokenizer, media)
    if kind != "lora" and not others:
        return Engine(model, template)
    templates = {BASE: template} if kind == "lora" else {}
    for name, other in (others or {}).items():
        assert other.ckpt_dir is not None
        folder = Path(other.ckpt_dir)
        if has_own_tokens(folder):
            raise UsageError(f"{folder} has added tokens, so it cannot share a base model. Serve it as --ckpt_dir.")
        model = load_adapter(model, folder, name=peft_name(name))
        templates[name] = _template(other, tokenizer, media)
    main = "default" if kind == "lora" else ""
    return Engine(model.eval(), template, Adapters(model, template, templates, main))


def load_scorer(args: LoadArguments) -> Scorer:
    """Load a reward model as the arguments say, with its adapter and template."""
    model, tokenizer = load_tuned(args)
    return Scorer(model, _template(args, tokenizer, None))


def load_template(args: LoadArguments) -> ChatTemplate:
    """Load the tokenizer and template of a checkpoint, without its model."""
    return _template(args, args.load_tokenizer(), None)


def _template(args: LoadArguments, tokenizer: Any, media: MediaReader | None) -> ChatTemplate:
    assert args.template_type is not None
    return get_template(
        args.template_type,
        tokenizer,
        system=args.system,
        max_length=args.max_length if isinstance(args, InferArguments) else None,  # a service refuses, and cuts nothing
        special_tokens_in_text=args.special_tokens_in_text,
        tool_format=args.tool_format,
        template_kwargs=parse_chat_template_kwargs(args.chat_template_kwargs),
        media=media,
    )
