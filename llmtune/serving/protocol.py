"""Schemas of requests. Fields and ranges are those of OpenAI's API, plus those of vLLM.

A thought is `reasoning_content`, as in DeepSeek's API and vLLM's; requests may call it `reasoning`.

Source: https://platform.openai.com/docs/api-reference (chat, completions); https://docs.vllm.ai (top_k,
repetition_penalty as further fields of the body).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, model_validator

MAX_SEED = 2**63 - 1
MAX_STOPS = 64
MAX_MESSAGES = 10_000
MAX_TOOLS = 512


def _shape_of(value: Any) -> str:
    """Discriminate between text and list, so that an error refers to the intended type."""
    return "parts[]" if isinstance(value, list) else "text[]"


StopText = Annotated[str, StringConstraints(max_length=1000)]
StopWords = Annotated[
    Annotated[StopText, Tag("text[]")] | Annotated[list[StopText], Field(max_length=MAX_STOPS), Tag("parts[]")],
    Discriminator(_shape_of),
]
Token = Annotated[int, Field(ge=0)]


class _Model(BaseModel):
    """Drop nulls, also in unknown fields."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict) or None not in data.values():
            return data
        return {key: value for key, value in data.items() if value is not None}


class StreamOptions(_Model):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class GenerationRequest(_Model):
    """Fields shared by chats and completions. None: the server's flags apply."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: int | None = Field(None, ge=-1)
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] | None = Field(
        None, max_length=1000
    )
    n: int | None = Field(None, ge=1)
    stop: StopWords | None = None
    seed: int | None = Field(None, ge=-MAX_SEED, le=MAX_SEED)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None


class FunctionCall(_Model):
    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(_Model):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class ImageUrl(_Model):
    url: str
    detail: str | None = None


class Part(_Model):
    """Content part. `input_text` and the like are names of OpenAI's newer API; `cache_control` is ignored."""

    type: Literal["text", "input_text", "output_text", "refusal", "image_url", "input_image"]
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | str | None = None
    detail: str | None = None
    annotations: list[Any] | None = None
    cache_control: Any = None


Content = Annotated[Annotated[str, Tag("text[]")] | Annotated[list[Part], Tag("parts[]")], Discriminator(_shape_of)]


class ChatMessage(_Model):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    cache_control: Any = None


class Function(_Model):
    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Model):
    type: Literal["function"]
    function: Function
    cache_control: Any = Field(None, exclude=True)


class NamedFunction(_Model):
    name: str


class ToolChoice(_Model):
    type: Literal["function"]
    function: NamedFunction


class ResponseFormat(_Model):
    type: Literal["text", "json_object"]


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`: the text as it is, without a template."""

    prompt: str | list[Token] | list[str] | list[list[Token]]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1)
    suffix: None = None
