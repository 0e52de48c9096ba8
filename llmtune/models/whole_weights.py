"""Completeness check of weights: every tensor of a model is in its files, and every tensor in them is used.

transformers initialises missing tensors randomly and ignores unknown ones, with a warning at most. Both give another
model than the one requested.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from llmtune.errors import ModelError

SHOWN = 3
UNUSED = re.compile(
    r"rotary_emb\.(original_)?inv_freq$"  # computed from the configuration
    r"|\.(attn|attention|self_attn)\.(masked_)?bias$"  # causal masks, which models of before 2023 saved as buffers
    r"|(^|\.)position_ids$"
    r"|^(model\.)?mtp(_layers|_block)?\."  # heads that predict several tokens, for speculative decoding alone
)
"""Tensors that files may hold although no class of transformers uses them; each class knows more of its own."""
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def check_loaded(
    folder: Path, report: dict[str, Any], config: Any, *, new: Sequence[str] = (), unused: Sequence[str] = ()
) -> None:
    """Check what `from_pretrained(..., output_loading_info=True)` reports.

    Args:
        report: Its second result: missing_keys, unexpected_keys, mismatched_keys, error_msgs.
        new: Beginnings of the names of tensors that are meant to be new, a classifier's head say.
        unused: Beginnings of the names of tensors that are meant to be left over.

    Raises:
        ModelError: A tensor is missing, left over, or of another shape.
    """
    if report.get("error_msgs"):
        text = " ".join(str(report["error_msgs"][0]).split())[:300]
        raise ModelError(f"{folder} cannot be loaded: {text}")
    missing = [name for name in report.get("missing_keys", ()) if not name.startswith(tuple(new))]
    mismatched = [
        f"{name} {list(saved)}, not {list(wanted)}"
        for name, saved, wanted in report.get("mismatched_keys", ())
        if not name.startswith(tuple(new))
    ]
    if mismatched:
        raise ModelError(
            f"{folder} does not fit its config.json: {_count(mismatched)} another shape, {names_text(mismatched)}."
        )
    left = [name for name in report.get("unexpected_keys", ()) if not name.startswith(tuple(unused))]
    check_names(folder, missing, left, config)


def check_names(folder: Path, missing: Iterable[str], unexpected: Iterable[str], config: Any = None) -> None:
    """Raise a ModelError with counts and the first names where anything is missing or left over."""
    missing = sorted(missing, key=_natural)
    unused = sorted((name for name in unexpected if not _is_known_unused(name, config)), key=_natural)
    if not missing and not unused:
        return
    parts = []
    if missing:
        parts.append(f"{_count(missing)} missing ({names_text(missing)})")
    if unused:
        parts.append(f"{_count(unused)} left over ({names_text(unused)})")
    raise ModelError(
        f"The weights in {folder} are not those of the model in its config.json: {' and '.join(parts)}. "
        "The download may be incomplete, or one of the two files belongs to another model."
    )


def not_ignored_by_class(model: Any, unexpected: Iterable[str]) -> list[str]:
    """Those of the left-over names that the model's class does not say it ignores."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return [name for name in unexpected if not any(re.search(pattern, name) for pattern in patterns)]


def names_text(names: Collection[str]) -> str:
    """The first names, and how many more there are."""
    first = list(names)[:SHOWN]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more:,} more" if more else "")


def _is_known_unused(name: str, config: Any) -> bool:
    return bool(UNUSED.search(name)) or _is_extra_prediction_layer(name, config)


def _is_extra_prediction_layer(name: str, config: Any) -> bool:
    """Whether it is of a layer for multi-token prediction, which stands behind the last one of the decoder."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    num_layers, num_extra = getattr(text, "num_hidden_layers", None), getattr(text, "num_nextn_predict_layers", None)
    found = LAYER.search(name)
    if not found or not isinstance(num_layers, int) or not isinstance(num_extra, int):
        return False
    return num_layers <= int(found.group(1)) < num_layers + num_extra


def _count(names: Sequence[str]) -> str:
    return "1 tensor is" if len(names) == 1 else f"{len(names):,} tensors are"


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
