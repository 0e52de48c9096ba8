"""Write a Qwen2 of about 10 million parameters with random weights beside a real Qwen2.5 tokenizer.

The tokenizer's folder needs tokenizer.json and tokenizer_config.json; every Qwen2.5 checkpoint has them.

    python examples/tang_poems/make_model.py path/to/Qwen2.5-0.5B-Instruct tang/model
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

SEED = 20240229
VOCAB_SIZE = 151_936  # what Qwen2.5 checkpoints have: the tokenizer's 151,665, rounded up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path, help="folder of a Qwen2.5 tokenizer")
    parser.add_argument("output", type=Path, help="folder to write")
    paths = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(paths.tokenizer)
    torch.manual_seed(SEED)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCAB_SIZE,
            hidden_size=64,
            intermediate_size=176,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            tie_word_embeddings=True,  # nearly all the weights are the embedding: two of them would be 20 million
            initializer_range=0.05,
            bos_token_id=None,
            eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
            pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        )
    )
    model.save_pretrained(paths.output)
    tokenizer.save_pretrained(paths.output)
    print(f"{model.num_parameters():,} parameters in {paths.output}")


if __name__ == "__main__":
    main()
