"""Which family of 2023 a configuration is of, and what its modules are called natively. No torch here."""

from __future__ import annotations

from collections.abc import Iterable

from llmtune.models.ports.baichuan import PORTS as BAICHUAN
from llmtune.models.ports.chatglm import PORT as CHATGLM
from llmtune.models.ports.internlm import PORT as INTERNLM
from llmtune.models.ports.internlm2 import PORT as INTERNLM2
from llmtune.models.ports.port import Config, Port
from llmtune.models.ports.qwen_v1 import PORT as QWEN
from llmtune.models.ports.xverse import PORT as XVERSE

PORTS = (QWEN, *BAICHUAN, CHATGLM, INTERNLM, INTERNLM2, XVERSE)


def find_port(config: Config) -> Port | None:
    """The port of a config.json, given as read. None: transformers loads the folder by itself, or not at all."""
    return next((port for port in PORTS if port.recognises(config)), None)


def native_target_modules(config: Config, names: Iterable[str]) -> tuple[str, ...]:
    """The last parts of native modules that hold what modules of an original checkpoint, named likewise, held.

    `c_attn` of Qwen gives q_proj, k_proj and v_proj, `attn.c_proj` gives o_proj. Other names, and all where there is
    no port, stay.
    """
    port = find_port(config)
    if port is None or port.modules is None:
        return tuple(names)
    modules = port.modules(port.config(config))
    found: dict[str, None] = {}  # a set that keeps the order
    for name in names:
        natives = [native for source, native in modules.items() if f".{source}".endswith(f".{name}")] or [name]
        for native in natives:
            found |= dict.fromkeys(
                path.rpartition(".")[2] for path in ([native] if isinstance(native, str) else native)
            )
    return tuple(found)
