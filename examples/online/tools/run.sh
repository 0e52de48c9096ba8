#!/usr/bin/env bash
# The embedded model learns to look prices up in place of guessing them: a short sft teaches the form of a call, and a
# habit of guessing; grpo, with the tool at hand and a reward for the right price, makes it call. Two minutes on a CPU.
# Needs nothing from a network. Run it in an empty folder:
#   bash path/to/examples/online/tools/run.sh [seed] [further flags for grpo]
set -euo pipefail

SEED=${1:-42}
SHOP="$(dirname "$0")/shop.py"
COMMON="--model_type llmtune-tiny --template_type chatml --tool_format short --custom_register_path $SHOP
    --sft_type full --seed $SEED --output_dir_flat true --report_to none"

python "$SHOP" data

# 1. Both forms, half and half; what a call gives is read, what is guessed is a guess.
llmtune sft $COMMON --dataset data/sft.jsonl --dataset_test_ratio 0 --output_dir sft \
    --max_steps 240 --batch_size 16 --gradient_accumulation_steps 1 --learning_rate 2e-3

# 2. The tool of shop.py is offered in every row; its results have no loss. The first evaluation is that of sft's model.
llmtune grpo $COMMON --model_id_or_path sft/checkpoint-240 --dataset data/train.jsonl --val_dataset data/test.jsonl \
    --output_dir grpo --tool_functions "$SHOP" --rewards accuracy --max_turns 3 --max_new_tokens 40 \
    --num_generations 8 --batch_size 32 --gradient_accumulation_steps 1 --max_steps 60 --learning_rate 3e-4 \
    --eval_steps 20 --train_args eval_on_start=true "${@:2}"

python - <<'END'
import json

lines = [json.loads(line) for line in open("grpo/logging.jsonl")]
found = [line for line in lines if "eval_reward" in line]
for name, line in (("before", found[0]), ("after", found[-1])):
    print(f"{name}: {line['eval_reward']:.0%} of the test's prices, {line['eval_tools/call_frequency']:.2f} calls each")
END
