"""`--suite`: standard benchmarks of EleutherAI's lm-eval harness, on llmtune's inference engine.

The harness provides questions, few-shot examples and scores; llmtune the model and its template.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from llmtune.errors import LlmtuneError, UsageError, one_line
from llmtune.evaluation.results import Scores, claim_folder, write_results
from llmtune.evaluation.scores import ROWS, Likelihood, batches, likelihoods
from llmtune.inference.answering import generations, with_seeds
from llmtune.inference.engine import Engine
from llmtune.inference.generation import Generation
from llmtune.inference.load import load_engine
from llmtune.inference.sampling import Sampling
from llmtune.types import Conversation, Encoded, Message
from llmtune.utils.files import write_json
from llmtune.utils.logging import get_logger
from llmtune.utils.progress import progress_bar

if TYPE_CHECKING:
    from llmtune.arguments.evaluate import EvaluateArguments


def run_suite(args: EvaluateArguments) -> Scores:
    """Return the benchmarks' own scores, as fractions, by `task/metric`.

    Raises:
        UsageError: A benchmark that lm-eval does not know.
    """
    # upstream: lm_eval 0.4.13 lm_eval/utils.py: logs each task and request type
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=args.suite_path)
    unknown = [name for name in args.suite if not manager.match_tasks([name])]
    if unknown:
        raise UsageError(f"--suite {' '.join(unknown)}: lm-eval has no such task. List them: lm-eval ls tasks")
    folder = claim_folder(args, [], "")
    scores: Scores = {}
    for name, checkpoint in args.names().items():
        get_logger().info("Evaluating %s on %s.", name, " ".join(args.suite))
        engine = load_engine(args.arguments_of(checkpoint))
        scores[name] = _run(engine, manager, args, folder / name)
        del engine
        gc.collect()
    write_results(folder, scores, args)
    return scores


def _run(engine: Any, manager: Any, args: EvaluateArguments, folder: Path) -> dict[str, float]:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = simple_evaluate(
            model=EngineLM(
                engine, is_chat=args.suite_chat, batch_size=args.eval_batch_size, max_new_tokens=args.max_new_tokens
            ),
            tasks=list(args.suite),
            task_manager=manager,
            num_fewshot=args.num_fewshot,
            limit=None if args.num_samples == -1 else args.num_samples,
            apply_chat_template=args.suite_chat,
            fewshot_as_multiturn=args.suite_chat,
            system_instruction=args.first.system if args.suite_chat else None,
            use_cache=str(folder / "requests"),  # what was computed is not computed again
            bootstrap_iters=0,
            random_seed=args.seed,
            numpy_random_seed=args.seed,
            torch_random_seed=args.seed,
            fewshot_random_seed=args.seed,
        )
    except (ConnectionError, OSError) as err:
        raise LlmtuneError(
            f"lm-eval cannot download the data of {' '.join(args.suite)}: {one_line(err, 200)}. "
            "Download it on a machine with network access, or give your own tasks with --suite_path."
        ) from err
    assert found is not None
    write_json(folder / "suite.json", {key: found[key] for key in ("results", "versions", "n-samples", "config")})
    write_json(folder / "suite_samples.json", found.get("samples") or {})
    return {
        f"{task}/{metric.removesuffix(',none')}": float(value)
        for task, results in found["results"].items()
        for metric, value in results.items()
        if isinstance(value, int | float) and "stderr" not in metric and "," in metric
    }


# Adapter of an engine to the model interface of lm-eval's harness


class EngineLM(TemplateLM):
    """The harness's model interface over an engine.

    Args:
        is_chat: Whether texts are rendered with the chat template.
        batch_size: Requests at a time; None: ROWS, and as many generations as memory allows.
        max_new_tokens: Limit of a generation, where a task sets none.
    """

    def __init__(self, engine: Engine, *, is_chat: bool, batch_size: int | None, max_new_tokens: int) -> None:
        super().__init__()
        self.engine = engine
        self.tokenizer = engine.tokenizer
        self.is_chat = is_chat
        self.batch_size = batch_size or ROWS
        self.generated_rows = batch_size
        self.max_new_tokens = max_new_tokens
        config = engine.model.config.get_text_config()
        self.max_length = int(getattr(config, "max_position_embeddings", 0) or 4096)

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def tokenizer_name(self) -> str:
        return str(self.engine.template.name)

    def chat_template(self, chat_template: bool | str = False) -> str:
        return str(self.engine.template.name)

    def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        messages = tuple(Message(turn["role"], turn["content"]) for turn in chat_history)
        if add_generation_prompt:
            return self.engine.template.render(Conversation(messages), generation=True)
        # A prefilled response: the text before it, and the response as it is.
        prompt = self.engine.template.render(Conversation(messages[:-1]), generation=True)
        return prompt + messages[-1].content

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return list(self.tokenizer(string, add_special_tokens=bool(add_special_tokens))["input_ids"])

    # upstream: lm_eval 0.4.13 lm_eval/api/model.py: counts the line break that ends a prompt as part of the response
    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not self.is_chat:
            return super()._encode_pair(context, continuation)
        prompt, whole = self.tok_encode(context), self.tok_encode(context + continuation)
        if whole[: len(prompt)] == prompt:
            return prompt, whole[len(prompt) :]
        return prompt, self.tok_encode(continuation)

    # Likelihoods

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        lengths = [len(prompt) + len(continuation) for _, prompt, continuation in requests]
        found: dict[int, Likelihood] = {}
        for batch in batches(lengths, self.batch_size, "Likelihoods", quiet=disable_tqdm):
            pairs = [self._fitting(*requests[index][1:]) for index in batch]
            for index, one in zip(batch, likelihoods(self.engine.model, pairs, self._pad), strict=True):
                found[index] = one
                if (key := requests[index][0]) is not None:
                    self.cache_hook.add_partial("loglikelihood", key, (one.logprob, one.is_greedy))
        return [(found[index].logprob, found[index].is_greedy) for index in range(len(requests))]

    def _fitting(self, prompt: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Truncate to the model's context, from the start of the prompt; one token always precedes the continuation."""
        continuation = continuation[-(self.max_length - 1) :]
        kept = prompt[-(self.max_length - len(continuation)) :]
        return kept or [self.prefix_token_id], continuation

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts in windows that do not overlap, each after the last token of the previous one."""
        found = []
        for request in progress_bar(requests, desc="Texts", quiet=disable_tqdm, leave=False):
            (text,) = request.args
            ids = self.tok_encode(text)
            size = self.max_length - 1
            windows = [(ids[start - 1 : start] or [self.prefix_token_id], ids[start : start + size])
                       for start in range(0, len(ids), size)]  # fmt: skip
            total = 0.0
            for start in range(0, len(windows), self.batch_size):
                part = windows[start : start + self.batch_size]
                total += sum(one.logprob for one in likelihoods(self.engine.model, part, self._pad))
            found.append(total)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return found

    # Text

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return generations, up to the first of a task's stop texts or the template's stop token."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(index)
        found: dict[int, str] = {}
        with progress_bar(total=len(requests), desc="Answers", quiet=disable_tqdm, leave=False) as bar:
            for group in groups.values():
                prompts = {index: self.tok_encode(requests[index].args[0]) for index in group}
                order = sorted(group, key=lambda index: -len(prompts[index]))
                answers = self._generate([prompts[index] for index in order], dict(requests[group[0]].args[1]))
                for index, answer in zip(order, answers, strict=True):
                    found[index] = answer
                    self.cache_hook.add_partial("generate_until", requests[index].args, answer)
                    bar.update(1)
        return [found[index] for index in range(len(requests))]

    def _generate(self, prompts: list[list[int]], settings: dict[str, Any]) -> Iterator[str]:
        until = settings.get("until") or []
        stops = [text for text in ([until] if isinstance(until, str) else until) if text]
        count = int(settings.get("max_gen_toks") or settings.get("max_new_tokens") or self.max_new_tokens)
        temperature = float(settings.get("temperature") or 0)
        sampling = Sampling(
            max_new_tokens=count,
            do_sample=bool(settings.get("do_sample")) and temperature > 0,
            temperature=temperature or 1.0,
            top_p=float(settings.get("top_p") or 1.0),
            stop=tuple(stops),
        )
        room = max(self.max_length - count, 1)
        kept = [Encoded((prompt or [self.prefix_token_id])[-room:]) for prompt in prompts]
        rows = [
            Generation(prompt, one, self.engine.template)
            for prompt, one in zip(kept, with_seeds(sampling, len(kept)), strict=True)
        ]
        for row in generations(self.engine, rows, max_rows=self.generated_rows):
            yield _cut(self.tokenizer.decode(row.ids, skip_special_tokens=True), stops)

    @property
    def _pad(self) -> int:
        return int(self.tokenizer.pad_token_id)


def _cut(text: str, stops: list[str]) -> str:
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text
