"""`POST /v1/chat/completions`, and `/v1/completions`: text completion without a template."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any

from llmtune.data.contents import Found, check_turns
from llmtune.data.formats_messages import parse_messages
from llmtune.data.values import parse_tools
from llmtune.errors import LlmtuneError
from llmtune.inference.constraints import Constraint, JsonObject
from llmtune.inference.generation import Generation, TokenLogprob
from llmtune.inference.texts import HALF, ThoughtText
from llmtune.serving.protocol import ApiError, ChatMessage, ChatRequest, CompletionRequest, ScoreMessages
from llmtune.serving.service import RunningRequest, Service
from llmtune.serving.tool_calls import (
    AnswerText,
    AskedCall,
    call_asked_by,
    calls_json,
    format_of_request,
    shown_tools,
)
from llmtune.serving.wire import MAX_DEPTH, Pictures, is_deeper
from llmtune.templates.tools import ToolFormat
from llmtune.types import Conversation, Encoded, Media

IMAGES = ("image_url", "input_image")
PASSED_ON = {"name", "tool_call_id", "reasoning_content", "reasoning", "tool_calls"}
"""Fields of a message that templates may write beside its content."""


@dataclasses.dataclass
class _Asked:
    """A request in progress: prepared on a thread, started and streamed on the event loop."""

    service: Service
    request: Any

    def number_of_answers(self) -> int:
        n, limit = self.request.n or 1, self.service.args.max_n
        if n > limit:
            raise ApiError(400, f"n is {n}; this server allows at most {limit}.", param="n")
        return n

    @property
    def with_usage(self) -> bool:
        options = self.request.stream_options
        return options is not None and bool(options.include_usage)

    def head(self, job: RunningRequest, kind: str, *, streamed: bool = False) -> dict[str, Any]:
        """Return the fields that every object of a response has."""
        usage = {"usage": None} if streamed and self.with_usage else {}
        return {"id": job.name, "object": kind, "created": job.created, "model": job.model, **usage}

    async def finished(self, job: RunningRequest) -> list[Generation]:
        async for _ in self.service.pieces(job):
            pass
        return job.rows


@dataclasses.dataclass
class ChatCompletion(_Asked):
    request: ChatRequest
    prompt: Encoded
    opened: bool
    pictures: Pictures
    fmt: ToolFormat | None
    asked: AskedCall | None

    @classmethod
    def prepare(cls, service: Service, request: ChatRequest) -> ChatCompletion:
        """Check and tokenise.

        Raises:
            ApiError: The request is invalid, or the template cannot express it.
        """
        check_depth(request)
        template = service.template(request.model)
        fmt = format_of_request(request, template)
        asked = call_asked_by(request, fmt)
        if _wants_json(request) and shown_tools(request):
            raise ApiError(
                400, "response_format json_object and tools are mutually exclusive.", param="response_format"
            )
        if request.top_logprobs and not request.logprobs:
            raise ApiError(400, "top_logprobs requires logprobs to be true.", param="top_logprobs")
        pictures = Pictures()
        conversation = _conversation(request, pictures, sees=template.media is not None)
        prompt, opened = service.chat_prompt(request.model, conversation)
        return cls(service, request, prompt, opened, pictures, fmt, asked)

    def start(self) -> RunningRequest:
        request = self.request
        n = self.number_of_answers()
        sampling = self.service.sampling(request, [self.prompt], request.max_completion_tokens or request.max_tokens)
        if self.fmt is not None:
            sampling = dataclasses.replace(sampling, stop=(*sampling.stop, *self.fmt.stop_words))
        if request.logprobs:
            sampling = dataclasses.replace(sampling, top_logprobs=request.top_logprobs or 0)
        constraint: Constraint | None = JsonObject() if _wants_json(request) else None
        if self.asked is not None:
            constraint = self.asked.constraint()
        frame = self.service.template(request.model).answer_frame
        return self.service.start(
            request.model, [self.prompt], sampling, n, frame=frame, constraint=constraint, keeps=self.pictures
        )

    async def whole(self, job: RunningRequest) -> dict[str, Any]:
        """Return the response body."""
        choices = []
        for number, row in enumerate(await self.finished(job)):
            text = self._answer_text()
            parts = self._thought_text()
            (thought, content), (last_thought, last) = parts.add(row.text), parts.finish()
            content = text.add(content + last) + text.finish()
            message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
            if parts.has_thought:
                message["reasoning_content"] = thought + last_thought
            if text.calls:
                message |= {"content": content.strip() or None, "tool_calls": calls_json(text.calls)}
            reason = "tool_calls" if text.calls and row.finish_reason == "stop" else row.finish_reason
            choice = {"index": number, "message": message, "finish_reason": reason, "logprobs": None}
            if self.request.logprobs:
                choice["logprobs"] = {"content": [_logprob(one) for one in row.logprobs], "refusal": None}
            choices.append(choice)
        return self.head(job, "chat.completion") | {"choices": choices, "usage": job.usage()}

    async def chunks(self, job: RunningRequest) -> AsyncIterator[dict[str, Any]]:
        """Yield the response as a stream."""
        body = self.head(job, "chat.completion.chunk", streamed=True)

        def chunk(
            number: int, delta: dict[str, Any], reason: str | None = None, logprobs: Sequence[TokenLogprob] = ()
        ) -> dict[str, Any]:
            content = (
                {"content": [_logprob(one) for one in logprobs], "refusal": None} if self.request.logprobs else None
            )
            choice = {"index": number, "delta": delta, "logprobs": content, "finish_reason": reason}
            return body | {"choices": [choice]}

        texts = [self._answer_text() for _ in job.rows]
        thoughts = [self._thought_text() for _ in job.rows]
        sent = [0] * len(job.rows)
        for number in range(len(job.rows)):
            yield chunk(number, {"role": "assistant", "content": ""})
        async for number, written in self.service.pieces(job):
            row, text = job.rows[number], texts[number]
            ended = written.finish_reason is not None
            thought, content = thoughts[number].add(written.text)
            if ended:
                last_thought, last = thoughts[number].finish()
                thought, content = thought + last_thought, content + last
            content = text.add(content) + (text.finish() if ended else "")
            logprobs, sent[number] = row.logprobs[sent[number] : written.end], written.end
            if thought:
                yield chunk(number, {"reasoning_content": thought}, None, logprobs)
                logprobs = []
            if content or logprobs:
                yield chunk(number, {"content": content}, None, logprobs)
            if text.calls:
                yield chunk(number, {"tool_calls": calls_json(text.calls, indexed=True)})
            if ended:
                called = bool(text.calls) and written.finish_reason == "stop"
                yield chunk(number, {}, "tool_calls" if called else written.finish_reason)
        if self.with_usage:
            yield body | {"choices": [], "usage": job.usage()}

    def _answer_text(self) -> AnswerText:
        return AnswerText(self.fmt, self.asked, parallel=self.request.parallel_tool_calls is not False)

    def _thought_text(self) -> ThoughtText:
        """Return the splitter of thoughts; a constrained generation has none."""
        held = self.asked is not None or _wants_json(self.request)
        marks = None if held else self.service.template(self.request.model).thought_marks
        return ThoughtText(marks, opened=self.opened)


def check_depth(request: ChatRequest | ScoreMessages) -> None:
    """Refuse deeply nested fields, with which the chat template would overflow the stack."""
    fields: list[tuple[str, Any]] = [("chat_template_kwargs", request.chat_template_kwargs)]
    fields += [
        (f"tools.{n}.function.parameters", tool.function.parameters) for n, tool in enumerate(request.tools or ())
    ]
    for n, message in enumerate(request.messages or ()):
        fields += [(f"messages.{n}.tool_calls", call.function.arguments) for call in message.tool_calls or ()]
    for place, value in fields:
        if is_deeper(value):
            raise ApiError(400, f"{place}: nested more than {MAX_DEPTH} levels deep.", param=place)


def _wants_json(request: ChatRequest) -> bool:
    return request.response_format is not None and request.response_format.type == "json_object"


def _conversation(request: ChatRequest, pictures: Pictures, *, sees: bool) -> Conversation:
    if request.messages[-1].role == "assistant":
        raise ApiError(
            400, "messages: the last message is the assistant's; there is nothing to respond to.", param="messages"
        )
    return conversation_of(request, request.messages, shown_tools(request), pictures, sees=sees)


def conversation_of(
    request: ChatRequest | ScoreMessages,
    given: Sequence[ChatMessage],
    tools_given: Any,
    pictures: Pictures,
    *,
    sees: bool,
) -> Conversation:
    """Return the messages of a request as a conversation.

    Raises:
        ApiError: They are no conversation, or hold images and `sees` is false.
    """
    rows = [_message(message, pictures, sees=sees) for message in given]
    try:
        messages = parse_messages(rows, "messages", Found())
        check_turns(messages, need_answer=False)
        tools = parse_tools(tools_given)
    except LlmtuneError as err:
        raise ApiError(400, f"messages: {err}.", param="messages") from err
    kwargs = request.chat_template_kwargs or {}
    return Conversation(tuple(messages), tools, tuple(map(Media, pictures.paths)), kwargs)


def _message(message: ChatMessage, pictures: Pictures, *, sees: bool) -> dict[str, Any]:
    content: Any = message.content
    if isinstance(content, list):
        parts = []
        for part in content:
            text = part.refusal if part.type == "refusal" and part.refusal is not None else part.text
            if part.type not in IMAGES and text is not None:
                parts.append(text)
            elif part.type in IMAGES and part.image_url is not None:
                if not sees:
                    raise ApiError(400, "This model does not support images.", param="messages")
                if message.role != "user":
                    raise ApiError(400, "Images are allowed in user messages only.", param="messages")
                pictures.add(part.image_url if isinstance(part.image_url, str) else part.image_url.url)
                parts.append("<image>")
            else:
                missing = "image_url" if part.type in IMAGES else "text"
                raise ApiError(400, f"messages: a part of type {part.type} has no {missing}.", param="messages")
        content = "".join(parts)
    if content is None and message.refusal is not None:
        content = message.refusal
    row: dict[str, Any] = {"role": message.role, "content": content}
    row |= message.model_dump(include=PASSED_ON, exclude_none=True)
    if message.tool_calls:
        row["content"] = content or ""
    return row


def _logprob(one: TokenLogprob) -> dict[str, Any]:
    top = [_token(token, logprob) for token, logprob in one.top]
    return _token(one.token, one.logprob) | {"top_logprobs": top}


def _token(text: str, logprob: float) -> dict[str, Any]:
    """Return logprobs in the API's format. `bytes` is null where the token is part of a character."""
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": None if HALF in text else list(text.encode())}


@dataclasses.dataclass
class TextCompletion(_Asked):
    request: CompletionRequest
    prompts: list[Encoded]
    echoes: list[str]

    @classmethod
    def prepare(cls, service: Service, request: CompletionRequest) -> TextCompletion:
        """Check and tokenise.

        Raises:
            ApiError: The request is invalid.
        """
        service.adapter(request.model)
        if request.echo and request.logprobs is not None:
            raise ApiError(400, "echo with logprobs is not supported: prompts are not scored.", param="echo")
        stops = service.template(request.model).stop_token_ids
        if not set(request.stop_token_ids or ()) <= set(stops):
            raise ApiError(400, f"stop_token_ids: this model's are {stops}.", param="stop_token_ids")
        if request.return_token_ids and request.stream:
            raise ApiError(400, "return_token_ids with stream is not supported.", param="return_token_ids")
        if request.best_of not in (None, request.n or 1):
            raise ApiError(400, "best_of is not supported, unless it equals n.", param="best_of")
        prompt: Any = request.prompt
        texts = [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else list(prompt)
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

    def start(self) -> RunningRequest:
        n = self.number_of_answers()
        sampling = self.service.sampling(self.request, self.prompts, self.request.max_tokens or 16)
        if self.request.logprobs is not None:
            sampling = dataclasses.replace(sampling, top_logprobs=self.request.logprobs)
        if self.request.return_token_ids:
            sampling = dataclasses.replace(sampling, is_rollout=True)
        return self.service.start(self.request.model, self.prompts, sampling, n, kind="cmpl")

    async def whole(self, job: RunningRequest) -> dict[str, Any]:
        """Return the response body."""
        choices = [
            self._choice(number, self._echo(job, number) + row.text, row.finish_reason, row.logprobs) | self._ids(row)
            for number, row in enumerate(await self.finished(job))
        ]
        return self.head(job, "text_completion") | {"choices": choices, "usage": job.usage()}

    async def chunks(self, job: RunningRequest) -> AsyncIterator[dict[str, Any]]:
        """Yield the response as a stream."""
        body = self.head(job, "text_completion", streamed=True)
        sent = [0] * len(job.rows)
        begun = [False] * len(job.rows)
        async for number, written in self.service.pieces(job):
            text = written.text if begun[number] else self._echo(job, number) + written.text
            begun[number] = True
            logprobs, sent[number] = job.rows[number].logprobs[sent[number] : written.end], written.end
            yield body | {"choices": [self._choice(number, text, written.finish_reason, logprobs)]}
        if self.with_usage:
            yield body | {"choices": [], "usage": job.usage()}

    def _ids(self, row: Generation) -> dict[str, Any]:
        """Return the ids in vLLM's fields."""
        if not self.request.return_token_ids:
            return {}
        stop = [] if row.stop_token is None else [row.stop_token]
        return {"token_ids": [*row.ids, *stop], "prompt_token_ids": row.prompt.input_ids}

    def _echo(self, job: RunningRequest, number: int) -> str:
        return self.echoes[number // (len(job.rows) // len(self.prompts))]

    def _choice(self, number: int, text: str, reason: str | None, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        entries = None if self.request.logprobs is None else _text_logprobs(logprobs)
        return {"index": number, "text": text, "logprobs": entries, "finish_reason": reason}


def _text_logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
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
