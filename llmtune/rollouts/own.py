"""The default engine of rollouts: the trained model itself, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from llmtune.inference.decode import Decoder
from llmtune.inference.draws import Draw
from llmtune.rollouts.engine import Rollout, RolloutEngine, RolloutRequest
from llmtune.templates.chat import ChatTemplate


class OwnEngine(RolloutEngine):
    """Samples with the trained model as it is: nothing to hand over, and the very distribution that is trained.

    Args:
        model: Returns the model, without the wrapper of a distributed run; asked at each sample.
        template: Bound to the model's tokenizer; defines where a response stops.
        temperature: Divides the logits; 0 takes the most likely token.
        top_k: Draw among the k most likely tokens; 0 is all.
        top_p: Of these, among the fewest that make up this share. With less than all tokens, the distribution drawn
            from is not the one that the trained log-probabilities are of.
        max_rows: Responses that are decoded at a time.
        autocast_dtype: Dtype of `torch.autocast` in the forward passes, that of the training; None for none.
        quiet: No progress bar, which is shown on a terminal only.
    """

    is_exact = True

    def __init__(
        self,
        model: Callable[[], Any],
        template: ChatTemplate,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        max_rows: int = 64,
        autocast_dtype: torch.dtype | None = None,
        quiet: bool = False,
    ) -> None:
        self._model = model
        self._template = template
        self._draw = Draw(temperature=temperature, top_k=top_k, top_p=top_p)
        self._max_rows = max_rows
        self._autocast_dtype = autocast_dtype
        self._quiet = quiet
        self._decoder: Decoder | None = None

    def sample(self, requests: Sequence[RolloutRequest]) -> list[Rollout]:
        """Return one rollout for each request, in order; the model is in the mode that it was in, afterwards."""
        model = self._model()
        if self._decoder is None or self._decoder.model is not model:
            self._decoder = Decoder(
                model, self._template, self._draw, max_rows=self._max_rows, autocast_dtype=self._autocast_dtype
            )
        with generating(model):
            found = self._decoder.decode(requests, quiet=self._quiet)
        return [Rollout(one.ids, one.logps, one.finish_reason) for one in found]

    def update(self, step: int) -> None:
        """Do nothing: the weights are those of the trained model."""

    def close(self) -> None:
        self._decoder = None


@contextmanager
def generating(model: Any) -> Iterator[None]:
    """Set a model to evaluation without gradients; afterwards each of its modules is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():  # not inference_mode, in which autocast casts the weights anew at each step
            yield
    finally:
        for module in training:
            module.training = True
