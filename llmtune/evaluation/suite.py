"""`--suite`: standard benchmarks of EleutherAI's lm-eval harness, on llmtune's inference engine.

The harness provides questions, few-shot examples and scores; llmtune the model and its template.
"""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtune.errors import LlmtuneError, UsageError, one_line
from llmtune.evaluation.results import Scores, claim_folder, write_results
from llmtune.inference.load import load_engine
from llmtune.utils.files import write_json
from llmtune.utils.logging import get_logger
from llmtune.utils.system import need

if TYPE_CHECKING:
    from llmtune.arguments.evaluate import EvaluateArguments


def run_suite(args: EvaluateArguments) -> Scores:
    """Return the benchmarks' own scores, as fractions, by `task/metric`.

    Raises:
        MissingPackageError: lm-eval is not installed. UsageError: A benchmark that it does not know.
    """
    need("lm_eval", "--suite", extra="eval", name="lm-eval")
    from lm_eval.tasks import TaskManager

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
    from lm_eval.evaluator import simple_evaluate

    from llmtune.evaluation.harness import EngineLM

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
    samples = found.get("samples") or {}
    write_json(folder / "suite_samples.json", samples)
    return {
        f"{task}/{metric.removesuffix(',none')}": float(value)
        for task, results in found["results"].items()
        for metric, value in results.items()
        if isinstance(value, int | float) and "stderr" not in metric and "," in metric
    }
