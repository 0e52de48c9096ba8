"""Checkpoints of dpo and kto are those of ordinary models to the other commands."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmtune import DpoArguments, EvaluateArguments, InferArguments, KtoArguments, dpo, evaluate, infer, kto
from llmtune.arguments.service import ServeArguments
from llmtune.checkpoint import is_reward
from llmtune.data.mixing import get_dataset
from llmtune.inference.inputs import rows_to_answer
from llmtune.inference.load import load_engine
from llmtune.inference.sampling import Sampling
from llmtune.merging.merge import merge_checkpoint
from llmtune.serving.app import load_service
from llmtune.serving.service import Service
from llmtune.types import Conversation, Message

pytestmark = pytest.mark.medium

STAGES: dict[str, Any] = {"dpo": (dpo, DpoArguments), "kto": (kto, KtoArguments)}
KINDS: dict[str, Any] = {"dpo": "pairs", "kto": "labels"}


@pytest.fixture(scope="module", params=STAGES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, _own_cache: None) -> Any:
    """(stage, its checkpoint), on a file that training splits itself."""
    folder = tmp_path_factory.mktemp(request.param)
    rows = [{"prompt": f"question {n}", "chosen": f"answer {n}", "rejected": "no"} for n in range(12)]
    if request.param == "kto":
        rows = [{"query": f"question {n}", "response": f"answer {n}", "label": n % 2 == 0} for n in range(12)]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage, arguments = STAGES[request.param]
    found = stage(
        arguments(
            model_type="llmtune-tiny", dataset=[str(file)], dataset_test_ratio=0.4, batch_size=2, max_steps=2,
            gradient_accumulation_steps=1, learning_rate=1e-2, report_to=["none"], output_dir=str(folder),
        )
    )  # fmt: skip
    return request.param, found.last_checkpoint, file


def test_they_generate_merge_and_are_served(made, tmp_path):
    _, checkpoint, _ = made
    assert not is_reward(checkpoint)
    options: dict[str, Any] = {"ckpt_dir": str(checkpoint), "max_new_tokens": 4, "do_sample": False}
    results = infer(InferArguments(**options, result_dir=str(tmp_path)))
    assert results
    assert all("response" in result for result in results)
    row, sampling = Conversation((Message("user", "question 3"),)), Sampling(max_new_tokens=4, do_sample=False)
    folder = merge_checkpoint(InferArguments(**options, eval_human=True), tmp_path / "merged")
    assert not is_reward(folder)
    answers = [
        "".join(load_engine(InferArguments(ckpt_dir=str(one), eval_human=True)).stream(row, sampling))
        for one in (checkpoint, folder)
    ]
    assert answers[0] == answers[1]
    service = load_service(ServeArguments(**options, port=0))
    try:
        assert isinstance(service, Service)
    finally:
        service.batcher.close()


def test_the_rows_that_training_held_out_are_answered(made, tmp_path):
    """Read as conversations, the same file would be split differently: rows of training would be measured."""
    name, checkpoint, file = made
    _, held = get_dataset([str(file)], dataset_test_ratio=0.4, kind=KINDS[name])
    assert held is not None
    wanted = [record["messages"][-1]["content"] for record in held]
    rows = rows_to_answer(InferArguments(ckpt_dir=str(checkpoint)))
    assert [next(turn.content for turn in row.turns if turn.role == "user") for row in rows] == wanted
    for row in rows:
        number = int(row.turns[0].content.split()[1])
        is_reference = name == "dpo" or number % 2 == 0
        assert (row.turns[-1].content == f"answer {number}") is is_reference
    options: dict[str, Any] = {"metrics": ["exact_match"], "max_new_tokens": 2, "output_dir": str(tmp_path)}
    found = evaluate(EvaluateArguments(ckpt_dir=[str(checkpoint)], **options))
    lines = (tmp_path / next(iter(found)) / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["query"] for line in lines] == wanted
