"""Rollouts by vLLM in this process: LoRA on its own copy of the base model, beside the model in training.

Not tried where it was written, which had neither vLLM nor a GPU: tests show the calls, by a stand-in of the package.
Source: https://docs.vllm.ai/en/stable/api/vllm/ (LLM, SamplingParams), https://docs.vllm.ai/en/stable/features/lora.html.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmtune.errors import RolloutError
from llmtune.rollouts.engine import Rollout, RolloutEngine, RolloutRequest
from llmtune.rollouts.http import seed_of
from llmtune.utils.system import need

MEMORY_SHARE = 0.4
"""Share of the GPU's memory for vLLM; the rest is the training's."""


class VllmEngine(RolloutEngine):
    """Samples by `vllm.LLM.generate`, with the adapter as it was saved last.

    Its GPU memory is free between two rounds: it sleeps, with its weights in the CPU's memory.

    Args:
        base: Folder of the base model.
        save_adapter: Saves the trained adapter, as PEFT does, to a new folder.
        folder: Where adapters are saved.
        rank: Of the adapter.
        max_length: Most tokens of a prompt with its response; None: the model's.
        stop: The template's ends that are several tokens.

    Raises:
        MissingPackageError: vLLM is not installed.
    """

    is_exact = False

    def __init__(
        self,
        base: Path,
        *,
        save_adapter: Callable[[Path], None],
        folder: Path,
        rank: int,
        stop_token_ids: Sequence[int],
        stop: Sequence[str] = (),
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        max_rows: int = 64,
        max_length: int | None = None,
    ) -> None:
        need("vllm", "--rollout_engine vllm", name="vLLM")
        self._vllm: Any = importlib.import_module("vllm")
        self._request: Any = importlib.import_module("vllm.lora.request").LoRARequest
        self._save, self._folder, self._adapter = save_adapter, folder, None
        self._stop = tuple(stop)
        self._common = {
            "n": 1, "temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": 1.0,
            "logprobs": 0, "stop_token_ids": list(stop_token_ids),
        }  # fmt: skip
        self._llm = self._vllm.LLM(
            model=str(base),
            enable_lora=True,
            max_lora_rank=max(8, rank),
            max_num_seqs=max_rows,
            max_model_len=max_length,
            gpu_memory_utilization=MEMORY_SHARE,
            enable_sleep_mode=True,
            enable_prefix_caching=False,  # KV of prompts would be those of former adapters
            logprobs_mode="processed_logprobs",  # of the distribution that was drawn from
        )
        self._llm.sleep(level=1)

    def sample(self, requests: Sequence[RolloutRequest]) -> list[Rollout]:
        """Return one rollout for each request, in order.

        Raises:
            RolloutError: vLLM ended a response in another way than by a stop or its limit.
        """
        prompts = [{"prompt_token_ids": list(one.prompt_ids)} for one in requests]
        self._llm.wake_up()
        try:
            outputs = self._llm.generate(
                prompts, [self._settings(one) for one in requests], lora_request=self._adapter, use_tqdm=False
            )
        finally:
            self._llm.sleep(level=1)
        return [_rollout(output.outputs[0]) for output in outputs]

    def update(self, step: int) -> None:
        """Save the adapter, and use it from now on."""
        place = self._folder / f"step-{step}"
        shutil.rmtree(self._folder, ignore_errors=True)
        self._save(place)
        self._adapter = self._request(f"step-{step}", step + 1, str(place))

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _settings(self, request: RolloutRequest) -> Any:
        words = [*self._stop, *request.stop]
        return self._vllm.SamplingParams(
            **self._common, seed=seed_of(request), max_tokens=request.max_tokens, stop=words or None
        )


def _rollout(output: Any) -> Rollout:
    ids = list(output.token_ids)
    if output.finish_reason not in ("stop", "length"):
        raise RolloutError(f"vLLM has ended a response with {output.finish_reason!r}. See its log.")
    logps = [float(by_token[token].logprob) for token, by_token in zip(ids, output.logprobs, strict=True)]
    return Rollout(ids, logps, output.finish_reason)
