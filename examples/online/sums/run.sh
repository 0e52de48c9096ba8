#!/usr/bin/env bash
# The embedded model learns sums: sft on right and wrong results alike teaches the form, and that the result is near;
# grpo, or another loss, then rewards the right one among its own responses. Three minutes on a CPU, in an empty folder:
#   bash path/to/examples/online/sums/run.sh [loss] [seed] [further flags for grpo]
set -euo pipefail

LOSS=${1:-grpo}
SEED=${2:-42}
COMMON="--model_type llmtune-tiny --seed $SEED --output_dir_flat true --report_to none"

python "$(dirname "$0")/data.py" > mixed.jsonl
llmtune sft $COMMON --dataset mixed.jsonl --dataset_test_ratio 0 --sft_type full --output_dir sft --max_steps 260 \
    --batch_size 32 --gradient_accumulation_steps 1 --learning_rate 2e-3

# The first evaluation is that of sft's model, on sums that neither stage trains on.
llmtune grpo $COMMON --model_id_or_path sft/checkpoint-260 --dataset tiny-sums --output_dir rl --loss $LOSS --beta 0 \
    --rewards accuracy --lora_target_modules ALL --lora_rank 32 --lora_alpha 64 --max_new_tokens 6 --num_generations 8 \
    --batch_size 128 --gradient_accumulation_steps 2 --max_steps 80 --learning_rate 1e-3 --lr_scheduler_type constant \
    --eval_temperature 1 --eval_steps 20 --logging_steps 5 --train_args eval_on_start=true "${@:3}"

python - <<'END'
import json

lines = [json.loads(line) for line in open("rl/logging.jsonl")]
held_out = [line["eval_reward"] for line in lines if "eval_reward" in line]
sampled = [line["reward"] for line in lines if "reward" in line]
print(f"right results of held-out sums: {held_out[0]:.0%} -> {held_out[-1]:.0%}")
print(f"of sampled responses in training: {sampled[0]:.0%} -> {sampled[-1]:.0%}")
END
