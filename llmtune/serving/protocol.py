"""Schemas of requests. Fields and ranges are those of OpenAI's API, plus those of vLLM.

A thought is `reasoning_content`, as in DeepSeek's API and vLLM's; requests may call it `reasoning`.

Source: https://platform.openai.com/docs/api-reference (chat, completions); https://docs.vllm.ai (top_k,
repetition_penalty as further fields of the body); https://docs.vllm.ai/en/v0.9.0/serving/openai_compatible_server.html
(/v1/score, /classify).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, model_validator
from starlette.exceptions import HTTPException

from llmtune.utils.logging import get_logger

MAX_SEED = 2**63 - 1
MAX_STOPS = 64
MAX_MESSAGES = 10_000
MAX_TOOLS = 512
MAX_SCORES = 4096


def _shape_of(value: Any) -> str:
    """Discriminate between text and list, so that an error refers to the intended type."""
    return "parts[]" if isinstance(value, list) else "text[]"


StopText = Annotated[str, StringConstraints(max_length=1000)]
StopWords = Annotated[
    Annotated[StopText, Tag("text[]")] | Annotated[list[StopText], Field(max_length=MAX_STOPS), Tag("parts[]")],
    Discriminator(_shape_of),
]
Token = Annotated[int, Field(ge=0)]


class RequestModel(BaseModel):
    """Drop nulls, also in unknown fields."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict) or None not in data.values():
            return data
        return {key: value for key, value in data.items() if value is not None}


class StreamOptions(RequestModel):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class GenerationRequest(RequestModel):
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


class FunctionCall(RequestModel):
    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(RequestModel):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class ImageUrl(RequestModel):
    url: str
    detail: str | None = None


class ContentPart(RequestModel):
    """Content part. `input_text` and the like are names of OpenAI's newer API; `cache_control` is ignored."""

    type: Literal["text", "input_text", "output_text", "refusal", "image_url", "input_image"]
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | str | None = None
    detail: str | None = None
    annotations: list[Any] | None = None
    cache_control: Any = None


Content = Annotated[
    Annotated[str, Tag("text[]")] | Annotated[list[ContentPart], Tag("parts[]")], Discriminator(_shape_of)
]


class ChatMessage(RequestModel):
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


class Function(RequestModel):
    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(RequestModel):
    type: Literal["function"]
    function: Function
    cache_control: Any = Field(None, exclude=True)


class NamedFunction(RequestModel):
    name: str


class ToolChoice(RequestModel):
    type: Literal["function"]
    function: NamedFunction


class ResponseFormat(RequestModel):
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
    """`POST /v1/completions`: the text as it is, without a template.

    `return_token_ids`: the ids of prompt and response, the stop token included, and log-probabilities of the
    distribution that each was drawn from. `stop_token_ids`: those of the template only. `cache_salt`: ignored, since no
    prompt is cached between requests.
    """

    prompt: str | list[Token] | list[str] | list[list[Token]]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1)
    suffix: None = None
    return_token_ids: bool | None = None
    stop_token_ids: list[Token] | None = Field(None, max_length=MAX_STOPS)
    cache_salt: Annotated[str, StringConstraints(max_length=1024)] | None = None


# Scores of a reward model


ScoreTexts = Annotated[
    Annotated[str, Tag("text[]")] | Annotated[list[str], Field(min_length=1, max_length=MAX_SCORES), Tag("parts[]")],
    Discriminator(_shape_of),
]


class ScoreMessages(RequestModel):
    """A conversation whose last response is scored."""

    model: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1, max_length=MAX_MESSAGES)
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    chat_template_kwargs: dict[str, Any] | None = None
    use_activation: bool | None = None
    user: str | None = None


class ScoreRequest(ScoreMessages):
    """`POST /v1/score`: a conversation, or prompts (`text_1`) with responses (`text_2`): 1 to 1, 1 to N or N to N."""

    text_1: ScoreTexts | None = None
    text_2: ScoreTexts | None = None


class ClassifyRequest(ScoreMessages):
    """`POST /classify`: a conversation, or texts as they are, without a template."""

    input: ScoreTexts | None = None


# Errors in the API's format: {"error": {"message", "type", "param", "code"}}


TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
RETRY_AFTER_S = "1"


class ApiError(Exception):
    """Error response to a request."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(
    status: int, message: str, *, param: str | None = None, code: str | None = None, headers: Any = None
) -> JSONResponse:
    headers = dict(headers or {})
    if status in (429, 503):
        headers["Retry-After"] = RETRY_AFTER_S
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(status, message, param=param, code=code), status, headers)


def handle_errors(app: FastAPI) -> None:
    """Make every failure of an app return this format."""
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


async def _refused(request: Request, err: Any) -> JSONResponse:
    return error_response(err.status, str(err), param=err.param, code=err.code)


async def _invalid(request: Request, err: Any) -> JSONResponse:
    """Return one of pydantic's errors: for a field with several types, that of the type that matches best."""
    errors = err.errors()
    start = [part for part in errors[0]["loc"] if not _is_shape(part)]
    same = [one for one in errors if [part for part in one["loc"] if not _is_shape(part)][: len(start)] == start]
    first = max(same, key=lambda one: len(one["loc"]))
    place = ".".join(str(part) for part in first["loc"] if part != "body" and not _is_shape(part)) or None
    message = "The body is not JSON." if first["type"] == "json_invalid" else f"{place or 'body'}: {first['msg']}."
    if first["type"] == "extra_forbidden":
        message = f"{place}: unknown field."
    return error_response(400, message, param=place, code=first["type"])


def _is_shape(part: str | int) -> bool:
    """Return whether a part of an error's location is a type of a field, not the name of a field."""
    return isinstance(part, str) and (part in ("str", "int", "float", "bool", "ToolChoice") or "[" in part)


async def _http(request: Request, err: Any) -> JSONResponse:
    texts = {404: f"{request.url.path} does not exist.", 405: f"{request.url.path} does not allow {request.method}."}
    return error_response(err.status_code, texts.get(err.status_code, str(err.detail)), headers=err.headers)


async def _unexpected(request: Request, err: Exception) -> JSONResponse:
    get_logger().error("%s failed: %s: %s", request.url.path, type(err).__name__, err)
    return error_response(500, "The server failed at this request; see its log.")
