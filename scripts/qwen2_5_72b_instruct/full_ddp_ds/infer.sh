#!/usr/bin/env bash
# Answer the rows that sft.sh beside this file held out. Needs 2 * A100.
# The newest checkpoint answers, or CKPT_DIR=FOLDER; it knows model, template, data, lengths and bits.
# Add --eval_human true to talk to it. Run it from the top of the repository. Written by scripts/generate.py.
MARK=config.json
CKPT_DIR=${CKPT_DIR:-$(ls -d output/qwen2.5-72b-instruct/v*/checkpoint-*/$MARK 2>/dev/null | sort -V | tail -1)}
CKPT_DIR=${CKPT_DIR%/"$MARK"}
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0,1} \
llmtune infer \
    --ckpt_dir "${CKPT_DIR:?run sft.sh first, or say which checkpoint folder}" \
    --use_flash_attn true \
    --device_map auto \
    --eval_human false \
    --max_new_tokens 1024 \
    --temperature 0.9 \
    --top_k 20 \
    --top_p 0.9 \
    --do_sample true \
    "$@"
