"""Generation engine: from prompts to responses, with the template's stop rules, for every caller."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from llmtune.arguments.service import BASE_NAME
from llmtune.inference.answering import generations, with_seeds
from llmtune.inference.decode_forward import pad_left
from llmtune.inference.generation import Generation, Written
from llmtune.inference.sampling import RowSampler, Sampling
from llmtune.inference.texts import response_text
from llmtune.templates.chat import ChatTemplate
from llmtune.templates.tools import tool_format_of
from llmtune.types import Conversation, Encoded

BEAM_ROWS = 4
"""Rows of a batch of beam search, unless a flag says otherwise: each has several beams."""
ENCODED_ROWS = 4096
"""Rows whose prompts are encoded at a time."""


class Engine:
    """A model with its template, ready to generate.

    Args:
        model: Any causal language model of transformers, or a PEFT model of one.
        template: Bound to the model's tokenizer.
        adapters: Adapters by name; None where the model has none to choose from.
    """

    def __init__(self, model: Any, template: ChatTemplate, adapters: Adapters | None = None) -> None:
        self.model = model
        self.template = template
        self.tokenizer = template.tokenizer
        self.adapters = adapters or Adapters(model, template)
        self.busy = threading.Lock()
        """Held by a batch of generations; whoever changes the model holds it too."""
        self.moves_rows: bool | None = None
        """Whether rows may join and leave a batch; None until tried."""

    def answer(
        self,
        rows: Sequence[Conversation],
        sampling: Sampling,
        *,
        batch_size: int | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[str]:
        """Yield responses in the order of the rows; one that ends makes room for the next.

        Args:
            batch_size: Rows at a time; None: as many as memory allows.
            seeds: One per row, for sampling; None: drawn from torch's global generator.
        """
        if sampling.num_beams > 1:
            size = batch_size or BEAM_ROWS
            for start in range(0, len(rows), size):
                yield from self._search(self.template.prompts(rows[start : start + size]), sampling)
            return
        for start in range(0, len(rows), ENCODED_ROWS):
            part = slice(start, start + ENCODED_ROWS)
            written = self._started(rows[part], with_seeds(sampling, len(rows[part]), seeds and seeds[part]))
            yield from (row.text for row in generations(self, written, max_rows=batch_size))

    def _started(self, rows: Sequence[Conversation], settings: Sequence[Sampling]) -> list[Generation]:
        template = self.template
        return [
            Generation(prompt, sampling_with_tools(row, one, template), template, frame=template.answer_frame)
            for row, prompt, one in zip(rows, template.prompts(rows), settings, strict=True)
        ]

    def stream(
        self, row: Conversation, sampling: Sampling, *, adapter: str | None = None
    ) -> Generator[str, None, None]:
        """Yield the pieces of one response as they are generated. Closing the iterator stops the generation."""
        template = self.adapters.template(adapter)
        pieces: queue.SimpleQueue[Written] = queue.SimpleQueue()
        sampling = sampling_with_tools(row, sampling, template)
        written = Generation(
            template.prompts([row])[0], sampling, template, frame=template.answer_frame, on_piece=pieces.put
        )
        problems: list[BaseException] = []

        def generate() -> None:
            try:
                self.advance([written], adapter=adapter)
            except BaseException as err:
                problems.append(err)
                written.finish("cancelled")

        worker = threading.Thread(target=generate, daemon=True)
        worker.start()
        try:
            finished = False
            while not finished:
                piece = pieces.get()
                finished = piece.finish_reason is not None
                if piece.text:
                    yield piece.text
        finally:
            written.cancel()
            worker.join()
        if problems:
            raise problems[0]

    def advance(
        self, rows: Sequence[Generation], *, adapter: str | None = None, until: Callable[[], bool] | None = None
    ) -> None:
        """Generate rows of one adapter in a batch, each to its end, or all of them until `until` is true.

        A row's tokens so far are prefilled together with its prompt, so that rows of any age can share a batch.
        """
        rows = [row for row in rows if row.finish_reason is None]
        if not rows:
            return
        whole = [Encoded(row.prompt.input_ids + row.ids, media=row.prompt.media) for row in rows]
        length = max(len(prompt.input_ids) for prompt in whole)
        starts = [length - len(prompt.input_ids) for prompt in whole]
        with self.using(adapter):
            options = self._common_options(rows[0].sampling, rows[0].stop_token_ids)
            self.model.generate(
                **self._batch(whole),
                generation_config=GenerationConfig(**options, max_new_tokens=max(row.num_left for row in rows)),
                logits_processor=LogitsProcessorList([RowSampler(rows, starts)]),
                stopping_criteria=StoppingCriteriaList([_Steps(rows, until)]),
            )

    def _search(self, prompts: Sequence[Encoded], sampling: Sampling) -> list[str]:
        """Generate by beam search, which cannot be streamed."""
        batch = self._batch(prompts)
        options: dict[str, Any] = {"generation_config": self.generation_config(sampling)}
        if self.template.stop_strings:
            options |= {"stop_strings": self.template.stop_strings, "tokenizer": self.tokenizer}
        with self.using(None):
            output = self.model.generate(**batch, **options)
        return [response_text(self.template, ids[batch["input_ids"].shape[1] :].tolist()) for ids in output]

    def _batch(self, prompts: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """Return the inputs of `generate`, on the model's device; pixels in its dtype."""
        batch = pad_left([prompt.input_ids for prompt in prompts], self.pad_token_id)
        if self.template.media is not None:
            media = [one for prompt in prompts for one in prompt.media]
            batch |= self.template.media.inputs(media, batch["input_ids"])
        dtype = self.model.dtype
        moved = {name: value.to(self.model.device) for name, value in batch.items()}
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in moved.items()}

    def generation_config(self, sampling: Sampling) -> GenerationConfig:
        """Return the settings as a transformers GenerationConfig, with the template's stop tokens."""
        options = self._common_options(sampling, self.template.stop_token_ids)
        options |= {
            "max_new_tokens": sampling.max_new_tokens,
            "do_sample": sampling.do_sample,
            "repetition_penalty": sampling.repetition_penalty,
            "num_beams": sampling.num_beams,
        }
        if sampling.do_sample:
            options |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        return GenerationConfig(**options)

    def _common_options(self, sampling: Sampling, stop_token_ids: Sequence[int]) -> dict[str, Any]:
        """Return the settings shared by a batch; others would come from the model's own generation_config.json."""
        return {
            "do_sample": False,
            "num_beams": 1,
            "repetition_penalty": 1.0,
            "no_repeat_ngram_size": sampling.no_repeat_ngram_size,
            "pad_token_id": self.pad_token_id,
            "eos_token_id": list(stop_token_ids),
        }

    @property
    def pad_token_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """Hold the model for generation with an adapter. Not reentrant."""
        with self.busy, self.adapters.use(adapter), self._generating():
            yield

    @contextmanager
    def _generating(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.model.train(was_training)


class _Steps(StoppingCriteria):
    """Stopping criteria that appends each row's next token, and marks the finished rows."""

    def __init__(self, rows: Sequence[Generation], until: Callable[[], bool] | None) -> None:
        self.rows = rows
        self.until = until

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        tokens = input_ids[:, -1].tolist()
        ended = [row.finish_reason is not None or row.add(token) for row, token in zip(self.rows, tokens, strict=True)]
        if not all(ended) and self.until is not None and self.until():
            ended = [True] * len(ended)
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


def sampling_with_tools(row: Conversation, sampling: Sampling, template: ChatTemplate) -> Sampling:
    """Return the settings for a row with tools: a call may have another end than a response."""
    tool_format = tool_format_of(template) if row.tools else None
    if tool_format is None or not tool_format.stop_words:
        return sampling
    return replace(sampling, stop=(*sampling.stop, *tool_format.stop_words))


# Several adapters of one base model


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
        self._inner: dict[str, str] = {}
        self._active: str | None = None

    def __iter__(self) -> Iterator[str]:
        """The names besides None."""
        return (name for name in self._templates if name is not None)

    def template(self, name: str | None) -> ChatTemplate:
        return self._templates[name]

    def put(self, name: str, inner: str, model: Any) -> str | None:
        """Add an adapter with the template of the model as loaded, or replace one. Not thread-safe.

        Args:
            inner: PEFT's name of it.
            model: The PEFT model, which may be the first one.

        Returns:
            PEFT's name of the one that had the name.
        """
        self.model = model
        self._templates.setdefault(name, self._templates[None])
        old, self._inner[name] = self._inner.get(name), inner
        self._active = None
        return old

    def drop(self, name: str, model: Any) -> str:
        """Forget an adapter that `put` has added; returns PEFT's name of it. Not thread-safe.

        Args:
            model: The model without it.
        """
        self.model = model
        del self._templates[name]
        self._active = None
        return self._inner.pop(name)

    @contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """Activate the adapter `name`. Not thread-safe."""
        if len(self._templates) == 1:
            yield
        elif name == BASE or (name is None and not self._main):
            with self.model.disable_adapter():
                yield
        else:
            wanted = self._main if name is None else self._inner.get(name) or peft_name(name)
            if self._active != wanted:
                self.model.set_adapter(wanted, inference_mode=True)
                self._active = wanted
            yield
