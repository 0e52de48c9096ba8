"""Rollouts from an OpenAI-compatible server, vLLM's or llmtune's own: ids in, ids and log-probabilities out.

After each step the adapter is saved to a folder that the server can read, and loaded by it in place of the former one.

Source: https://github.com/vllm-project/vllm/blob/002032ee2b18e1f7bd924ec47b62504ba3866063/vllm/entrypoints/openai/completion/protocol.py
(return_token_ids, token_ids, prompt_token_ids, cache_salt, logprobs);
https://github.com/vllm-project/vllm/blob/00153c8b7948077ebdfc5bfa14e403da41aaea6d/vllm/entrypoints/openai/models/serving.py
(load_lora_adapter, load_inplace).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

from llmtune.errors import RolloutError
from llmtune.rollouts.engine import Rollout, RolloutEngine, RolloutRequest
from llmtune.rollouts.http_client import JsonClient, message_of
from llmtune.utils.progress import progress_bar

COMPLETIONS = "/v1/completions"
LOAD = "/v1/load_lora_adapter"
MODELS = "/v1/models"


class HttpEngine(RolloutEngine):
    """Samples by `POST /v1/completions` with the prompt's ids; one request a response, some of them at a time.

    Not exact: another engine computes with other kernels, and often in another dtype. The log-probabilities are the
    server's; they are of the distribution drawn from for `llmtune serve`, and for vLLM at temperature 1 without top_k
    and top_p, or with `--logprobs-mode processed_logprobs`.

    Args:
        url: http://HOST:PORT of the server.
        model: Name of the model there, sampled from until the first `update`; "": the first that `check` finds.
        save_adapter: Saves the trained adapter, as PEFT does, to a new folder; None if nothing is to be handed over.
        adapter_folder: Folder that the server can read, under the same path; `update` saves below it.
        adapter_name: Name under which the server serves the adapter.
        vocab_size: Ids of the trained model; the server's have to be among them.
        stop_token_ids: The template's, which end a response.
        stop: The template's ends that are several tokens.
        api_key: The server's.
        max_in_flight: Requests that are sent at a time.
        timeout_s: Seconds for one response.
        quiet: No progress bar, which is shown on a terminal only.
    """

    is_exact = False

    def __init__(
        self,
        url: str,
        *,
        model: str,
        vocab_size: int,
        save_adapter: Callable[[Path], None] | None = None,
        adapter_folder: Path | None = None,
        adapter_name: str = "policy",
        stop_token_ids: Sequence[int] = (),
        stop: Sequence[str] = (),
        api_key: str | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        max_in_flight: int = 32,
        timeout_s: float = 600.0,
        quiet: bool = False,
    ) -> None:
        self._client = JsonClient(url, api_key, timeout_s)
        self._vocab_size = vocab_size
        self._save = save_adapter
        self._folder = adapter_folder
        self._adapter_name = adapter_name
        self._quiet = quiet
        self._saved: Path | None = None
        self._stop = tuple(stop)
        self._pool = ThreadPoolExecutor(max_in_flight, thread_name_prefix="llmtune-rollouts")
        self._common: dict[str, Any] = {
            "model": model,
            "n": 1,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "repetition_penalty": 1.0,  # the server's own default may be another
            "logprobs": 0,  # of the sampled token alone
            "return_token_ids": True,
            "cache_salt": "base",  # KV of a prompt under former weights would be found by its ids
        }
        if stop_token_ids:
            self._common["stop_token_ids"] = list(stop_token_ids)

    def check(self) -> None:
        """Ask the server for its models, and take the first where none was named.

        Raises:
            RolloutError: There is no server, it refuses the key, or does not serve the model.
        """
        status, answer = self._client.get(MODELS)
        if status != 200:
            raise RolloutError(self._refusal(MODELS, status, message_of(answer)))
        names = [str(one.get("id")) for one in answer.get("data", [])] if isinstance(answer, dict) else []
        if not names or self._common["model"] not in ("", *names):
            raise self._wrong(f"serves {', '.join(names) or 'no model'}, not {self._common['model'] or 'one'}.")
        self._common["model"] = self._common["model"] or names[0]

    def sample(self, requests: Sequence[RolloutRequest]) -> list[Rollout]:
        """Return one rollout for each request, in order.

        Raises:
            RolloutError: The server cannot be reached, refuses a request, or serves another model.
        """
        futures = [self._pool.submit(self._one, request) for request in requests]
        with progress_bar(total=len(futures), desc="Responses", leave=False, quiet=self._quiet) as bar:
            for future in futures:
                future.add_done_callback(lambda _: bar.update())
            done, left = wait(futures, return_when=FIRST_EXCEPTION)
            for future in left:
                future.cancel()
            wait(left)
        for future in done:
            future.result()
        return [future.result() for future in futures]

    def update(self, step: int) -> None:
        """Save the adapter as it is after `step` optimizer steps, and have the server load it.

        Raises:
            RolloutError: The server does not load adapters, or refuses this one.
        """
        if self._save is None or self._folder is None:
            return
        folder = self._folder / f"step-{step}"
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
        self._save(folder)
        body = {"lora_name": self._adapter_name, "lora_path": str(folder.resolve()), "load_inplace": True}
        status, answer = self._client.post(LOAD, body)
        if status != 200:
            raise RolloutError(self._refusal(LOAD, status, message_of(answer)))
        self._common |= {"model": self._adapter_name, "cache_salt": f"step-{step}"}
        if self._saved not in (None, folder):
            shutil.rmtree(self._saved, ignore_errors=True)
        self._saved = folder

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._client.close()

    def _one(self, request: RolloutRequest) -> Rollout:
        if request.max_tokens <= 0:
            return Rollout([], finish_reason="length")
        body = self._common | {
            "prompt": list(request.prompt_ids),
            "max_tokens": request.max_tokens,
            "seed": seed_of(request),
        }
        if words := [*self._stop, *request.stop]:
            body |= {"stop": words}
        status, answer = self._client.post(COMPLETIONS, body)
        if status != 200:
            raise RolloutError(self._refusal(COMPLETIONS, status, message_of(answer)))
        return self._rollout(request, answer)

    def _rollout(self, request: RolloutRequest, answer: Any) -> Rollout:
        try:
            choice = answer["choices"][0]
            ids, asked, reason = choice.get("token_ids"), choice.get("prompt_token_ids"), choice["finish_reason"]
            logps = (choice.get("logprobs") or {}).get("token_logprobs") or []
        except (KeyError, IndexError, TypeError, AttributeError):
            raise self._wrong("answers something else than a completion. Is it an OpenAI-compatible server?") from None
        if ids is None:
            raise self._wrong("returns no token_ids. Use `llmtune serve`, or a vLLM that knows return_token_ids.")
        if asked is not None and asked != list(request.prompt_ids):
            raise self._wrong("has changed the ids of a prompt. Raise its context length, or serve the same model.")
        if any(not 0 <= token < self._vocab_size for token in ids):
            raise self._wrong(
                f"has sampled token {max(ids)}, and the trained model has {self._vocab_size:,}: it serves another "
                "vocabulary. Start it with the model that is trained."
            )
        if len(logps) != len(ids) or any(value is None for value in logps):
            raise self._wrong(f"returns {len(logps)} log-probabilities of {len(ids)} tokens. Update it.")
        if reason not in ("stop", "length"):
            raise self._wrong(f"has ended a response with {reason!r}. See its log.")
        return Rollout(list(ids), [float(value) for value in logps], reason)

    def _wrong(self, text: str) -> RolloutError:
        return RolloutError(f"The server at {self._client.url} {text}")

    def _refusal(self, path: str, status: int, text: str) -> str:
        """Return the error of a status, with the next step."""
        where = f"The server at {self._client.url}"
        if status in (401, 403):
            return f"{where} refuses the API key ({text}). Give the one that it was started with."
        if path == LOAD and status in (404, 405):
            return (
                f"{where} does not load adapters. Start it as `llmtune serve --adapter_root {self._folder}`, or as "
                "`VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve --enable-lora`."
            )
        if path == LOAD:
            return f"{where} refuses the adapter: {text} Can it read {self._folder}, and is its model the trained one?"
        if status == 404:
            return f"{where} does not serve {self._common['model']}: {text} Correct the model's name."
        return f"{where} refuses a request (HTTP {status}): {text} Start it with the model that is trained."


def seed_of(request: RolloutRequest) -> int:
    """Return the seed of a request in 63 bits: a server draws its own numbers, from one integer."""
    state = np.random.SeedSequence([*request.seed, request.num_drawn]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
