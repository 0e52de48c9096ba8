"""infer(): generate responses for a dataset, or chat."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import set_seed

from llmtune.arguments.checks import check_images
from llmtune.arguments.infer import InferArguments
from llmtune.errors import DataError
from llmtune.inference.chat import chat
from llmtune.inference.engine import Engine
from llmtune.inference.inputs import merged_first, result_file_of, rows_to_answer
from llmtune.inference.load import load_engine
from llmtune.inference.sampling import Sampling
from llmtune.inference.score_rows import score_rows
from llmtune.inference.texts import split_answer
from llmtune.metrics import text_metrics
from llmtune.models.info import MODEL_MAPPING
from llmtune.templates.chat import ChatTemplate
from llmtune.templates.media import MediaError
from llmtune.templates.parity import upstream_messages
from llmtune.templates.tools import At, ToolFormat, tool_format_of
from llmtune.types import Conversation, Message
from llmtune.utils.files import write_json
from llmtune.utils.logging import get_logger, quiet_libraries


def infer(args: InferArguments) -> list[InferResult]:
    """Generate responses for the validation rows of a dataset, or chat (`eval_human`); a reward model scores responses.

    Returns:
        One dict per response, in the order of the rows; for a chat, its turns; of a reward model, see `score_rows`.

    Raises:
        LlmtuneError: Any user error: see `llmtune.errors`.
    """
    quiet_libraries()
    if args.scores:
        return score_rows(args)
    args.tell()
    rows = [] if args.eval_human else rows_to_answer(args)
    if any(row.media for row in rows):
        assert args.model_type is not None
        check_images(args, MODEL_MAPPING[args.model_type])
    result_file = None if args.eval_human else result_file_of(args)
    if args.merge_lora_and_save:
        args = merged_first(args)
    set_seed(args.seed)
    engine = load_engine(args)
    sampling = Sampling.of(args)
    if args.save_generation_config and args.ckpt_dir is not None:
        engine.generation_config(sampling).save_pretrained(args.ckpt_dir)
    if args.eval_human:
        return chat(engine, sampling, stream=args.stream)
    assert result_file is not None
    return _answer_rows(engine, sampling, readable_rows(rows, engine, args), args, result_file)


def readable_rows(rows: list[Conversation], engine: Engine, args: InferArguments) -> list[Conversation]:
    """Return the rows whose images can be read; for a text model, all rows."""
    log, reader = get_logger(), engine.template.media
    num_with_images = sum(bool(row.media) for row in rows)
    if reader is None:
        if num_with_images:
            log.warning("%d rows name images, but this model takes text only: the images are ignored.", num_with_images)
        return rows
    sizes = reader.measure(one for row in rows for one in row.media)
    problems = {one: size for one, size in sizes.items() if isinstance(size, MediaError)}
    if not problems:
        return rows
    kept = [row for row in rows if not problems.keys() & set(row.media)]
    text = f"{len(rows) - len(kept)} of {len(rows)} rows have an image that cannot be read; first: "
    text += str(next(iter(problems.values())))
    if args.strict or not kept:
        raise DataError(f"{text}. Fix them.")
    log.warning("%s. They are skipped (--strict true makes this fatal).", text)
    return kept


def _answer_rows(
    engine: Engine, sampling: Sampling, rows: list[Conversation], args: InferArguments, file: Path
) -> list[InferResult]:
    results: list[InferResult] = []
    started = time.perf_counter()
    with file.open("w", encoding="utf-8") as out:
        for row, answer in zip(rows, _answers(engine, sampling, rows, args), strict=True):
            result = result_of(row, answer, engine.template)
            out.write(json.dumps(result, ensure_ascii=False) + "\n")
            out.flush()
            if "label" in result:
                sys.stdout.write(f"[LABELS]{result['label']}\n")
            sys.stdout.write("-" * 80 + "\n")
            results.append(result)
    log = get_logger()
    log.info("%d responses in %.1f s: %s", len(results), time.perf_counter() - started, file)
    labelled = [result for result in results if "label" in result]
    if labelled:
        found = text_metrics(*zip(*map(scored_pair, labelled), strict=True))
        write_json(file.with_name(file.name.replace("infer_result", "infer_metrics")).with_suffix(".json"), found)
        log.info("%s", "  ".join(f"{name} {value:.2f}" for name, value in found.items()))
    return results


def _answers(engine: Engine, sampling: Sampling, rows: list[Conversation], args: InferArguments) -> Iterator[str]:
    """Yield responses in order, printed as they are generated: streamed one by one, or each as it is whole."""
    streams = args.streams_rows and sampling.num_beams == 1
    answers = iter(()) if streams else engine.answer(rows, sampling, batch_size=args.infer_batch_size)
    for row in rows:
        sys.stdout.write(f"[PROMPT]{engine.template.render(row, generation=True)}[OUTPUT]")
        if streams:
            pieces = []
            for piece in engine.stream(row, sampling):
                sys.stdout.write(piece)
                sys.stdout.flush()
                pieces.append(piece)
            answer = "".join(pieces)
        else:
            answer = next(answers)
            sys.stdout.write(answer)
        sys.stdout.write("\n")
        yield answer


# Records of responses in result files


InferResult = dict[str, Any]
"""`query`, `response`, `history` (pairs), `system` (the rendered one), and `label` where the row has a response.

Where the template writes thoughts, `response` and `label` are without them, and `reasoning_content` is the thought. A
row with tools also has `tools` and `messages`, the conversation before the response in OpenAI's format, and the parsed
response: `content` and `tool_calls`.
"""


def result_of(row: Conversation, answer: str, template: ChatTemplate) -> InferResult:
    """Return the record of one response."""
    turns = list(row.turns)
    wanted = turns.pop() if turns and turns[-1].role == "assistant" else None
    marks = template.thought_marks
    opened = turns[:1] != [] and template.opens_thought(row)
    thought, answer = split_answer(answer, marks, opened=opened)
    if wanted is not None and marks is not None and wanted.reasoning is None and marks.close in wanted.content:
        wanted = replace(wanted, content=marks.split(wanted.content, opened=True)[1])
    uses_tools = bool(row.tools) or any(turn.role == "tool" for turn in turns)
    query = turns[-1].content if turns else ""
    result: InferResult = {"query": query, "response": answer, "history": [], "system": template.system_of(row)}
    if thought is not None:
        result["reasoning_content"] = thought
    if not uses_tools:
        pairs = zip(turns[:-1:2], turns[1:-1:2], strict=False)
        result["history"] = [[question.content, earlier.content] for question, earlier in pairs]
        return result if wanted is None else result | {"label": wanted.content}
    tool_format = tool_format_of(template)
    result |= {"tools": list(row.tools), "messages": upstream_messages(Conversation(tuple(turns)))}
    if tool_format is not None:
        parsed = tool_format.parse(answer)
        calls = [{"name": call.name, "arguments": call.arguments} for call in parsed.calls]
        result |= {"content": parsed.content, "tool_calls": calls}
    return result if wanted is None else result | {"label": _label(turns, wanted, tool_format)}


def scored_pair(result: InferResult) -> tuple[str, str]:
    """Return (generated, reference) as the same kind of text: calls as written, responses without thoughts."""
    plain = "content" in result and not result["tool_calls"]
    return result["content" if plain else "response"], result["label"]


def _label(turns: list[Message], wanted: Message, tool_format: ToolFormat | None) -> str:
    if not wanted.tool_calls or tool_format is None:
        return wanted.content
    num_calls = sum(len(turn.tool_calls) for turn in turns)
    at = At(num_calls, after_results=bool(turns) and turns[-1].role == "tool")
    pieces = tool_format.write_calls(wanted.content, wanted.tool_calls, at)
    return "".join(str(piece.content) for piece in pieces if piece.from_data)  # control tokens are not decoded
