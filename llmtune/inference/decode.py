"""Many sampled responses, as ids: rows that end are replaced by new ones, and equal prompts are computed once.

For the responses that a model samples for its own training. What a row draws depends on its seed alone, so that its ids
are the same, up to rounding, for any number of rows at a time and in any company.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from llmtune.inference.decode_forward import Forward, has_plain_cache
from llmtune.inference.decode_generate import decode_by_generate
from llmtune.inference.decode_rows import Decoded, DecodeRequest, Row, StopRules, choose
from llmtune.inference.draws import Draw
from llmtune.inference.refill import RefillBatch
from llmtune.templates.chat import ChatTemplate
from llmtune.utils.logging import log_once
from llmtune.utils.progress import progress_bar


class Decoder:
    """Samples responses of any causal language model of transformers, or a PEFT model of one.

    Args:
        template: Defines where a response stops.
        max_rows: Responses that are decoded at a time.
        autocast_dtype: The forward passes run under `torch.autocast` of it; None leaves them as they are.
    """

    def __init__(
        self,
        model: Any,
        template: ChatTemplate,
        how: Draw | None = None,
        *,
        max_rows: int = 64,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self.model = model
        self.how = how or Draw()
        self.max_rows = max_rows
        self._autocast_dtype = autocast_dtype
        self._stops = StopRules(template)
        self._forward = Forward(model, int(template.tokenizer.pad_token_id or 0))
        self._is_plain: bool | None = None

    def decode(self, requests: Sequence[DecodeRequest], *, quiet: bool = False) -> list[Decoded]:
        """Return one response for each request, in order. The caller sets `model.eval()` and `torch.no_grad()`.

        Args:
            quiet: No progress bar, which is shown on a terminal only.

        Raises:
            ModelError: Logits are NaN or infinite.
        """
        rows = [Row(number, one, self._stops.with_words(one.stop)) for number, one in enumerate(requests)]
        with self._autocast(), progress_bar(total=len(rows), desc="Responses", leave=False, quiet=quiet) as bar:
            wanted = [row for row in rows if row.max_tokens > 0]
            if wanted and self._has_plain_cache():
                wanted.sort(key=lambda row: -len(row.prompt_ids))  # prompts of one pass need little padding
                batch = RefillBatch(self._forward, wanted, self._choose, self.max_rows)
                while (ended := batch.step()) is not None:
                    bar.update(ended)
            elif wanted:
                decode_by_generate(
                    self.model,
                    wanted,
                    self.how,
                    max_rows=self.max_rows,
                    pad_token_id=self._forward.pad_token_id,
                    ended=bar.update,
                )
        return [row.response for row in rows]

    def _choose(self, rows: Sequence[Row], logits: torch.Tensor) -> list[bool]:
        return choose(rows, logits, self.how)

    def _has_plain_cache(self) -> bool:
        if self._is_plain is None:
            self._is_plain = has_plain_cache(self._forward)
            if not self._is_plain:
                log_once(
                    f"{type(self._forward.inner).__name__} keeps more than keys and values of all positions, or takes "
                    f"no position_ids: responses are sampled in batches of {self.max_rows}, each until its longest "
                    "has ended."
                )
        return self._is_plain

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._autocast_dtype is None:
            return nullcontext()
        # Weights that are cast and cached here, without gradients, are not for the training in the caller's autocast.
        kind = self.model.device.type
        return torch.autocast(kind, dtype=self._autocast_dtype, cache_enabled=not torch.is_autocast_enabled(kind))
