"""Generation: prompts in, answers out. What a template says about stopping holds here, for every caller."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from llmtune.templates.chat import ChatTemplate
from llmtune.types import Conversation, Encoded

if TYPE_CHECKING:
    from llmtune.arguments.groups import GenerationArguments

__all__ = ["Engine", "Sampling", "pad_left"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen. The fields are those of transformers' GenerationConfig."""

    max_new_tokens: int = 2048
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    no_repeat_ngram_size: int = 0

    @classmethod
    def of(cls, args: GenerationArguments) -> Sampling:
        """The generation flags. A temperature of 0 means the most likely token, as users of servers expect."""
        return cls(
            max_new_tokens=args.max_new_tokens,
            do_sample=args.do_sample and args.temperature > 0,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            repetition_penalty=args.repetition_penalty,
            num_beams=args.num_beams,
            no_repeat_ngram_size=args.no_repeat_ngram_size,
        )


class Engine:
    """A model, ready to answer.

    Args:
        model: Any causal language model of transformers, or a PEFT model around one.
        template: Bound to the model's tokenizer.
    """

    def __init__(self, model: Any, template: ChatTemplate) -> None:
        self.model = model
        self.template = template
        self.tokenizer = template.tokenizer

    def answer(self, rows: Sequence[Conversation], sampling: Sampling, *, batch_size: int = 1) -> Iterator[str]:
        """Answers in the order of the rows, `batch_size` at a time, padded on the left."""
        for start in range(0, len(rows), batch_size):
            yield from self._generate(self.template.prompts(rows[start : start + batch_size]), sampling)

    def _generate(self, prompts: Sequence[Encoded], sampling: Sampling) -> list[str]:
        batch = self._batch(prompts)
        with self._generating():
            output = self.model.generate(**batch, **self._options(sampling))
        return [self._text(ids[batch["input_ids"].shape[1] :].tolist()) for ids in output]

    def stream(self, row: Conversation, sampling: Sampling) -> Iterator[str]:
        """One answer, in pieces as they are written. Closing the iterator stops the generation."""
        batch = self._batch(self.template.prompts([row]))
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        cancelled = threading.Event()
        problems: list[BaseException] = []

        def generate() -> None:
            options = self._options(sampling)
            try:
                with self._generating():
                    stopping = StoppingCriteriaList([_Cancelled(cancelled)])
                    self.model.generate(**batch, **options, streamer=streamer, stopping_criteria=stopping)
            except BaseException as err:
                problems.append(err)
                streamer.end()

        worker = threading.Thread(target=generate, daemon=True)
        worker.start()
        try:
            yield from _without_stops(streamer, self.template.stop_strings)
        finally:
            cancelled.set()
            worker.join()
        if problems:
            raise problems[0]

    def _batch(self, prompts: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """What `generate` takes, on the model's device; pixels in its dtype."""
        batch = pad_left([prompt.input_ids for prompt in prompts], self._pad_token_id)
        if self.template.images is not None:
            paths = [path for prompt in prompts for path in prompt.images]
            batch |= self.template.images.inputs(paths, batch["input_ids"])
        dtype = self.model.dtype
        moved = {name: value.to(self.model.device) for name, value in batch.items()}
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in moved.items()}

    def generation_config(self, sampling: Sampling) -> GenerationConfig:
        """The settings as transformers has them, with the template's stop tokens."""
        options: dict[str, Any] = {
            "max_new_tokens": sampling.max_new_tokens,
            "do_sample": sampling.do_sample,
            "repetition_penalty": sampling.repetition_penalty,
            "num_beams": sampling.num_beams,
            "no_repeat_ngram_size": sampling.no_repeat_ngram_size,
            "pad_token_id": self._pad_token_id,
            "eos_token_id": self.template.stop_token_ids,
        }
        if sampling.do_sample:
            options |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        return GenerationConfig(**options)

    def _options(self, sampling: Sampling) -> dict[str, Any]:
        options: dict[str, Any] = {"generation_config": self.generation_config(sampling)}
        if self.template.stop_strings:
            options |= {"stop_strings": self.template.stop_strings, "tokenizer": self.tokenizer}
        return options

    def _text(self, ids: list[int]) -> str:
        stops = set(self.template.stop_token_ids)
        end = next((index for index, token in enumerate(ids) if token in stops), len(ids))
        text = str(self.tokenizer.decode(ids[:end], skip_special_tokens=True))
        return _cut_at(text, self.template.stop_strings)

    @property
    def _pad_token_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    @contextmanager
    def _generating(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.model.train(was_training)


def pad_left(prompts: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Prompts as generation needs them: all end at the same place. `input_ids` and `attention_mask`, [B, T]."""
    length = max(map(len, prompts))
    ids = [[pad_token_id] * (length - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


class _Cancelled(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


def _without_stops(pieces: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
    """Hold back what may be the beginning of a stop word; end at a whole one."""
    held = ""
    for piece in pieces:
        held += piece
        cut = _cut_at(held, stops)
        if cut != held:
            yield cut
            return
        keep = max((size for stop in stops for size in range(1, len(stop)) if held.endswith(stop[:size])), default=0)
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held:
        yield held


def _cut_at(text: str, stops: Sequence[str]) -> str:
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
