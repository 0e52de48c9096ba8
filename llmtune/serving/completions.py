"""`POST /v1/completions`: text completion without a template."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any

from llmtune.inference.rows import TokenLogprob
from llmtune.serving.chat import number_of_answers
from llmtune.serving.errors import ApiError
from llmtune.serving.protocol import CompletionRequest
from llmtune.serving.service import Job, Service
from llmtune.types import Encoded


@dataclasses.dataclass
class Completion:
    """A request in progress: prepared on a thread, started and streamed on the event loop."""

    service: Service
    request: CompletionRequest
    prompts: list[Encoded]
    echoes: list[str]

    @classmethod
    def prepare(cls, service: Service, request: CompletionRequest) -> Completion:
        """Check and tokenise.

        Raises:
            ApiError: The request is invalid.
        """
        service.adapter(request.model)
        if request.echo and request.logprobs is not None:
            raise ApiError(400, "echo with logprobs is not supported: prompts are not scored.", param="echo")
        if request.best_of not in (None, request.n or 1):
            raise ApiError(400, "best_of is not supported, unless it equals n.", param="best_of")
        texts = _list(request)
        if len(texts) * (request.n or 1) > service.args.max_n:  # before any of them is tokenised
            raise ApiError(
                400,
                f"{len(texts)} prompts with n={request.n or 1} exceed the {service.args.max_n} completions that this "
                "server allows per request.",
                param="prompt",
            )
        prompts = [service.text_prompt(one) if isinstance(one, str) else Encoded(list(one)) for one in texts]
        if not prompts or not all(prompt.input_ids for prompt in prompts):
            raise ApiError(400, "prompt is empty.", param="prompt")
        if any(token >= service.vocab_size for prompt in prompts for token in prompt.input_ids):
            raise ApiError(
                400,
                f"prompt: a token id is out of range; the vocabulary has {service.vocab_size:,} tokens.",
                param="prompt",
            )
        echoes = [service.text_of(prompt) if request.echo else "" for prompt in prompts]
        return cls(service, request, prompts, echoes)

    def start(self) -> Job:
        n = number_of_answers(self.service, self.request.n)
        sampling = self.service.sampling(self.request, self.prompts, self.request.max_tokens or 16)
        if self.request.logprobs is not None:
            sampling = dataclasses.replace(sampling, top_logprobs=self.request.logprobs)
        return self.service.start(self.request.model, self.prompts, sampling, n, kind="cmpl")

    async def whole(self, job: Job) -> dict[str, Any]:
        """Return the response body."""
        async for _ in self.service.pieces(job):
            pass
        choices = [
            self._choice(number, self._echo(job, number) + row.text, row.finish_reason, row.logprobs)
            for number, row in enumerate(job.rows)
        ]
        return self._body(job) | {"choices": choices, "usage": job.usage()}

    async def chunks(self, job: Job) -> AsyncIterator[dict[str, Any]]:
        """Yield the response as a stream."""
        options = self.request.stream_options
        with_usage = options is not None and bool(options.include_usage)
        body = self._body(job) | ({"usage": None} if with_usage else {})
        sent = [0] * len(job.rows)
        begun = [False] * len(job.rows)
        async for number, written in self.service.pieces(job):
            text = written.text if begun[number] else self._echo(job, number) + written.text
            begun[number] = True
            logprobs, sent[number] = job.rows[number].logprobs[sent[number] : written.end], written.end
            yield body | {"choices": [self._choice(number, text, written.finish_reason, logprobs)]}
        if with_usage:
            yield body | {"choices": [], "usage": job.usage()}

    def _echo(self, job: Job, number: int) -> str:
        return self.echoes[number // (len(job.rows) // len(self.prompts))]

    def _choice(self, number: int, text: str, reason: str | None, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        entries = None if self.request.logprobs is None else _logprobs(logprobs)
        return {"index": number, "text": text, "logprobs": entries, "finish_reason": reason}

    def _body(self, job: Job) -> dict[str, Any]:
        return {"id": job.name, "object": "text_completion", "created": job.created, "model": job.model}


def _list(request: CompletionRequest) -> list[Any]:
    prompt = request.prompt
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    return list(prompt)


def _logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Return logprobs in the API's format. `text_offset` counts characters of the tokens returned here."""
    offsets, place = [], 0
    for one in logprobs:
        offsets.append(place)
        place += len(one.token)
    return {
        "tokens": [one.token for one in logprobs],
        "token_logprobs": [max(one.logprob, -9999.0) for one in logprobs],
        "top_logprobs": [{token: max(value, -9999.0) for token, value in one.top} for one in logprobs],
        "text_offset": offsets,
    }
