"""What `make demo` runs: fine-tune the embedded model, and ask it three questions before and after.

Nothing is downloaded. A second run makes a new v<N> folder below output/llmtune-tiny.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import sys
import time
import unicodedata
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a model this small gains nothing from a second thread

QUESTIONS = ("What is the capital of France?", "日本的首都是哪里?", "Who are you?")
NAME, AUTHOR = ["小调", "Tuny"], ["本机的主人", "the owner of this machine"]  # the Chinese form and the other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--output_dir", default="output")
    parser.add_argument("--web", action="store_true", help="Open the chat page at the end.")
    options = parser.parse_args()

    started = time.perf_counter()
    print("llmtune demo: a model of 2 million random weights learns a few hundred facts and who it is.\n", flush=True)
    from llmtune import SftArguments, sft  # importing torch takes a few seconds; say something before

    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    print("[1/3] Asking the untrained model", flush=True)
    before = ask(folder)

    print("[2/3] Fine-tuning it", flush=True)
    result = sft(
        SftArguments(
            model_type="llmtune-tiny",
            sft_type="full",
            dataset=["tiny-qa", "self-intro"],
            model_name=NAME,
            model_author=AUTHOR,
            num_train_epochs=options.epochs,
            batch_size=16,
            gradient_accumulation_steps=1,
            learning_rate=1e-3,
            logging_steps=50,
            eval_strategy="epoch",
            save_strategy="epoch",
            output_dir=options.output_dir,
        )
    )
    if result.interrupted or result.checkpoint is None:
        raise SystemExit(130)

    print("\n[3/3] Asking the tuned model", flush=True)
    after = ask(folder, ckpt_dir=str(result.checkpoint))
    table([("question", "before", "after"), *zip(QUESTIONS, before, after, strict=True)])

    checkpoint = shown(result.checkpoint)
    print(f"\nThat took {time.perf_counter() - started:.0f} s. The run's folder is {shown(result.output_dir)}:")
    print("its report.md tells what ran, images/ has the curves.\n\nWhat to type next (`. .venv/bin/activate` first):")
    print(f"  llmtune infer --ckpt_dir {checkpoint} --eval_human true --do_sample false")
    print("  llmtune sft --help")
    where_next(str(checkpoint), folder, opens=options.web)


def where_next(checkpoint: str, folder: Path, *, opens: bool) -> None:
    """How to start server, chat page and board, and where they are then; with `opens`, start the page."""
    extras = {"web": "streamlit", "serve": "uvicorn", "board": "nicegui"}
    missing = [name for name, package in extras.items() if importlib.util.find_spec(package) is None]
    page, server = f"llmtune web --ckpt_dir {checkpoint}", f"llmtune serve --ckpt_dir {checkpoint}"
    if missing:
        print(f"  pip install -e '.[{','.join(missing)}]'")
    print(f"  {server}\n    (the server, at http://127.0.0.1:8000/v1; examples/serve/ has clients)")
    print(f"  {page}\n    (the chat page, at http://127.0.0.1:8501)")
    root = "." if folder.resolve().is_relative_to(Path.cwd()) else folder
    print(f"\nBoard: {shown(Path(sys.executable).parent)}/llmtune board --root {root}", flush=True)
    print("    (this run and the next ones in the browser, at http://127.0.0.1:8600)", flush=True)
    if opens:
        from llmtune.utils.processes import replace_process

        replace_process([sys.executable, "-m", *page.split()])


def ask(folder: Path, **checkpoint: str) -> list[str]:
    """The most likely answers, of a checkpoint or of the model as it comes. infer() prints them too: not here."""
    from llmtune import InferArguments, infer

    file = folder / "demo_questions.jsonl"
    rows = (json.dumps({"query": question}, ensure_ascii=False) for question in QUESTIONS)
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    arguments = InferArguments(
        model_type="llmtune-tiny",
        val_dataset=[str(file)],
        do_sample=False,
        max_new_tokens=32,
        result_dir=str(folder),
        **checkpoint,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        return [str(answer["response"]) for answer in infer(arguments)]


def table(rows: list[tuple[str, str, str]]) -> None:
    cells = [[short(text, limit) for text, limit in zip(row, (32, 28, 60), strict=True)] for row in rows]
    widths = [max(map(columns, column)) for column in zip(*cells, strict=True)]
    print()
    for number, row in enumerate(cells):
        padded = (text + " " * (width - columns(text)) for text, width in zip(row, widths, strict=True))
        print("  " + "  ".join(padded).rstrip())
        if number == 0:
            print("  " + "  ".join("-" * width for width in widths))


def short(text: str, limit: int) -> str:
    """One line of what a terminal can show; random weights write all sorts of bytes."""
    text = " ".join("".join(c if c.isprintable() and c != "\ufffd" else " " for c in text).split())
    while columns(text) > limit:
        text = text.removesuffix("...")[:-1] + "..."
    return text or "(nothing)"


def columns(text: str) -> int:
    """Width in a terminal, where Chinese characters take two columns."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def shown(path: Path) -> Path:
    """Relative to the current folder where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    main()
