"""The server process: start-up, start message, graceful shutdown."""

from __future__ import annotations

import json
import signal
from types import FrameType

import uvicorn

from llmtune.arguments.serve import ServeArguments
from llmtune.inference.load import load_engine
from llmtune.serving.app import create_app
from llmtune.serving.patience import PatientProtocol
from llmtune.serving.service import Service
from llmtune.utils.addresses import listen, shown_host
from llmtune.utils.logging import get_logger
from llmtune.utils.quiet import quiet_libraries

__all__ = ["Server", "serve"]


def serve(args: ServeArguments) -> None:
    """Load the model and serve requests until SIGTERM or Ctrl-C, which finishes running requests.

    Raises:
        LlmtuneError: Any user error: see `llmtune.errors`.
    """
    quiet_libraries()
    allow_many_connections()
    log = get_logger()
    args.tell()
    listener = listen(args.host, args.port)  # before the weights, so that a port in use fails at once
    with listener:
        service = Service(load_engine(args, args.adapter_args), args)
        log.info("%s", start_message(service, listener.getsockname()[1]))
        try:
            Server(service).run(sockets=[listener])
        finally:
            service.batcher.close()
    log.info("The server has stopped; running requests were finished.")


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


def start_message(service: Service, port: int) -> str:
    """Return the start message: address, models, and a request to try."""
    args = service.args
    address = f"http://{shown_host(args.host)}:{port}"
    body = json.dumps({"model": args.main_name, "messages": [{"role": "user", "content": "Who are you?"}]})
    key = "" if args.api_key is None else ' -H "Authorization: Bearer $LLMTUNE_API_KEY"'
    return (
        f"Serving {', '.join(service.models)} at {address}/v1 (Ctrl-C stops it). Try:\n"
        f"  curl {address}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'"
    )


class Server(uvicorn.Server):
    """Uvicorn with a graceful shutdown: it refuses new requests with 503 and finishes the running ones."""

    def __init__(self, service: Service) -> None:
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
