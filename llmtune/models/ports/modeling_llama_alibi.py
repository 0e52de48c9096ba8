"""Llama with ALiBi in the place of its rotary positions, which is what Baichuan 13B is.

This file is saved next to the weights and is all that plain transformers needs to load them
(`trust_remote_code=True`), so it imports nothing of llmtune.

Shapes: B samples, T tokens, K keys (T and what the cache holds), H heads.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.masking_utils import create_causal_mask


class LlamaAlibiConfig(LlamaConfig):  # type: ignore[misc]
    model_type = "llama_alibi"


def alibi_slopes(num_heads: int) -> list[float]:
    """How much each head dislikes distance.

    2^(-8 i / n) for a power of two n; other numbers take the next lower power's and then every second one of the next
    higher power's. Source: Press et al., https://arxiv.org/abs/2108.12409, and its authors' code.
    """
    lower = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * step / lower) for step in range(1, lower + 1)]
    higher = [2 ** (-4 * step / lower) for step in range(1, 2 * lower + 1)]
    return slopes + higher[0::2][: num_heads - lower]


class NoRotation(nn.Module):
    """Stands in for rotary positions: an angle of zero everywhere."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        shape = (*position_ids.shape, self.head_dim)
        return x.new_ones(shape), x.new_zeros(shape)


class LlamaAlibiModel(LlamaModel):  # type: ignore[misc]
    config_class = LlamaAlibiConfig
    # Neither takes a bias per head.
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: LlamaAlibiConfig) -> None:
        super().__init__(config)
        self.rotary_emb = NoRotation(config.head_dim)
        self._mask_config = copy.deepcopy(config)
        # upstream: transformers 5.23.0 transformers/configuration_utils.py: its attention has no public setter
        self._mask_config._attn_implementation = "eager"  # the kind of mask that is always made, and whole

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        # It hands back a mask [B, 1, T, K] that is there already; generate() makes those for static caches.
        mask = create_causal_mask(
            config=self._mask_config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        return super().forward(
            attention_mask=self._with_bias(mask, past, inputs_embeds.dtype),
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )

    def _with_bias(self, mask: Tensor, past: int | Tensor, dtype: torch.dtype) -> Tensor:
        """Add the bias to a mask [B, 1, T, K] of booleans, or of zeros and very low values. Returns [B, H, T, K].

        A softmax is blind to what is added to a whole row, so columns may be counted from anywhere: from the query,
        which keeps the numbers small where it attends most, and padding or packing before a row changes nothing.
        The result is what limits T: in bf16, 40 heads of 4,096 by 4,096 take 1.3 GB a sample.
        """
        lowest = torch.finfo(dtype).min
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, lowest)
        queries = torch.arange(mask.shape[-2], device=mask.device) + past
        distance = torch.arange(mask.shape[-1], device=mask.device) - queries[:, None]
        slopes = torch.tensor(alibi_slopes(self.config.num_attention_heads), device=mask.device)
        bias = mask.new_empty((len(slopes), *distance.shape), dtype=dtype)
        torch.mul(slopes[:, None, None], distance, out=bias)  # in fp32, rounded as it is stored
        return (mask + bias).clamp_(min=lowest)


class LlamaAlibiForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    config_class = LlamaAlibiConfig
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: LlamaAlibiConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)  # what lies between would make the rotary model first
        self.model = LlamaAlibiModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


LlamaAlibiConfig.register_for_auto_class("AutoConfig")
LlamaAlibiForCausalLM.register_for_auto_class("AutoModelForCausalLM")
