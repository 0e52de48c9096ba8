"""The engine of an online run, by its flags."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llmtune.arguments.service import API_KEY_VARIABLE
from llmtune.distributed.ranks import is_first
from llmtune.rollouts.engine import RolloutEngine
from llmtune.rollouts.http import HttpEngine
from llmtune.rollouts.own import OwnEngine
from llmtune.templates.chat import ChatTemplate
from llmtune.utils.files import grant_usual_access

ADAPTERS = "rollout-adapter"
"""Folder of a run with the adapter that its server loads."""


def training_engine(args: Any, model: Any, template: ChatTemplate, run: Path) -> RolloutEngine:
    """Return the engine that samples what is trained.

    Raises:
        LlmtuneError: Its package is missing, or there is no such server.
    """
    sampling = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
    if args.rollout_url is not None:
        return _remote(args, model, template, run, sampling)
    if args.rollout_engine == "vllm":
        return _vllm(args, model, template, run, sampling)
    if args.rollout_engine == "transformers":
        from llmtune.rollouts.continuous import ContinuousEngine

        return ContinuousEngine(lambda: model, template, **sampling, max_rows=args.rollout_batch_size)
    return OwnEngine(lambda: model, template, **sampling, max_rows=args.rollout_batch_size)


def evaluation_engine(args: Any, model: Any, template: ChatTemplate) -> RolloutEngine:
    """Return the engine of evaluation: the model itself, most often its most likely tokens."""
    return OwnEngine(lambda: model, template, temperature=args.eval_temperature, max_rows=args.rollout_batch_size)


def _vllm(args: Any, model: Any, template: ChatTemplate, run: Path, sampling: dict[str, Any]) -> RolloutEngine:
    from llmtune.rollouts.vllm import VllmEngine

    return VllmEngine(
        args.folder(weights=True),
        save_adapter=lambda folder: save_adapter(model, folder),
        folder=run / ADAPTERS,
        rank=args.lora_rank,
        stop_token_ids=template.stop_token_ids,
        stop=template.stop_strings,
        **sampling,
        max_rows=args.rollout_batch_size,
        max_length=None if args.max_length == -1 else args.max_length,
    )


def save_adapter(model: Any, folder: Path) -> None:
    """Save the adapter of a model in training."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder))
    grant_usual_access(folder)  # the server may be another user's


def _remote(args: Any, model: Any, template: ChatTemplate, run: Path, sampling: dict[str, Any]) -> RolloutEngine:
    place = Path(args.rollout_folder).expanduser() if args.rollout_folder else run / ADAPTERS

    engine = HttpEngine(
        args.rollout_url,
        model=args.rollout_model or "",
        vocab_size=model.get_input_embeddings().num_embeddings,
        save_adapter=lambda folder: save_adapter(model, folder),
        adapter_folder=place / run.name,
        stop_token_ids=template.stop_token_ids,
        stop=template.stop_strings,
        api_key=os.environ.get(API_KEY_VARIABLE),
        **sampling,
        max_in_flight=args.rollout_batch_size,
    )
    if is_first():
        engine.check()
    return engine
