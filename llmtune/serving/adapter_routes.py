"""`POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`, as in vLLM: a trainer hands its adapter over.

Off unless the server has `--adapter_root`; then with its API key only, and only from below that folder.

Source: https://github.com/vllm-project/vllm/blob/00153c8b7948077ebdfc5bfa14e403da41aaea6d/vllm/entrypoints/openai/models/serving.py
(fields, a name that is taken, the plain text of the answer).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse, Response
from pydantic import Field, StringConstraints

from llmtune.errors import CheckpointError, one_line
from llmtune.inference.engine import BASE
from llmtune.inference.loading import drop_adapter, put_adapter
from llmtune.serving.protocol import ApiError, RequestModel
from llmtune.serving.service import Service
from llmtune.utils.logging import get_logger

MAX_LOADED = 16
"""Adapters that clients may have loaded at a time: each takes memory of the device."""

AdapterName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class LoadRequest(RequestModel):
    """`POST /v1/load_lora_adapter`. `load_inplace`: replace the adapter that has the name."""

    lora_name: AdapterName
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
    load_inplace: bool | None = None


class UnloadRequest(RequestModel):
    """`POST /v1/unload_lora_adapter`."""

    lora_name: AdapterName


def add_adapter_routes(app: FastAPI, service: Service, refusals: dict[int | str, dict[str, Any]]) -> None:
    assert service.args.adapter_root is not None
    root = Path(service.args.adapter_root).resolve()
    root.mkdir(parents=True, exist_ok=True)
    loaded: set[str] = set()

    @app.post("/v1/load_lora_adapter", responses=refusals)
    async def load(body: LoadRequest) -> Response:
        name = body.lora_name
        if name in (*service.models, BASE) and not (body.load_inplace and name in loaded):
            hint = " To replace it, set load_inplace." if name in loaded else ""
            raise ApiError(400, f"The name {name!r} is already in use.{hint}", param="lora_name")
        if name not in loaded and len(loaded) >= MAX_LOADED:
            raise ApiError(400, f"{MAX_LOADED} adapters are loaded: unload one first.", param="lora_name")
        folder = _below(root, body.lora_path)
        is_new = name not in loaded
        loaded.add(name)
        try:
            await run_in_threadpool(_put, service, name, folder)
        except BaseException:
            if is_new:
                loaded.discard(name)
            raise
        service.models[name] = name
        get_logger().info("Loaded the adapter %s from %s.", name, folder)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    @app.post("/v1/unload_lora_adapter", responses=refusals)
    async def unload(body: UnloadRequest) -> Response:
        name = body.lora_name
        if name not in loaded or name not in service.models:
            raise ApiError(404, f"No adapter {name!r} has been loaded.", param="lora_name", code="model_not_found")
        del service.models[name]  # no new request begins with it
        try:
            await run_in_threadpool(_drop, service, name)
        except BaseException:
            service.models[name] = name
            raise
        loaded.discard(name)
        get_logger().info("Unloaded the adapter %s.", name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


def _below(root: Path, path: str) -> Path:
    """Return the folder, with links resolved; a relative one is below the root."""
    try:
        folder = (root / path).resolve()
        is_there = folder.is_relative_to(root) and folder != root and folder.is_dir()
    except (OSError, ValueError):  # a NUL, or a name too long
        is_there = False
    if not is_there:  # the same for both, so that an answer reveals nothing about other folders
        raise ApiError(400, "lora_path is not a folder below the server's --adapter_root.", param="lora_path")
    return folder


def _put(service: Service, name: str, folder: Path) -> None:
    try:
        put_adapter(service.engine, name, folder, wait_s=service.args.request_timeout)
    except CheckpointError as err:
        raise ApiError(400, f"lora_path: {one_line(err)}", param="lora_path") from err
    except TimeoutError:
        raise _busy() from None


def _drop(service: Service, name: str) -> None:
    try:
        drop_adapter(service.engine, name, wait_s=service.args.request_timeout)
    except TimeoutError:
        raise _busy() from None


def _busy() -> ApiError:
    return ApiError(503, "Running generations did not end in time. Try again.", code="busy")
