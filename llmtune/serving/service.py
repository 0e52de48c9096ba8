"""Service below the HTTP layer: model names, prompts, the queue, and streamed generations."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence

from llmtune.arguments.service import ServeArguments
from llmtune.errors import LlmtuneError
from llmtune.inference.batching import Batcher, Closed, QueueFull
from llmtune.inference.constraints import Constraint
from llmtune.inference.engine import Engine
from llmtune.inference.generation import Generation, Written
from llmtune.inference.sampling import Sampling
from llmtune.inference.texts import StopAutomaton
from llmtune.serving.protocol import MAX_SEED, ApiError, GenerationRequest
from llmtune.serving.routing import Writers, choose_batcher
from llmtune.serving.served import Served, too_long
from llmtune.templates.chat import ChatTemplate
from llmtune.templates.tools.info import to_json
from llmtune.types import Conversation, Encoded

SMALLEST_TEMPERATURE = 1e-3


@dataclasses.dataclass
class RunningRequest:
    """One running request. `prompts`: one for each `n` of its rows."""

    model: str
    prompts: list[Encoded]
    rows: list[Generation]
    events: asyncio.Queue[tuple[int, Written]]
    until: float
    name: str
    is_cancelled: bool = False
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def usage(self) -> dict[str, int]:
        asked = sum(len(prompt.input_ids) for prompt in self.prompts)
        answered = sum(len(row.ids) for row in self.rows)
        return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


class Service(Served):
    """An engine with model names and a queue.

    Args:
        defaults: Default sampling settings of requests.
    """

    def __init__(self, engine: Engine, args: ServeArguments) -> None:
        self.engine = engine
        self.defaults = Sampling.of(args)
        self.batcher = choose_batcher(engine, args)
        super().__init__(args, engine.model.config, self.batcher, takes_images=engine.template.media is not None)
        if isinstance(self.batcher, Batcher):
            self.models.update({name: name for name in engine.adapters})
        # The queue's thread decodes with the engine's tokenizer; two threads cannot share one, so prompts have copies.
        self._writers = Writers({name: engine.adapters.template(name) for name in self.models.values()})

    def template(self, model: str) -> ChatTemplate:
        """Return the template of a model, for decoding generations."""
        return self.engine.adapters.template(self.adapter(model))

    # Prompts, rendered on threads off the event loop

    def chat_prompt(self, model: str, conversation: Conversation) -> tuple[Encoded, bool]:
        """Return the prompt, and whether it opens a thought.

        Raises:
            ApiError: It is too long, or the template cannot express it.
        """
        size = sum(len(one.content) + len(one.reasoning or "") for one in conversation.messages)
        try:
            size += len(to_json([[call.arguments for one in conversation.messages for call in one.tool_calls],
                                 *conversation.tools]))  # fmt: skip
            self.check_size(size, "messages")
            with self._writers.one(self.adapter(model), size) as writer:
                return writer.prompts([conversation])[0], writer.opens_thought(conversation)
        except LlmtuneError as err:
            raise ApiError(400, f"messages: {err}.".replace("..", "."), param="messages") from err
        except RecursionError:
            raise ApiError(400, "messages: tools or calls are nested too deeply.", param="messages") from None

    def text_prompt(self, text: str) -> Encoded:
        self.check_size(len(text), "prompt")
        with self._writers.one(None, len(text)) as writer:
            return Encoded(list(writer.tokenizer(text)["input_ids"]))

    def text_of(self, prompt: Encoded) -> str:
        with self._writers.one(None, len(prompt.input_ids)) as writer:
            return str(writer.tokenizer.decode(prompt.input_ids, skip_special_tokens=True))

    def sampling(self, request: GenerationRequest, prompts: Sequence[Encoded], max_tokens: int | None) -> Sampling:
        """Return the server's settings, overridden by the request's."""
        given = {
            name: value
            for name in ("temperature", "top_p", "top_k", "repetition_penalty")
            if (value := getattr(request, name)) is not None
        }
        temperature = given.get("temperature", self.defaults.temperature if self.defaults.do_sample else 0)
        given |= {"temperature": max(temperature, SMALLEST_TEMPERATURE), "do_sample": temperature > 0}
        if given.get("top_k") == -1:
            given["top_k"] = 0
        stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
        return dataclasses.replace(
            self.defaults,
            **given,
            stop=tuple(word for word in stop if word),
            seed=request.seed,
            frequency_penalty=request.frequency_penalty or 0.0,
            presence_penalty=request.presence_penalty or 0.0,
            logit_bias=self._bias(request),
            max_new_tokens=self._room(prompts, max_tokens),
        )

    def _bias(self, request: GenerationRequest) -> tuple[tuple[int, float], ...]:
        found = []
        for key, value in (request.logit_bias or {}).items():
            token = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else -1
            if not 0 <= token < self.vocab_size:
                raise ApiError(400, f"logit_bias: {key[:20]!r} is not a token id of this model.", param="logit_bias")
            found.append((token, value))
        return tuple(found)

    def _room(self, prompts: Sequence[Encoded], wanted: int | None) -> int:
        """Return the maximum of generated tokens, so that prompt and generation fit into the context."""
        length = max(len(prompt.input_ids) for prompt in prompts)
        limit = self.max_prompt_tokens
        if limit is not None and length > limit:
            raise too_long(f"The prompt has {length:,} tokens; this server allows {limit:,}.", "messages")
        if self.context is None:
            return wanted or self.defaults.max_new_tokens
        room = self.context - length
        if room < (wanted or 1):
            asked = f"The prompt has {length:,} tokens and max_tokens is {wanted or 1:,}"
            raise too_long(f"{asked}; the model's context holds {self.context:,}.", "max_tokens")
        return min(wanted or self.defaults.max_new_tokens, room)

    # Answers

    def start(
        self,
        model: str,
        prompts: Sequence[Encoded],
        sampling: Sampling,
        n: int,
        *,
        frame: tuple[str, str] = ("", ""),
        constraint: Constraint | None = None,
        keeps: object = None,
        kind: str = "chatcmpl",
    ) -> RunningRequest:
        """Queue a request. Called on the event loop, which receives the pieces.

        Args:
            frame: Text that the model writes around a response; see `Generation`.
            keeps: Objects to keep alive during generation.
        """
        loop = asyncio.get_running_loop()
        until = time.monotonic() + self.args.request_timeout
        job = RunningRequest(model, list(prompts), [], asyncio.Queue(), until, f"{kind}-{uuid.uuid4().hex}")
        template = self.template(model)
        stops = StopAutomaton([*template.stop_strings, *sampling.stop])

        def forward(number: int) -> Callable[[Written], None]:
            def post(written: Written) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(job.events.put_nowait, (number, written))

            return post

        for number in range(len(prompts) * n):
            one = sampling
            if sampling.seed is not None:
                one = dataclasses.replace(sampling, seed=(sampling.seed + number % n) & MAX_SEED)
            row = Generation(
                prompts[number // n],
                one,
                template,
                frame=frame,
                constraint=constraint,
                stops=stops,
                on_piece=forward(number),
            )
            row.keeps = keeps
            job.rows.append(row)
        try:
            self.batcher.submit(job.rows, adapter=self.adapter(model))
        except QueueFull:
            raise ApiError(429, "The queue is full. Try again soon.", code="queue_full") from None
        except Closed:
            raise ApiError(503, "The server is shutting down.", code="shutting_down") from None
        return job

    async def pieces(self, job: RunningRequest) -> AsyncIterator[tuple[int, Written]]:
        """Yield (number of the row, its next piece) until all have ended. Closing it early cancels the rows."""
        num_left = len(job.rows)
        try:
            while num_left:
                try:
                    wait = job.until - time.monotonic()
                    number, written = await asyncio.wait_for(job.events.get(), max(wait, 0.001))
                except TimeoutError:
                    seconds = self.args.request_timeout
                    raise ApiError(504, f"The request took longer than {seconds:g} seconds.", code="timeout") from None
                if written.finish_reason is not None:
                    num_left -= 1
                    if job.rows[number].error is not None:
                        raise ApiError(500, "The model failed at this request; see the server's log.")
                yield number, written
            self.metrics.finished(job.rows)
        finally:
            if num_left:
                self.cancel(job)

    def cancel(self, job: RunningRequest) -> None:
        """Cancel a request and free its slots."""
        if job.is_cancelled or all(row.finish_reason is not None for row in job.rows):
            return
        job.is_cancelled = True
        for row in job.rows:
            row.cancel()
        self.batcher.forget_cancelled()
        self.metrics.cancelled.inc()
