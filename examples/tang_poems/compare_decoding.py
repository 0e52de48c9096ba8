"""Answer the test rows under several ways of choosing tokens, and print them side by side as a markdown table.

The checkpoint is loaded once. ROUGE-L compares with the poet, distinct-2 is the share of different pairs of characters:
low where a model repeats itself.

    python examples/tang_poems/compare_decoding.py CHECKPOINT tang/test.jsonl
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from transformers import set_seed

from llmtune import InferArguments, get_dataset
from llmtune.data.canonical import from_record
from llmtune.inference.load import load_engine
from llmtune.inference.sampling import Sampling
from llmtune.metrics import text_metrics, words

SETTINGS = {
    "greedy": {},
    "temperature 0.3": {"do_sample": True, "temperature": 0.3},
    "temperature 0.9": {"do_sample": True, "temperature": 0.9},
    "top_k 5": {"do_sample": True, "top_k": 5},
    "top_p 0.5": {"do_sample": True, "top_p": 0.5},
    "repetition_penalty 1.2": {"repetition_penalty": 1.2},
    "no_repeat_ngram_size 3": {"no_repeat_ngram_size": 3},
    "num_beams 4": {"num_beams": 4},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder of a run's checkpoint")
    parser.add_argument("rows", type=Path, help="rows with answers, as prepare.py writes them")
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--sample", type=int, default=0, help="number of the row whose answers are shown")
    options = parser.parse_args()

    # The checkpoint says which model and template it needs.
    engine = load_engine(InferArguments(ckpt_dir=options.checkpoint))
    rows, _ = get_dataset(str(options.rows), dataset_test_ratio=0)
    conversations = [from_record(row) for row in rows]
    wanted = [conversation.turns[-1].content for conversation in conversations]

    print(f"| setting | ROUGE-L | distinct-2 | seconds | the answer to {opening(conversations[options.sample])} |")
    print("|---|---:|---:|---:|---|")
    for name, setting in SETTINGS.items():
        set_seed(42)
        started = time.perf_counter()
        sampling = Sampling(max_new_tokens=options.max_new_tokens, **setting)
        answers = list(engine.answer(conversations, sampling, batch_size=len(conversations)))
        rouge = text_metrics(answers, wanted)["rouge-l"]
        seconds = time.perf_counter() - started
        poem = answers[options.sample].replace("\n", " ").replace("|", " ")
        print(f"| {name} | {rouge:.2f} | {distinct(answers):.3f} | {seconds:.1f} | {poem} |", flush=True)


def opening(conversation) -> str:
    return conversation.turns[0].content.split("\n")[-1]


def distinct(answers: list[str]) -> float:
    """Different pairs of neighbouring characters, as a share of all pairs of all answers."""
    pairs = [pair for answer in answers for pair in zip(words(answer), words(answer)[1:], strict=False)]
    return len(set(pairs)) / max(len(pairs), 1)


if __name__ == "__main__":
    main()
