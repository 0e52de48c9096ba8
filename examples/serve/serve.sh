#!/usr/bin/env bash
# A checkpoint behind OpenAI's API. It knows its model, template and system prompt; flags after it win.
# Several LoRA over one base: add --adapters law=FOLDER med=FOLDER; a request's "model" chooses.
set -euo pipefail

CKPT_DIR=${1:?usage: serve.sh CHECKPOINT_FOLDER [--flag value ...]}
shift

exec llmtune serve \
    --ckpt_dir "$CKPT_DIR" \
    --host 127.0.0.1 \
    --port 8000 \
    --max_new_tokens 512 \
    "$@"
