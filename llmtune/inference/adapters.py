"""Several LoRA adapters of one base model, each with its template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from llmtune.arguments.service import BASE_NAME
from llmtune.templates.chat import ChatTemplate

BASE = BASE_NAME
"""The name of the model without any adapter."""


def peft_name(name: str) -> str:
    """Return PEFT's name of an adapter, which becomes part of module names, so it has no dots."""
    return name.replace("_", "__").replace(".", "_dot_")


class Adapters:
    """LoRA adapters of one base model.

    Args:
        model: A PEFT model with the adapters, or a model without adapters.
        template: Template of the model as loaded, whose name is None.
        others: Name -> template, of every further adapter, and BASE for the base model.
        main: PEFT's name of the adapter of None.
    """

    def __init__(
        self, model: Any, template: ChatTemplate, others: Mapping[str, ChatTemplate] | None = None, main: str = ""
    ) -> None:
        self.model = model
        self._templates: dict[str | None, ChatTemplate] = {None: template}
        self._templates.update(others or {})
        self._main = main
        self._active: str | None = None

    def __iter__(self) -> Iterator[str]:
        """The names besides None."""
        return (name for name in self._templates if name is not None)

    def template(self, name: str | None) -> ChatTemplate:
        return self._templates[name]

    @contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """Activate the adapter `name`. Not thread-safe."""
        if len(self._templates) == 1:
            yield
        elif name == BASE or (name is None and not self._main):
            with self.model.disable_adapter():
                yield
        else:
            wanted = self._main if name is None else peft_name(name)
            if self._active != wanted:
                self.model.set_adapter(wanted, inference_mode=True)
                self._active = wanted
            yield
