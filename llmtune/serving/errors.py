"""Errors in the API's format: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from llmtune.utils.logging import get_logger

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
