#!/usr/bin/env bash
# Ask the last checkpoint of the newest run who it is. CKPT_DIR=... asks another checkpoint; --eval_human true, behind it, lets you ask.
set -euo pipefail

CKPT_DIR=${CKPT_DIR:-$(ls -d output/"${MODEL_TYPE:-llmtune-tiny}"/v*/checkpoint-* | sort -V | tail -1)}

llmtune infer \
    --ckpt_dir "$CKPT_DIR" \
    --val_dataset "$(dirname "$0")/questions.jsonl" \
    --do_sample false \
    --max_new_tokens 64 \
    "$@"
