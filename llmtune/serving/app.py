"""The routes of the OpenAI-compatible server, and of a server of scores."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from llmtune import __version__
from llmtune.arguments.service import ServeArguments
from llmtune.inference.load import load_engine, load_scorer
from llmtune.serving.adapter_routes import add_adapter_routes
from llmtune.serving.completions import ChatCompletion, TextCompletion
from llmtune.serving.limits import Gate, PatientProtocol
from llmtune.serving.protocol import ApiError, ChatRequest, CompletionRequest, error_body, handle_errors
from llmtune.serving.scores import ScoreService, add_score_routes
from llmtune.serving.served import Served
from llmtune.serving.service import RunningRequest, Service
from llmtune.serving.wire import BoundedRoute
from llmtune.utils.logging import get_logger, quiet_libraries
from llmtune.utils.system import listen, shown_host

CLIENT_GONE = 499
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request is invalid."},
    401: {"description": "The API key is missing or wrong."},
    403: {"description": "The Host header is not this machine's, and the server has no key."},
    404: {"description": "The model does not exist."},
    408: {"description": "The request did not arrive in time."},
    413: {"description": "The body is too large."},
    429: {"description": "The queue is full."},
    503: {"description": "The server is shutting down."},
    504: {"description": "The request timed out."},
}


def create_app(service: Service | ScoreService) -> FastAPI:
    """Return the app of a model that generates, or of one that scores."""
    app = _app_of(service)
    if isinstance(service, ScoreService):
        add_score_routes(app, service, REFUSALS)
    else:
        _add_generation(app, service)
    return app


def _app_of(service: Service | ScoreService) -> FastAPI:
    """Return the app with the routes that every model has."""
    # The pages of /docs would load their scripts from other hosts.
    app = FastAPI(title="llmtune", version=__version__, docs_url=None, redoc_url=None)
    app.router.route_class = BoundedRoute
    app.state.max_messages = service.max_messages
    handle_errors(app)
    app.add_middleware(Gate, service=service)

    @app.get("/health")
    async def health() -> JSONResponse:
        ok = not service.batcher.is_closed
        return JSONResponse({"status": "ok" if ok else "shutting down"}, 200 if ok else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service, name) for name in service.models]}

    @app.get("/v1/models/{name:path}", responses=REFUSALS)
    async def model(name: str) -> dict[str, Any]:
        service.adapter(name)
        return _model(service, name)

    return app


def _add_generation(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", responses=REFUSALS)
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await _answer(service, await run_in_threadpool(ChatCompletion.prepare, service, body), request)

    @app.post("/v1/completions", responses=REFUSALS)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await _answer(service, await run_in_threadpool(TextCompletion.prepare, service, body), request)

    if service.args.adapter_root is not None:
        add_adapter_routes(app, service, REFUSALS)


async def _answer(service: Service, asked: ChatCompletion | TextCompletion, request: Request) -> Response:
    job = asked.start()
    if asked.request.stream:
        return _EventStream(service, job, _events(asked.chunks(job)))
    whole = asyncio.ensure_future(asked.whole(job))
    gone = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(whole.result()) if whole.done() else Response(status_code=CLIENT_GONE)
    finally:
        gone.cancel()
        whole.cancel()
        service.cancel(job)  # also if it never started to wait


class _EventStream(StreamingResponse):
    """Return server-sent events; a client that disconnects frees its slot, even before the first of them."""

    def __init__(self, service: Service, job: RunningRequest, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.service = service
        self.job = job

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.service.cancel(self.job)


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    """Yield server-sent events. A failure after the first byte can only be reported inside the stream."""
    try:
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
    except ApiError as err:
        yield f"data: {json.dumps(error_body(err.status, str(err), param=err.param, code=err.code))}\n\n"
    yield "data: [DONE]\n\n"


def _model(service: Served, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": service.started, "owned_by": "llmtune"}


# The server process: start-up, start message, graceful shutdown


def serve(args: ServeArguments) -> None:
    """Load the model and serve requests until SIGTERM or Ctrl-C, which finishes running requests.

    Raises:
        LlmtuneError: Any user error: see `llmtune.errors`.
    """
    quiet_libraries()
    allow_many_connections()
    log = get_logger()
    args.tell("the scores of a reward model" if args.scores else "generation")
    listener = listen(args.host, args.port)  # before the weights, so that a port in use fails at once
    with listener:
        service = load_service(args)
        log.info("%s", start_message(service, listener.getsockname()[1]))
        try:
            Server(service).run(sockets=[listener])
        finally:
            service.batcher.close()
    log.info("The server has stopped; running requests were finished.")


def load_service(args: ServeArguments) -> Service | ScoreService:
    """Load the model, and make what serves it."""
    if args.scores:
        return ScoreService(load_scorer(args), args)
    return Service(load_engine(args, args.adapter_args), args)


def allow_many_connections() -> None:
    """Raise the limit on open sockets to the maximum: the usual 1,024 are soon held by idle clients."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def start_message(service: Service | ScoreService, port: int) -> str:
    """Return the start message: address, models, and a request to try."""
    args = service.args
    address = f"http://{shown_host(args.host)}:{port}"
    messages = [{"role": "user", "content": "Who are you?"}]
    path = "score" if isinstance(service, ScoreService) else "chat/completions"
    if path == "score":
        messages += [{"role": "assistant", "content": "I am an assistant."}]
    body = json.dumps({"model": args.main_name, "messages": messages})
    key = "" if args.api_key is None else ' -H "Authorization: Bearer $LLMTUNE_API_KEY"'
    return (
        f"Serving {', '.join(service.models)} at {address}/v1 (Ctrl-C stops it). Try:\n"
        f"  curl {address}/v1/{path} -H 'Content-Type: application/json'{key} -d '{body}'"
    )


class Server(uvicorn.Server):
    """Uvicorn with a graceful shutdown: it refuses new requests with 503 and finishes the running ones."""

    def __init__(self, service: Service | ScoreService) -> None:
        config = uvicorn.Config(
            create_app(service),
            http=PatientProtocol,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
        )
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.service.batcher.is_closed:  # asked twice
            self.should_exit = self.force_exit = True
            return
        waits = self.service.batcher.num_running + self.service.batcher.num_waiting
        get_logger().info("%s: finishing %d generations. Repeat to stop at once.", signal.Signals(sig).name, waits)
        self.service.batcher.refuse()

    async def on_tick(self, counter: int) -> bool:
        if self.service.batcher.is_closed and self.service.is_idle:
            self.should_exit = True
        return bool(await super().on_tick(counter))
