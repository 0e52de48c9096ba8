#!/usr/bin/env bash
# Teach the embedded model the two tools of tool_loop.py, in Qwen's own (Hermes) format. Needs nothing from a network.
set -euo pipefail

python "$(dirname "$0")/tool_data.py" --rows "${ROWS:-4000}" > tools.jsonl
llmtune sft \
    --model_type llmtune-tiny \
    --template_type qwen2.5 \
    --sft_type full \
    --dataset tools.jsonl \
    --dataset_test_ratio 0.005 \
    --max_steps 400 \
    --batch_size 8 \
    --gradient_accumulation_steps 1 \
    --learning_rate 2e-3 \
    "$@"
