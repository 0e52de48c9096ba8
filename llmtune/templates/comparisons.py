"""Encode comparisons: the ids of the prompt once, and those of each response behind it.

The ids of a response are those that serving would have sampled behind the prompt's ids: each is encoded as the
conversation that it makes, whose trainable tokens begin where the prompt ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from llmtune.data.image_marks import count_marks
from llmtune.templates.chat import ChatTemplate
from llmtune.types import IGNORE_INDEX, Comparison, Conversation, Encoded, Media


@dataclass(frozen=True, slots=True)
class EncodedResponse:
    """Token ids and labels of a response, equal lengths; labels are IGNORE_INDEX on tool results within it."""

    input_ids: list[int]
    labels: list[int]
    rank: int = 0
    label: bool | None = None


@dataclass(slots=True)
class EncodedComparison:
    """A prompt and its responses, or the `problem` why there is none.

    Attributes:
        num_turns_cut: Turns that were removed from the start of the prompt, to fit the limit.
        is_too_long: Left out: it does not fit even with its last question alone.
        num_plain: Contents of the prompt and a response that spell a control token.
    """

    prompt: list[int] = field(default_factory=list)
    responses: tuple[EncodedResponse, ...] = ()
    margin: float | None = None
    media: tuple[Media, ...] = ()
    num_turns_cut: int = 0
    is_too_long: bool = False
    num_plain: int = 0
    problem: str | None = None

    def joined(self) -> Encoded:
        """Return the ids of the prompt and of each response behind it, in one sequence."""
        ids = [*self.prompt, *(token for one in self.responses for token in one.input_ids)]
        labels = [IGNORE_INDEX] * len(self.prompt) + [label for one in self.responses for label in one.labels]
        return Encoded(ids, labels, self.media)


def encode_comparisons(
    rows: Sequence[Comparison], template: ChatTemplate, limit: int | None = None
) -> list[EncodedComparison]:
    """Encode comparisons in batches.

    Args:
        limit: Most tokens of the prompt with a response. Where the longest response does not fit, the oldest turns of
            the prompt are removed, the same ones for all responses; no response is cut.
    """
    whole = template.copy(template.tokenizer)
    whole.max_length = None
    made: list[EncodedComparison] = [EncodedComparison() for _ in rows]
    waiting = [(index, row, 0) for index, row in enumerate(rows)]
    while waiting:
        encoded = iter(
            whole.encode_rows([row.conversation(at) for _, row, _ in waiting for at in range(len(row.answers))])
        )
        again = []
        for index, row, num_cut in waiting:
            samples: list[Encoded] = []
            problem = None
            num_plain = 0
            for _ in row.answers:
                one = next(encoded)
                num_plain = max(num_plain, one.num_plain)
                problem = problem or one.problem or _not_one_sample(one.samples)
                samples += one.samples[:1]
            found = EncodedComparison(problem=problem) if problem else _joined(row, samples)
            found.num_turns_cut, found.num_plain = num_cut, num_plain
            longest = max((len(one.input_ids) for one in found.responses), default=0)
            if limit is not None and len(found.prompt) + longest > limit:
                shorter = None if template.truncation_strategy == "delete" else without_oldest_turns(row.prompt)
                if shorter is not None:
                    num_cut += len(row.prompt.turns) - len(shorter.turns)
                    again.append((index, replace(row, prompt=shorter), num_cut))
                    continue
                found = EncodedComparison(is_too_long=True, num_turns_cut=num_cut)
            made[index] = found
        waiting = again
    return made


def without_oldest_turns(prompt: Conversation) -> Conversation | None:
    """Return the prompt without its first question and the turns up to the next one; None if that is the last."""
    turns = prompt.turns
    asked = [place for place, turn in enumerate(turns) if turn.role == "user"]
    if len(asked) < 2:
        return None
    kept = turns[asked[1] :]
    head = prompt.messages[: len(prompt.messages) - len(turns)]
    removed = replace(prompt, messages=turns[: asked[1]])
    return replace(prompt, messages=(*head, *kept), media=prompt.media[count_marks(removed) :])


def _not_one_sample(samples: Sequence[Encoded]) -> str | None:
    if len(samples) == 1:
        return None
    return "the template cannot write the turns of a response one after the other" if samples else "a response is empty"


def _joined(row: Comparison, samples: Sequence[Encoded]) -> EncodedComparison:
    borders = [next(at for at, label in enumerate(one.labels) if label != IGNORE_INDEX) for one in samples]
    prompt = samples[0].input_ids[: borders[0]]
    if any(one.input_ids[:border] != prompt for one, border in zip(samples, borders, strict=True)):
        return EncodedComparison(problem="the template writes the prompt differently for its responses")
    responses = tuple(
        EncodedResponse(one.input_ids[border:], one.labels[border:], answer.rank, answer.label)
        for one, border, answer in zip(samples, borders, row.answers, strict=True)
    )
    return EncodedComparison(prompt, responses, row.margin, samples[0].media)
