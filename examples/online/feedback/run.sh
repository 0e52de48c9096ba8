#!/usr/bin/env bash
# The embedded model learns manners by PPO: sft on answers and rude refusals alike, a reward model from pairs of both,
# then ppo against it. Policy, critic, reward model and reference share one base. Two minutes on a CPU, in an empty folder:
#   bash path/to/examples/online/feedback/run.sh [seed] [further flags for ppo]
set -euo pipefail

SEED=${1:-42}
COMMON="--model_type llmtune-tiny --seed $SEED --output_dir_flat true --report_to none"

python "$(dirname "$0")/data.py" > mixed.jsonl
llmtune sft $COMMON --dataset mixed.jsonl --dataset_test_ratio 0 --sft_type full --output_dir sft --max_steps 80 \
    --batch_size 32 --gradient_accumulation_steps 1 --learning_rate 2e-3

llmtune rm $COMMON --model_id_or_path sft/checkpoint-80 --dataset tiny-pairs --output_dir rm --max_steps 40 \
    --batch_size 16 --gradient_accumulation_steps 1 --learning_rate 1e-3 --eval_steps 40

# The first evaluation is that of sft's model, on questions that no stage trains on.
llmtune ppo $COMMON --model_id_or_path sft/checkpoint-80 --dataset tiny-pairs --output_dir ppo \
    --rewards rm:rm/checkpoint-40 --max_new_tokens 32 --batch_size 32 --gradient_accumulation_steps 1 \
    --num_iterations 2 --max_steps 60 --learning_rate 5e-4 \
    --critic_learning_rate 1e-3 --beta 0.05 --kl_target 8 --lr_scheduler_type constant --eval_steps 20 \
    --logging_steps 2 --train_args eval_on_start=true "${@:2}"

python - <<'END'
import json

lines = [json.loads(line) for line in open("ppo/logging.jsonl")]
held_out = [line["eval_reward"] for line in lines if "eval_reward" in line]
sampled = [line["reward"] for line in lines if "reward" in line]
kl = [line["objective/kl"] for line in lines if "objective/kl" in line]
print(f"score of the reward model on held-out questions: {held_out[0]:.2f} -> {held_out[-1]:.2f}")
print(f"of sampled responses: {sampled[0]:.2f} -> {sampled[-1]:.2f}; KL of a response {kl[-1]:.1f} nats")
END
