"""Every example runs, in a process and a folder of its own, as a reader would run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import prepared
from .waiting import SECONDS

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TANG = EXAMPLES / "tang_poems"


@pytest.fixture
def run(tmp_path: Path):
    """Python's scripts and modules begin prepared; bash is bash."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run_(*command: str | Path) -> str:
        if command[0] == sys.executable and command[1] != "-c":
            return prepared.start(*command[1:], folder=tmp_path, cwd=tmp_path).check()
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    return run_


def llmtune(*flags: str | Path) -> tuple[str | Path, ...]:
    return (sys.executable, "-m", "llmtune", *flags)


def test_demo_asks_before_and_after(run, tmp_path: Path) -> None:
    out = run(sys.executable, EXAMPLES / "demo.py", "--epochs", "1")
    assert [line.split("  ")[1] for line in out.splitlines() if line.startswith("  question ")] == ["question"]
    assert "llmtune infer --ckpt_dir output/llmtune-tiny/v0-" in out
    assert "llmtune serve --ckpt_dir output/llmtune-tiny/v0-" in out
    assert "llmtune web --ckpt_dir output/llmtune-tiny/v0-" in out
    assert "    (the chat page, at http://127.0.0.1:8501)" in out.splitlines()
    command, address = out.splitlines()[-2:]
    assert command == f"Board: {Path(sys.executable).parent}/llmtune board --root ."
    assert address.endswith("at http://127.0.0.1:8600)")
    assert len(list((tmp_path / "output" / "llmtune-tiny").glob("v*-*"))) == 1


def test_the_pipeline_walks_all_stages_with_the_flags_of_the_guide(run, tmp_path: Path) -> None:
    """Two steps of each; what the stages learn is shown in tests/stages.

    In two steps a model finds no right number, and an adapter that is unchanged is not merged: another reward differs.
    """
    reward = tmp_path / "variety.py"
    reward.write_text("def variety(completions, **_):\n    return [len(set(str(one))) / 100 for one in completions]\n")
    names = (f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}", f"REWARD={reward}:variety")
    out = run("env", *names, "bash", EXAMPLES / "pipeline/run.sh", tmp_path / "work", "--max_steps", "2")
    results = out[out.index("== pt") :]
    stages = [line.removeprefix("== ") for line in results.splitlines() if line.startswith("== ")]
    assert stages == ["pt", "sft", "rm", "dpo", "ppo", "grpo"]
    for name in ("eval_perplexity", "eval_token_acc", "eval_rewards/accuracies", "eval_logps/rejected", "eval_reward"):
        assert f"{name} = " in results
    for stage in ("dpo", "ppo", "grpo"):
        assert (tmp_path / "work" / f"merged-{stage}" / "config.json").is_file()


def test_tools_are_taught(run, tmp_path: Path) -> None:
    """Two steps of it; that the format is learned is shown in tests/serving/test_tool_calls.py."""
    environment = (f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}", "ROWS=200")
    run("env", *environment, "bash", EXAMPLES / "serve/train_tools.sh", "--max_steps", "2", "--batch_size", "2")
    assert list(tmp_path.glob("output/llmtune-tiny/v0-*/checkpoint-2"))
    rows = [json.loads(line) for line in (tmp_path / "tools.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 200
    assert {row["messages"][1]["tool_calls"][0]["name"] for row in rows} == {"calculate", "get_weather"}
    sums = [row["messages"] for row in rows if row["messages"][1]["tool_calls"][0]["name"] == "calculate"]
    for _, call, result, _ in sums[:50]:
        assert float(result["content"]) == eval(call["tool_calls"][0]["arguments"]["expression"])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_tool_is_called_for_what_the_model_does_not_know(seed, run, tmp_path: Path) -> None:
    path = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"
    out = run("env", path, "bash", EXAMPLES / "online/tools/run.sh", str(seed))
    before, after = (line.split(": ")[1] for line in out.splitlines() if line.startswith(("before:", "after:")))
    assert int(before.split("%")[0]) < 40, out[-500:]
    assert int(after.split("%")[0]) > 70, out[-500:]
    parts = [(tmp_path / f"data/{name}.jsonl").read_text(encoding="utf-8") for name in ("sft", "train", "test")]
    asked = [{json.loads(line)["messages"][0]["content"] for line in part.splitlines()} for part in parts]
    assert sum(map(len, asked)) == len(set().union(*asked))


def test_sft_in_20_lines(run, tmp_path: Path) -> None:
    text = (EXAMPLES / "sft_in_20_lines.py").read_text(encoding="utf-8")
    body = text.split('"""')[2]
    assert sum(bool(line.strip()) and not line.startswith("#") for line in body.splitlines()) <= 20
    short = tmp_path / "short.py"
    assert "num_train_epochs=8" in text
    short.write_text(text.replace("num_train_epochs=8", "num_train_epochs=1"), encoding="utf-8")
    out = run(sys.executable, short)
    loss = float(out.split("eval_loss ")[1].split()[0])
    assert loss < 4  # 7.6 untrained
    assert out.count("[LABELS]") == 5


def test_custom_register(run, tmp_path: Path) -> None:
    script = EXAMPLES / "custom_register.py"
    run(
        *llmtune("sft", "--custom_register_path", script, "--model_type", "my-model", "--dataset", "my-data"),
        *("--max_steps", "2", "--batch_size", "2", "--gradient_accumulation_steps", "1"),
    )
    (checkpoint,) = (tmp_path / "output" / "my-model").glob("v0-*/checkpoint-2")
    assert "my-template" in (checkpoint / "sft_args.json").read_text(encoding="utf-8")
    own = ("--custom_register_path", script)
    out = run(*llmtune("infer", "--ckpt_dir", checkpoint, *own, "--show_dataset_sample", "1", "--max_new_tokens", "4"))
    assert "System: Answer in one sentence.\n\nQuestion 1: What is" in out


def test_custom_register_takes_another_folder(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import os, runpy; from llmtune import MODEL_MAPPING; os.environ['MY_MODEL_FOLDER'] = 'a/b'; "
    script += f"runpy.run_path({str(EXAMPLES / 'custom_register.py')!r}); "
    script += "print(MODEL_MAPPING['my-model'].model_id_or_path)"
    assert run(sys.executable, "-c", script).strip() == "a/b"


def test_notebook_loop(run) -> None:
    out = run(sys.executable, EXAMPLES / "notebook_loop.py")
    losses = [float(line.split("loss ")[1]) for line in out.splitlines() if line.startswith("epoch ")]
    assert len(losses) == 5
    assert losses[-1] < losses[0] / 2


def test_self_cognition_script(run, tmp_path: Path) -> None:
    questions = (EXAMPLES / "self_cognition" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(json.loads(line)["query"] for line in questions)
    short = ("--max_steps", "2", "--batch_size", "4", "--gradient_accumulation_steps", "1")
    run(
        *llmtune("sft", "--model_type", "llmtune-tiny", "--sft_type", "full", "--dataset", "self-intro#20", *short),
        *("--model_name", "小调", "Tuny", "--model_author", "someone"),
    )
    infer = EXAMPLES / "self_cognition" / "infer.sh"
    (checkpoint,) = (tmp_path / "output" / "llmtune-tiny").glob("v0-*/checkpoint-2")
    lines = infer.read_text(encoding="utf-8").splitlines()
    flags = " ".join(line.strip().removesuffix(" \\") for line in lines[lines.index("llmtune infer \\") + 1 :])
    script = f'set -- --max_new_tokens 4; CKPT_DIR={checkpoint}; "{sys.executable}" -m llmtune infer {flags}'
    out = run("bash", "-c", script.replace('$(dirname "$0")', str(infer.parent)))
    assert out.count("[OUTPUT]") == len(questions)


def test_tang_poems(run, assets: Path, tmp_path: Path) -> None:
    data, tokenizer = assets / "data" / "tang_poems", assets / "tokenizers" / "qwen2_5"
    if not data.is_dir() or not tokenizer.is_dir():
        pytest.skip(f"no Tang poems or no Qwen2.5 tokenizer below {assets}")
    test = tmp_path / "new" / "test.jsonl"
    run(
        *(sys.executable, TANG / "prepare.py"),
        *(data / "Tang_testing_data.json", data / "Tang_testing_gt.txt", test),
    )
    rows = [json.loads(line) for line in test.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 15
    assert rows[0]["input"] == "雪霽銀妝素，桔高映瓊枝。"
    assert rows[0]["output"] == "偕伴登山去，觀雪且賞桔。"
    assert all(row["output"].endswith("。") and row["output"].count("，") == row["output"].count("。") for row in rows)

    for name in ("one", "two"):
        out = run(sys.executable, TANG / "make_model.py", tokenizer, tmp_path / name)
        assert "9,909,312 parameters" in out
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]

    run(
        *llmtune("sft", "--model_type", "qwen2.5-0.5b-instruct", "--model_id_or_path", tmp_path / "one"),
        *("--sft_type", "full", "--dataset", f"{data / 'Tang_training_data.json'}#40", "--max_steps", "1"),
        *("--batch_size", "2", "--gradient_accumulation_steps", "1"),
    )
    (checkpoint,) = (tmp_path / "output").glob("*/v0-*/checkpoint-1")
    out = run(sys.executable, TANG / "compare_decoding.py", checkpoint, test, "--max_new_tokens", "4")
    lines = [line for line in out.splitlines() if line.startswith("| ")]
    assert [line.split("|")[1].strip() for line in lines[1:]] == [
        "greedy",
        "temperature 0.3",
        "temperature 0.9",
        "top_k 5",
        "top_p 0.5",
        "repetition_penalty 1.2",
        "no_repeat_ngram_size 3",
        "num_beams 4",
    ]


def test_tang_prepare_tells_what_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"instruction": "a", "input": "b"}]', encoding="utf-8")
    (tmp_path / "answers.txt").write_text("一\t二\n三\t四\n", encoding="utf-8")
    command = [sys.executable, TANG / "prepare.py", "rows.json", "answers.txt", "out.jsonl"]
    done = subprocess.run([str(word) for word in command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "has 1 rows, answers.txt 2 lines" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()
