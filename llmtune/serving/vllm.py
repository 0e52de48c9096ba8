"""`--backend vllm`: translate the flags to vLLM's own server.

Source: https://docs.vllm.ai/en/stable/cli/serve.html (flags of `vllm serve`).
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from llmtune.arguments.service import API_KEY_VARIABLE, BASE_NAME, ServeArguments
from llmtune.checkpoint import read_adapter_config
from llmtune.errors import UsageError
from llmtune.models.dtypes import TORCH_NAMES
from llmtune.models.info import MODEL_MAPPING, ModelInfo
from llmtune.registry import resolve_reference
from llmtune.templates.info import TEMPLATE_MAPPING
from llmtune.utils.logging import get_logger
from llmtune.utils.processes import replace_process
from llmtune.utils.system import need

PARSERS: dict[str | None, str] = {
    "hermes": "hermes",
    "llama3.1": "llama3_json",
    "mistral": "mistral",
    "mistral-v3": "mistral",
}
"""Tool formats that vLLM can parse, by its names."""
OURS_ALONE = (
    "adapter_root",
    "batching",
    "max_queue",
    "max_n",
    "max_body_size",
    "request_timeout",
    "device",
    "device_map",
    "attn_impl",
)


def vllm_command(args: ServeArguments) -> list[str]:
    """Return the `vllm serve` command line for the same models under the same names.

    Raises:
        UsageError: vLLM cannot serve it.
    """
    if args.scores:
        raise UsageError(
            f"--backend vllm: {args.ckpt_dir} is a reward model. Use --backend llmtune, or merge it and give the "
            "folder to vLLM: vllm serve FOLDER --runner pooling."
        )
    has_adapter = args.ckpt_dir is not None and args.sft_type != "full"
    if has_adapter and args.sft_type != "lora":
        raise UsageError(f"vLLM serves LoRA adapters only; {args.ckpt_dir} is {args.sft_type}. Merge it first.")
    assert args.model_type is not None
    whole = args.ckpt_dir if args.ckpt_dir is not None and not has_adapter else args.model_id_or_path
    base = whole or _own_folder(MODEL_MAPPING[args.model_type])
    command = ["vllm", "serve", str(base), "--host", args.host, "--port", str(args.port)]
    command += ["--served-model-name", BASE_NAME if has_adapter else args.main_name]
    modules = [f"{args.main_name}={args.ckpt_dir}"] if has_adapter else []
    modules += [f"{name}={one.ckpt_dir}" for name, one in args.adapter_args.items()]
    if modules:
        ranks = [_rank(module.partition("=")[2]) for module in modules]
        command += ["--enable-lora", "--max-lora-rank", str(_next_rank(max(ranks))), "--lora-modules", *modules]
    if args.tokenizer_id_or_path is not None:
        command += ["--tokenizer", args.tokenizer_id_or_path]
    if args.model_revision is not None:
        command += ["--revision", args.model_revision]
    if args.dtype is not None:
        command += ["--dtype", TORCH_NAMES[args.dtype]]
    if args.quantization_bit == 4 and args.quant_method == "bnb":
        command += ["--quantization", "bitsandbytes"]
    elif args.quantization_bit:
        raise UsageError(f"--quantization_bit {args.quantization_bit}: vLLM quantises to 4 bits only while loading.")
    if args.trust_remote_code:
        command += ["--trust-remote-code"]
    of_template = None if args.template_type is None else TEMPLATE_MAPPING[args.template_type].tool_format
    if parser := PARSERS.get(args.tool_format or of_template):
        command += ["--enable-auto-tool-choice", "--tool-call-parser", parser]
    command += ["--max-num-seqs", str(args.max_batch_size)]
    if args.max_prompt_length is not None:
        command += ["--max-model-len", str(args.max_prompt_length + args.max_new_tokens)]
    command += ["--seed", str(args.seed), "--override-generation-config", json.dumps(_defaults(args))]
    return command


def _own_folder(info: ModelInfo) -> str:
    """Return the model for vLLM: a hub id, or the folder of a model that ships with llmtune."""
    if info.get_folder is None:
        return info.model_id_or_path
    return str(resolve_reference(info.get_folder, what="The get_folder of a model")())


def run_vllm(args: Any) -> int:
    """Replace this process by `vllm serve`; with `--dry_run`, print its command line.

    Raises:
        MissingPackageError: vLLM is not installed.
    """
    command = vllm_command(args)
    log = get_logger()
    for name in OURS_ALONE:
        if getattr(args, name) != type(args).__dataclass_fields__[name].default:
            log.warning("--%s has no effect with --backend vllm.", name)
    name = args.template_type
    log.warning("vLLM uses the tokenizer's chat template, not llmtune's %s.", name)
    if args.system is not None:
        log.warning("The system prompt of training is not passed to vLLM: send it as a system message.")
    if args.chat_template_kwargs is not None:
        log.warning("--chat_template_kwargs is not passed to vLLM: send chat_template_kwargs with each request.")
    if args.dry_run:
        sys.stdout.write(f"{shlex.join(command)}\n")
        return 0
    need("vllm", "--backend vllm", name="vLLM", advice=", or use --backend llmtune.")
    environment = dict(os.environ)
    if args.api_key is not None:
        environment["VLLM_API_KEY"] = args.api_key  # not on the command line, where others could read it
    environment.pop(API_KEY_VARIABLE, None)
    log.info("%s", shlex.join(command))
    replace_process([sys.executable, "-m", "vllm.entrypoints.cli.main", *command[1:]], environment)


def _rank(folder: str) -> int:
    try:
        config = read_adapter_config(Path(folder))
        return int(max([config["r"], *dict(config.get("rank_pattern") or {}).values()]))
    except (ValueError, KeyError, TypeError) as err:
        raise UsageError(f"{folder}: its adapter_config.json cannot be read ({err}).") from err


def _next_rank(rank: int) -> int:
    """Return the smallest max rank that vLLM has a kernel for."""
    ranks = (8, 16, 32, 64, 128, 256, 320, 512)
    found = next((one for one in ranks if one >= rank), None)
    if found is None:
        raise UsageError(f"vLLM serves LoRA up to rank 512; this one has {rank}. Merge it first.")
    return found


def _defaults(args: ServeArguments) -> dict[str, Any]:
    """Return vLLM's default sampling settings of requests."""
    found: dict[str, Any] = {
        "temperature": args.temperature if args.do_sample else 0.0,
        "top_p": args.top_p,
        "repetition_penalty": args.repetition_penalty,
        "max_new_tokens": args.max_new_tokens,
    }
    return found | ({"top_k": args.top_k} if args.top_k else {})
