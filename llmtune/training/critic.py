"""The critic of PPO: what a response will still earn, from each of its tokens on.

It has an optimizer of its own, so that neither its gradients nor its learning rate have a part in the policy's. On a
model with adapters it is another adapter of the same base, with a head; else a model of its own. Either way it is saved
as a model with one score per token, which plain transformers loads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llmtune.distributed.collectives import sum_over_ranks
from llmtune.errors import CheckpointError, ModelError
from llmtune.losses.policy import value_loss
from llmtune.models.heads import SCORE, inner_model
from llmtune.samples.rollouts import batch_inputs
from llmtune.tuners.score_adapter import (
    active_adapter,
    load_score_adapter,
    save_score_adapter,
    score_adapter_parameters,
)
from llmtune.types import IGNORE_INDEX
from llmtune.utils.accelerator import to_float64

VALUE = "value"
"""PEFT's name of the critic's adapter."""
FOLDER, OPTIMIZER_FILE = "ppo/critic", "ppo/critic_optimizer.pt"
"""Folder of a checkpoint with the critic, and the file of its optimizer's state. Not right below the checkpoint, where
transformers would take it for an adapter of the policy."""


@dataclass(frozen=True)
class CriticSettings:
    """How it learns.

    Attributes:
        clip: How far a value may move from that of the experience before its gradient ends.
        dtype: Of autocast; None: the weights' own.
    """

    learning_rate: float
    clip: float = 0.2
    max_grad_norm: float = 1.0
    dtype: torch.dtype | None = None


class Critic:
    """Values of sampled tokens.

    Args:
        model: With the adapter VALUE, or a model with a score of its own.
        head: From hidden states to a value, [H] -> [1], in fp32.
    """

    def __init__(self, model: Any, head: nn.Module, settings: CriticSettings, *, is_adapter: bool) -> None:
        self.model, self.head, self.settings = model, head, settings
        self._is_adapter = is_adapter
        self._parameters = [
            *(score_adapter_parameters(model, VALUE) if is_adapter else model.parameters()),
            *head.parameters(),
        ]
        self._parameters = list({id(one): one for one in self._parameters}.values())
        self._optimizer = torch.optim.AdamW(self._parameters, lr=settings.learning_rate, weight_decay=0.0)

    def values(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the value before each sampled token of a batch, [K] in fp32, without gradient."""
        with torch.no_grad(), self._active():
            return self._forward(batch)

    def learn(self, batches: Sequence[Mapping[str, Any]], num_tokens: float) -> dict[str, float]:
        """Take one optimizer step on the micro-batches of a step. Collective.

        Args:
            num_tokens: Sampled tokens of the step, over all ranks.

        Returns:
            Measures of the step: the loss, the share of clipped values, the variance of the returns that it explains.
        """
        sums = torch.zeros(7, dtype=torch.float64)
        with self._active(learns=True):
            self._optimizer.zero_grad(set_to_none=True)
            for batch in batches:
                if "returns" not in batch:
                    continue
                values = self._forward(batch)
                returns, old = (batch[name].to(values) for name in ("returns", "values"))
                losses, clipped = value_loss(values, old, returns, self.settings.clip)
                (losses.sum() / num_tokens).backward()
                sums += _sums(losses.detach(), clipped, returns, values.detach())
            self._average_gradients()
            nn.utils.clip_grad_norm_(self._parameters, self.settings.max_grad_norm or float("inf"))
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        return _measures(sum_over_ranks(sums.tolist()))

    def _forward(self, batch: Mapping[str, Any]) -> Tensor:
        labels = batch["labels"]
        sampled = labels[:, 1:] != IGNORE_INDEX
        inputs = {name: value for name, value in batch_inputs(batch).items() if name != "labels"}
        device = self.model.device.type
        with torch.autocast(device, dtype=self.settings.dtype, enabled=self.settings.dtype is not None):
            states = _body(self.model)(**inputs, use_cache=False).last_hidden_state
        found: Tensor = self.head(states[:, :-1][sampled.to(states.device)].float()).squeeze(-1)
        return found

    @contextlib.contextmanager
    def _active(self, *, learns: bool = False) -> Iterator[None]:
        """Compute with the critic's weights; with `learns`, they have gradients."""
        was_training = self.model.training
        self.model.train(learns)
        with active_adapter(self.model, VALUE) if self._is_adapter else contextlib.nullcontext():
            for one in self._parameters:
                one.requires_grad_(learns)
            try:
                yield
            finally:
                for one in self._parameters:
                    one.requires_grad_(False)
                self.model.train(was_training)

    def _average_gradients(self) -> None:
        """Add up the gradients of all ranks: each has divided its own by the tokens of all."""
        if not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
            return
        for one in self._parameters:
            if one.grad is None:
                one.grad = torch.zeros_like(one)
            torch.distributed.all_reduce(one.grad)

    # Files

    def save(self, checkpoint: Path, *, with_optimizer: bool) -> None:
        """Write the critic below a checkpoint, as a model with a score."""
        folder = checkpoint / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        if self._is_adapter:
            save_score_adapter(self.model, VALUE, self.head, folder)
        else:
            self.model.save_pretrained(folder)
        if with_optimizer:
            torch.save(self._optimizer.state_dict(), checkpoint / OPTIMIZER_FILE)

    def load(self, checkpoint: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: It is missing or damaged.
        """
        folder = checkpoint / FOLDER
        try:
            if self._is_adapter:
                load_score_adapter(self.model, VALUE, self.head, folder)
            else:
                _load_full(self.model, folder)
            state = torch.load(checkpoint / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
            self._optimizer.load_state_dict(state)
        except CheckpointError:
            raise
        except Exception as err:  # safetensors, pickle and torch each have types of their own
            raise CheckpointError(
                f"The critic in {checkpoint} cannot be read ({type(err).__name__}). Resume from another checkpoint of "
                "the run."
            ) from err


def _body(model: Any) -> Any:
    inner = inner_model(model)
    return inner.base_model if inner.get_output_embeddings() is None else inner.get_decoder()


def _load_full(model: Any, folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} has no weights of a critic.")
    state = {name: value for file in files for name, value in load_file(file).items()}
    found = model.load_state_dict(state, strict=False)
    if found.missing_keys or found.unexpected_keys:
        raise CheckpointError(f"{folder} holds the critic of another model.")


def model_head(model: Any) -> nn.Module:
    """Return the head of a model with a score.

    Raises:
        ModelError: It has none.
    """
    head = getattr(inner_model(model), SCORE, None)
    if not isinstance(head, nn.Module):
        raise ModelError(f"{type(inner_model(model)).__name__} has no head with a score, which a critic needs.")
    return head.float()


# Measures


def _sums(losses: Tensor, clipped: Tensor, returns: Tensor, values: Tensor) -> Tensor:
    """Count, and sums of losses, clipped values, returns and errors, the latter two also squared, [7] in fp64."""
    errors = returns - values
    parts = (torch.ones_like(losses), losses, clipped, returns, returns**2, errors, errors**2)
    return torch.stack([to_float64(part).sum().cpu() for part in parts])


def _measures(sums: Sequence[float]) -> dict[str, float]:
    count, losses, clipped, returns, squares, errors, squared = sums
    if not count:
        return {}
    spread = squares / count - (returns / count) ** 2
    left = squared / count - (errors / count) ** 2
    found = {"value_loss": losses / count, "value_clip_ratio": clipped / count}
    return found | ({"explained_variance": 1 - left / spread} if spread > 0 else {})
