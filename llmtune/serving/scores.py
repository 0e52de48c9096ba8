"""`POST /v1/score` and `POST /classify` of a reward model, in the shape of vLLM's.

A score is the model's own number, that of training; `probs` of /classify are its sigmoid, as in vLLM, whose field
`use_activation` chooses otherwise in either.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from llmtune.arguments.service import ServeArguments
from llmtune.data.comparisons import last_response
from llmtune.errors import LlmtuneError
from llmtune.inference.batching import Closed, QueueFull
from llmtune.inference.score import Scorer
from llmtune.inference.score_queue import ScoreQueue
from llmtune.serving.completions import check_depth, conversation_of
from llmtune.serving.protocol import ApiError, ClassifyRequest, ScoreMessages, ScoreRequest
from llmtune.serving.routing import Writers
from llmtune.serving.served import Served, too_long
from llmtune.serving.wire import Pictures
from llmtune.templates.comparisons import encode_comparisons
from llmtune.types import Conversation, Message


class ScoreService(Served):
    """A reward model with its name and a queue."""

    def __init__(self, scorer: Scorer, args: ServeArguments) -> None:
        self.batcher = ScoreQueue(scorer, max_batch_size=args.max_batch_size, max_queue=args.max_queue)
        super().__init__(args, scorer.model.config, self.batcher)
        self._writers = Writers({None: scorer.template})
        self.label = str(scorer.model.config.id2label[0])

    @property
    def max_prompt_tokens(self) -> int | None:
        """Most tokens of a prompt with its response: nothing follows them."""
        return self.args.max_prompt_length or self.context

    def ids_of(self, conversation: Conversation, param: str) -> list[int]:
        """Return the ids of a conversation up to the end of its last response.

        Raises:
            ApiError: It has no response, is too long, or the template cannot express it.
        """
        size = sum(len(one.content) + len(one.reasoning or "") for one in conversation.messages)
        self.check_size(size, param)
        try:
            row = last_response(conversation)
            with self._writers.one(None, size) as template:
                (encoded,) = encode_comparisons([row], template)
        except LlmtuneError as err:
            raise ApiError(400, f"{param}: {err}.".replace("..", "."), param=param) from err
        if encoded.problem is not None:
            raise ApiError(400, f"{param}: {encoded.problem}.", param=param)
        return self._within(encoded.prompt + encoded.responses[0].input_ids, param)

    def ids_of_text(self, text: str, param: str) -> list[int]:
        """Return the ids of a text as it is, without a template."""
        self.check_size(len(text), param)
        with self._writers.one(None, len(text)) as template:
            ids = list(template.tokenizer(text)["input_ids"])
        if not ids:
            raise ApiError(400, f"{param}: a text is empty.", param=param)
        return self._within(ids, param)

    def _within(self, ids: list[int], param: str) -> list[int]:
        limit = self.max_prompt_tokens
        if limit is not None and len(ids) > limit:
            raise too_long(f"{param}: {len(ids):,} tokens; this server allows {limit:,}.", param)
        return ids

    async def scores(self, sequences: Sequence[Sequence[int]], request: Request) -> list[float] | None:
        """Return the scores of sequences of ids; None where the client has disconnected.

        Raises:
            ApiError: The queue is full or closed, the request takes too long, or the model fails.
        """
        try:
            future = self.batcher.submit(sequences)
        except QueueFull:
            raise ApiError(429, "The queue is full. Try again soon.", code="queue_full") from None
        except Closed:
            raise ApiError(503, "The server is shutting down.", code="shutting_down") from None
        whole = asyncio.ensure_future(asyncio.wrap_future(future))
        gone = asyncio.ensure_future(_until_gone(request))
        try:
            waits: set[asyncio.Future[Any]] = {whole, gone}
            await asyncio.wait(waits, timeout=self.args.request_timeout, return_when=asyncio.FIRST_COMPLETED)
            if whole.done():
                return self._counted(whole.result(), sequences)
            self.metrics.cancelled.inc()
            if gone.done():
                return None
            seconds = self.args.request_timeout
            raise ApiError(504, f"The request took longer than {seconds:g} seconds.", code="timeout")
        except ApiError:
            raise
        except Exception as err:
            raise ApiError(500, "The model failed at this request; see the server's log.") from err
        finally:
            gone.cancel()
            whole.cancel()  # its sequences leave the queue

    def _counted(self, scores: list[float], sequences: Sequence[Sequence[int]]) -> list[float]:
        self.metrics.scores.inc(len(sequences))
        self.metrics.prompt_tokens.inc(sum(map(len, sequences)))
        return scores


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def add_score_routes(app: FastAPI, service: ScoreService, refusals: dict[int | str, dict[str, Any]]) -> None:
    """Add the routes of a reward model, and refuse those of a model that generates."""

    @app.post("/score", responses=refusals, include_in_schema=False)
    @app.post("/v1/score", responses=refusals)
    async def score(body: ScoreRequest, request: Request) -> Response:
        sequences = await run_in_threadpool(_score_ids, service, body)
        found = await service.scores(sequences, request)
        if found is None:
            return Response(status_code=499)
        values = [_probability(one) if body.use_activation else one for one in found]
        data = [{"index": index, "object": "score", "score": value} for index, value in enumerate(values)]
        return JSONResponse(_head(service, "score", sequences) | {"data": data})

    @app.post("/classify", responses=refusals)
    async def classify(body: ClassifyRequest, request: Request) -> Response:
        sequences = await run_in_threadpool(_classify_ids, service, body)
        found = await service.scores(sequences, request)
        if found is None:
            return Response(status_code=499)
        probs = [one if body.use_activation is False else _probability(one) for one in found]
        data = [
            {"index": index, "label": service.label, "probs": [one], "num_classes": 1}
            for index, one in enumerate(probs)
        ]
        return JSONResponse(_head(service, "classify", sequences) | {"data": data})

    @app.post("/v1/chat/completions", responses={400: refusals[400]})
    @app.post("/v1/completions", responses={400: refusals[400]})
    async def generate() -> Response:
        text = f"{service.args.main_name} is a reward model: it scores responses, and generates none. POST /v1/score."
        raise ApiError(400, text, param="model", code="reward_model")


def _head(service: ScoreService, kind: str, sequences: Sequence[Sequence[int]]) -> dict[str, Any]:
    count = sum(map(len, sequences))
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": service.args.main_name,
        "usage": {"prompt_tokens": count, "completion_tokens": 0, "total_tokens": count},
    }


def _score_ids(service: ScoreService, request: ScoreRequest) -> list[list[int]]:
    """Check and tokenise a request for scores."""
    if request.text_1 is None and request.text_2 is None:
        return [_messages_ids(service, request, "messages, or text_1 and text_2")]
    if request.text_1 is None or request.text_2 is None or request.messages is not None:
        raise ApiError(400, "Give messages, or text_1 and text_2.", param="text_2")
    service.adapter(request.model or service.args.main_name)
    prompts, responses = _as_list(request.text_1), _as_list(request.text_2)
    if len(prompts) not in (1, len(responses)):
        text = f"text_1 has {len(prompts)} texts and text_2 {len(responses)}: give 1 and 1, 1 and N, or N and N."
        raise ApiError(400, text, param="text_1")
    _check_number(service, len(responses), "text_2")
    asked = prompts * len(responses) if len(prompts) == 1 else prompts
    return [
        service.ids_of(Conversation((Message("user", prompt), Message("assistant", response, loss=True))), "text_2")
        for prompt, response in zip(asked, responses, strict=True)
    ]


def _classify_ids(service: ScoreService, request: ClassifyRequest) -> list[list[int]]:
    """Check and tokenise a request for classes."""
    if request.input is None:
        return [_messages_ids(service, request, "messages, or input")]
    if request.messages is not None:
        raise ApiError(400, "Give messages or input, not both.", param="input")
    service.adapter(request.model or service.args.main_name)
    texts = _as_list(request.input)
    _check_number(service, len(texts), "input")
    return [service.ids_of_text(text, "input") for text in texts]


def _messages_ids(service: ScoreService, request: ScoreMessages, wanted: str) -> list[int]:
    service.adapter(request.model or service.args.main_name)
    if request.messages is None:
        raise ApiError(400, f"Give {wanted}.", param="messages")
    check_depth(request)
    tools = [tool.model_dump(exclude_none=True) for tool in request.tools or ()]
    try:
        whole = conversation_of(request, request.messages, tools, Pictures(), sees=False)
        return service.ids_of(whole, "messages")
    except RecursionError:
        raise ApiError(400, "messages: tools or calls are nested too deeply.", param="messages") from None


def _check_number(service: ScoreService, count: int, param: str) -> None:
    most = service.args.max_batch_size + service.args.max_queue
    if count > most:
        raise ApiError(400, f"{param}: {count:,} texts; this server takes {most:,} per request.", param=param)


def _as_list(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


def _probability(score: float) -> float:
    """Return the sigmoid of a score, for any score without overflow."""
    return 0.5 * (1 + math.tanh(score / 2))
