"""A reward model as one more adapter of the model in training, where both have the same base."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmtune.arguments.infer import InferArguments
from llmtune.checkpoint import adapter_kind, base_of, checkpoint_kind, checkpoint_of, is_reward
from llmtune.errors import UsageError
from llmtune.inference.load import load_template
from llmtune.inference.score import Scorer
from llmtune.models.heads import inner_model
from llmtune.models.score import choose_padding
from llmtune.rewards.specs import RewardSpec
from llmtune.templates.chat import ChatTemplate
from llmtune.tuners.score_adapter import active_adapter, add_score_adapter
from llmtune.tuners.vocabulary import has_own_tokens

_numbers = itertools.count()


def check_reward_model(spec: RewardSpec) -> None:
    """Refuse a folder that holds no reward model.

    Raises:
        UsageError: It does not. CheckpointError: There is no such folder.
    """
    folder = checkpoint_of(Path(spec.target).expanduser())
    checkpoint_kind(folder)
    if not is_reward(folder):
        raise UsageError(f"--rewards {spec.text}: {folder} is no reward model. Train one with `llmtune rm`.")


def shared_scorer(args: Any, model: Any, folder: Path) -> Scorer | None:
    """Return the scorer of a reward adapter on the model in training; None where it has another base."""
    if args.sft_type == "full" or checkpoint_kind(folder) != "lora" or adapter_kind(folder) != "lora":
        return None
    same = Path(str(base_of(folder))).resolve() == Path(args.folder(weights=True)).resolve()
    if not same or args.lora_init != "default" or has_own_tokens(folder):
        return None
    name = f"reward{next(_numbers)}"
    template = load_template(InferArguments(ckpt_dir=str(folder)))
    return SharedScorer(model, template, name, add_score_adapter(model, name, folder))


class SharedScorer(Scorer):
    """A reward adapter on the model in training, with its own template.

    Args:
        name: PEFT's name of the adapter.
        head: From hidden states to a score.
    """

    def __init__(self, model: Any, template: ChatTemplate, name: str, head: nn.Module) -> None:
        self.model, self.template = model, template
        self._name, self._head = name, head
        self._padding = choose_padding(template.tokenizer, set(template.stop_token_ids))

    def _batch(self, rows: Sequence[Sequence[int]]) -> list[float]:
        length = max(map(len, rows))
        ids = torch.tensor([[*row, *[self._padding] * (length - len(row))] for row in rows])
        sizes = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(length) < sizes[:, None]).long()
        device, was_training = self.model.device, self.model.training
        self.model.eval()
        with torch.no_grad(), active_adapter(self.model, self._name):
            body = inner_model(self.model).get_decoder()
            states = body(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).last_hidden_state
            last = states[torch.arange(len(rows)), sizes - 1]
            head: Any = self._head
            scores = head(last.to(head.weight.dtype)).squeeze(-1).float()
        self.model.train(was_training)
        return [float(score) for score in scores.tolist()]
