"""Model card of a checkpoint: base model, data, flags and metrics. No local paths, no secrets."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmtune import __version__
from llmtune.checkpoint import read_state, saved_settings
from llmtune.data.info import DATASET_MAPPING
from llmtune.data.items import parse_item
from llmtune.metrics import markdown_table
from llmtune.models.folder import is_hub_id
from llmtune.models.info import MODEL_MAPPING
from llmtune.run.card_metadata import front_matter, metadata
from llmtune.utils.files import read_json, write_text

SHOWN = (
    *("sft_type", "lora_rank", "lora_alpha", "lora_dropout_p", "lora_target_modules", "use_rslora", "use_dora"),
    *("learning_rate", "lr_scheduler_type", "warmup_ratio", "weight_decay", "optim", "num_train_epochs", "max_steps"),
    *("batch_size", "gradient_accumulation_steps", "max_length", "packing", "dtype", "quantization_bit", "seed"),
    *("fp8_base", "neftune_noise_alpha", "loss_on", "truncation_strategy", "model_revision", "dataset_test_ratio"),
    *("train_dataset_sample", "rope_scaling", "rope_factor", "new_special_tokens"),
)
"""Flags that describe how a model was made. All others are omitted: paths, tokens, machine names."""

MEASURED = ("eval_rouge", "eval_bleu", "eval_rewards/accuracies", "eval_rewards/margins")
"""Beginnings of the names of further metrics of training to show."""


def card_of(
    checkpoint: Path, settings: Mapping[str, Any] | None = None, *, name: str | None = None
) -> Callable[[Path], None] | None:
    """Return the function that writes the model card of a checkpoint into a folder; None if its model is unknown.

    Args:
        settings: Default: its sft_args.json. name: Default: its folder's.
    """
    known = settings or _saved(checkpoint)
    if not known.get("model_type"):
        return None
    return lambda folder: write_card(folder, checkpoint, known, name=name or checkpoint.name)


def write_card(
    folder: Path, checkpoint: Path, settings: Mapping[str, Any], done: Sequence[str] = (), *, name: str | None = None
) -> None:
    """Write README.md.

    Args:
        settings: The checkpoint's, data included. done: Processing steps: "merged", "quantised to ...".
        name: Name of the model; default: the folder's.
    """
    saved = _saved(checkpoint)
    base = _base(settings)
    datasets = [_dataset(item) for item in [*(settings.get("dataset") or ()), *(settings.get("val_dataset") or ())]]
    head = metadata(folder, checkpoint, settings, base, datasets)
    scores = head["pipeline_tag"] == "text-classification"
    lines = [*front_matter(head), "", f"# {_title(name or folder.name, base)}", ""]
    lines += [f"{base}, fine-tuned with llmtune {__version__}" + (f"; {', '.join(done)}." if done else "."), ""]
    template = settings.get("template_type") or "unknown"
    lines += ["| | |", "|---|---|", f"| base model | {base} |", f"| chat template | {template} |"]
    lines += [f"| data | {'; '.join(dict.fromkeys(datasets)) or 'unknown'} |"]
    if settings.get("system"):
        lines += [f"| system prompt | {_cell(settings['system'])} |"]
    if scores:
        lines += ["", *_scoring(base if head.get("library_name") == "peft" else None)]
    lines += ["", "## Flags", "", *_flags(saved), ""]
    lines += _metrics(checkpoint)
    quantised = read_json(folder / "quantization.json")
    if quantised:
        lines += ["## Quantisation", "", "| | |", "|---|---|"]
        lines += [*(f"| {name} | {value} |" for name, value in quantised.items()), ""]
    write_text(folder / "README.md", "\n".join(lines))


def _scoring(base: str | None) -> list[str]:
    """Return the section that shows how a reward model is asked. `base`: of an adapter."""
    load = ['model = AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto")']
    if base is not None:
        load = [
            f'base = "{base}"',
            "config = AutoConfig.from_pretrained(folder)",
            'model = AutoModelForSequenceClassification.from_pretrained(base, config=config, dtype="auto")',
            "model = PeftModel.from_pretrained(model, folder)",
        ]
    names = "AutoModelForSequenceClassification, AutoTokenizer"
    code = [
        "import torch",
        *(["from peft import PeftModel"] if base is not None else []),
        f"from transformers import {'AutoConfig, ' if base is not None else ''}{names}",
        "",
        'folder = "."  # this repository',
        *load,
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        'messages = [{"role": "user", "content": "What is 1 plus 1?"}, {"role": "assistant", "content": "2."}]',
        "text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()  # up to its last token",
        'inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")',
        "with torch.no_grad():",
        "    score = model.eval()(**inputs).logits[0, 0].item()",
        "print(score)",
    ]
    about = "A reward model: it scores a response with one number, higher for the better one."
    return ["## Scores", "", about, "", "```python", *code, "```"]


def _saved(checkpoint: Path) -> dict[str, Any]:
    return saved_settings(checkpoint) or saved_settings(checkpoint.parent)


def _base(settings: Mapping[str, Any]) -> str:
    place, key = settings.get("model_id_or_path"), str(settings["model_type"])
    if place and is_hub_id(place):
        return str(place)
    if place:
        return Path(place).name
    if key not in MODEL_MAPPING:  # the user's own, registered elsewhere
        return key
    info = MODEL_MAPPING[key]
    name = (info.hf_model_id if settings.get("use_hf") else None) or info.model_id_or_path
    return name if name and is_hub_id(name) else key


def _dataset(item: str) -> str:
    source = parse_item(item).source
    if source in DATASET_MAPPING:
        info = DATASET_MAPPING[source]
        return info.hf_dataset_id or info.dataset_id or source
    return re.sub(r"^(ms|hf)::", "", source) if "::" in source else f"a local file, {Path(source).name}"


def _title(name: str, base: str) -> str:
    name = name.lstrip(".")
    return f"{base.rpartition('/')[2]}, {'fine-tuned' if name.startswith('checkpoint') else name.split('.')[0]}"


def _flags(saved: Mapping[str, Any]) -> list[str]:
    rows = [f"| `--{name}` | {_cell(saved[name])} |" for name in SHOWN if saved.get(name) not in (None, [], False)]
    return ["| flag | value |", "|---|---|", *rows] if rows else ["Unknown: the checkpoint has no sft_args.json."]


def _cell(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = " ".join(part if not os.path.isabs(part) else Path(part).name for part in text.split())
    return text.replace("|", "\\|")


def _metrics(checkpoint: Path) -> list[str]:
    scores: dict[str, dict[str, float]] = {}
    for place in (checkpoint / "eval", checkpoint.parent / "eval"):
        scores |= read_json(place / "summary.json")
    lines = ["## Metrics", ""]
    mine = {name: found for name, found in scores.items() if name in ("base", checkpoint.name)}
    if mine:
        lines += ["`llmtune eval`, on validation rows:", "", markdown_table(mine)]
    during = _during_training(checkpoint)
    if during:
        lines += [
            "During training:",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value:.6g} |" for name, value in during),
            "",
        ]
    return lines if mine or during else [*lines, "None.", ""]


def _during_training(checkpoint: Path) -> list[tuple[str, float]]:
    state = read_state(checkpoint)
    found: dict[str, float] = {}
    for record in state.get("log_history", []):
        found |= {
            name: value
            for name, value in record.items()
            if name in ("loss", "eval_loss", "eval_token_acc") or name.startswith(MEASURED)
        }
    if "global_step" in state:
        found["steps"] = state["global_step"]
    return list(json.loads(json.dumps(found)).items())
