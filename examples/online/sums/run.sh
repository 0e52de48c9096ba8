#!/usr/bin/env bash
# The embedded model learns sums: a short sft teaches the form and some of them; grpo, or rloo, goes on with a reward for
# the right number, on its own responses. Two minutes on a CPU. Needs nothing from a network. In an empty folder:
#   bash path/to/examples/online/sums/run.sh [loss] [seed] [further flags for grpo]
set -euo pipefail

LOSS=${1:-grpo}
SEED=${2:-42}
COMMON="--model_type llmtune-tiny --dataset tiny-sums --seed $SEED --output_dir_flat true --report_to none"

llmtune sft $COMMON --sft_type full --output_dir sft --max_steps 165 --batch_size 32 --gradient_accumulation_steps 1 \
    --learning_rate 2e-3 --eval_steps 1000

# The first evaluation is that of sft's model, on sums that neither stage trains on.
llmtune grpo $COMMON --model_id_or_path sft/checkpoint-165 --output_dir rl --loss $LOSS --rewards accuracy --beta 0 \
    --lora_target_modules ALL --lora_rank 32 --lora_alpha 64 --max_new_tokens 6 --num_generations 8 --batch_size 64 \
    --gradient_accumulation_steps 2 --max_steps 100 --learning_rate 1e-3 --lr_scheduler_type constant \
    --eval_steps 25 --logging_steps 5 --train_args eval_on_start=true "${@:3}"

python - <<'END'
import json

lines = [json.loads(line) for line in open("rl/logging.jsonl")]
held_out = [line["eval_reward"] for line in lines if "eval_reward" in line]
sampled = [line["reward"] for line in lines if "reward" in line]
print(f"held-out sums, greedily: {held_out[0]:.0%} -> {held_out[-1]:.0%}")
print(f"sampled responses: {sampled[0]:.0%} -> {sampled[-1]:.0%}")
END
