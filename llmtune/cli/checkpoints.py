"""The commands that start from a checkpoint: infer, eval, serve, merge, export, push."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from llmtune.arguments.checks import check_sources
from llmtune.arguments.evaluate import EvaluateArguments
from llmtune.arguments.export import ExportArguments, MergeArguments
from llmtune.arguments.infer import InferArguments
from llmtune.arguments.service import ServeArguments
from llmtune.checkpoint import checkpoint_of
from llmtune.cli.dry_run import DryRunArguments, show_eval, show_export, show_infer, show_merge, show_serve
from llmtune.cli.main import Command
from llmtune.compat.optional import uncollected_imports
from llmtune.errors import UsageError
from llmtune.utils.system import need


@dataclass(kw_only=True)
class InferCommand(DryRunArguments, InferArguments):
    """Inference."""


def _infer(args: InferCommand) -> None:
    if not args.eval_human:
        check_sources(args)
    if args.dry_run:
        return show_infer(args)
    with uncollected_imports():
        from llmtune.inference.infer import infer

    infer(args)


@dataclass(kw_only=True)
class EvalCommand(DryRunArguments, EvaluateArguments):
    """Evaluation."""

    json: bool = False
    """Print the scores as JSON, the table on standard error; with --dry_run, what would run."""


def _eval(args: EvalCommand) -> None:
    if not args.suite:
        check_sources(args.first)
    if args.dry_run:
        return show_eval(args)
    from llmtune.evaluation.evaluate import evaluate

    if not args.json:
        evaluate(args)
        return
    with contextlib.redirect_stdout(sys.stderr):  # the table
        scores = evaluate(args)
    sys.stdout.write(json.dumps(scores, ensure_ascii=False) + "\n")


@dataclass(kw_only=True)
class ServeCommand(DryRunArguments, ServeArguments):
    """Server."""


def _serve(args: ServeCommand) -> int | None:
    if args.backend == "vllm":
        from llmtune.serving.vllm import run_vllm

        return run_vllm(args)
    if args.dry_run:
        show_serve(args)
        return 0
    need(("fastapi", "uvicorn", "prometheus_client"), "llmtune serve", extra="serve")
    from llmtune.serving.app import serve

    serve(args)
    return 0


@dataclass(kw_only=True)
class MergeCommand(DryRunArguments, MergeArguments):
    """Merging."""


def _merge(args: MergeCommand) -> None:
    if args.dry_run:
        return show_merge(args)
    from llmtune.exporting.export import merge

    sys.stdout.write(f"{merge(args)}\n")


@dataclass(kw_only=True)
class ExportCommand(DryRunArguments, ExportArguments):
    """Export."""


def _export(args: ExportCommand) -> None:
    if args.dry_run:
        return show_export(args)
    from llmtune.exporting.export import export

    sys.stdout.write(f"{export(args)}\n")


@dataclass(kw_only=True)
class PushArguments:
    """Push."""

    ckpt_dir: str | None = None
    """Folder to push."""
    hub_model_id: str | None = None
    """Repository: owner/name, or a name under your own account."""
    use_hf: bool | None = None
    """Push to Hugging Face instead of ModelScope. Default: environment variable USE_HF."""
    hub_token: str | None = None
    """Hub token. Default: MODELSCOPE_API_TOKEN or HF_TOKEN from the environment, or the stored login."""
    hub_private_repo: bool = True
    """Create the repository as private."""
    with_state: bool = False
    """Push optimizer and RNG state too, which resuming needs."""
    ignore_args_error: bool = False
    """Warn about unknown flags instead of stopping."""

    def __post_init__(self) -> None:
        if not self.ckpt_dir or not self.hub_model_id:
            raise UsageError("llmtune push needs --ckpt_dir FOLDER and --hub_model_id NAME.")
        if not Path(self.ckpt_dir).is_dir():
            raise UsageError(f"--ckpt_dir {self.ckpt_dir}: there is no such folder. Look below output/.")


def _push(args: PushArguments) -> None:
    from llmtune.hub.push import destination, push_folder
    from llmtune.run.model_card import card_of

    name, use_hf = str(args.hub_model_id), args.use_hf
    where = destination(name, use_hf_hub=use_hf, token=args.hub_token, private=args.hub_private_repo)
    folder = checkpoint_of(Path(str(args.ckpt_dir)))
    message = f"{folder.name}, by llmtune push"
    push_folder(folder, where, message=message, with_state=args.with_state, write_card=card_of(folder))
    sys.stdout.write(f"Pushed {folder} to {where.repo.repo_id} on {where.hub.name}\n")


COMMANDS = {
    "infer": Command(
        "infer",
        InferCommand,
        _infer,
        """
Generate for a dataset with a checkpoint, or chat with it. Its training settings are read from the checkpoint:
  llmtune infer --ckpt_dir output/llmtune-tiny/v0-.../checkpoint-50
  llmtune infer --ckpt_dir output/llmtune-tiny/v0-.../checkpoint-50 --eval_human true
A reward model scores the responses of a dataset instead:
  llmtune infer --ckpt_dir output/llmtune-tiny/v0-.../checkpoint-50 --dataset pairs.jsonl
""",
    ),
    "eval": Command(
        "eval",
        EvalCommand,
        _eval,
        """
Evaluate checkpoints on their validation data, or on a file: loss, ROUGE, BLEU, exact match, multiple choice.
  llmtune eval --ckpt_dir output/llmtune-tiny/v0-.../checkpoint-50 --with_base true
  llmtune eval --ckpt_dir output/llmtune-tiny/v0-... --all_checkpoints true
  llmtune eval --ckpt_dir A B --val_dataset questions.jsonl --metrics choice
Reward models are measured on pairs: loss, accuracy, margin.
""",
    ),
    "serve": Command(
        "serve",
        ServeCommand,
        _serve,
        """
Serve a checkpoint with an OpenAI-compatible API: chat, completions, streaming, tools, JSON. Its training settings are
read from the checkpoint:
  llmtune serve --ckpt_dir output/llmtune-tiny/v0-.../checkpoint-50
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"model": "llmtune-tiny", "messages": [{"role": "user", "content": "Who are you?"}]}'
Several adapters over one base model; a request selects one by its `model`:
  llmtune serve --model_type qwen2.5-7b-instruct --adapters law=output/.../checkpoint-90 med=output/.../checkpoint-70
Access from other machines needs an API key:
  LLMTUNE_API_KEY=... llmtune serve --ckpt_dir ... --host 0.0.0.0
Defaults of a request (temperature, top_p, max_tokens, ...) are the generation flags.
A reward model answers POST /v1/score and /classify, in the shape of vLLM's.
""",
    ),
    "merge": Command(
        "merge",
        MergeCommand,
        _merge,
        """
Merge a LoRA checkpoint into its base, tensor by tensor: memory holds one layer and one shard, not the whole model.
  llmtune merge --ckpt_dir output/llmtune-tiny/v0-.../checkpoint-50
  llmtune merge --base_model FOLDER --lora_model FOLDER --output_dir merged
""",
    ),
    "export": Command(
        "export",
        ExportCommand,
        _export,
        """
Export a checkpoint: merged weights, quantised weights, a GGUF file with an Ollama Modelfile, or a hub repository. A
LoRA checkpoint is merged first.
  llmtune export --ckpt_dir output/llmtune-tiny/v0-.../checkpoint-50 --merge_lora true
  llmtune export --ckpt_dir ... --quant_method gptq --quantization_bit 4 --calibration_dataset alpaca-zh
  llmtune export --ckpt_dir ... --to gguf --gguf_type q8_0
""",
    ),
    "push": Command(
        "push",
        PushArguments,
        _push,
        """
Push a checkpoint with a model card to ModelScope, or to Hugging Face with --use_hf true, as one commit.
  llmtune push --ckpt_dir output/qwen2.5-7b-instruct/v0-XXX/checkpoint-100 --hub_model_id my-model
""",
    ),
}
