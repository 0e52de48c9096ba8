#!/usr/bin/env bash
# Answer the rows that sft.sh beside this file held out. Needs any CPU.
# The newest checkpoint answers, or CKPT_DIR=FOLDER; it knows model, template, data, lengths and bits.
# Add --eval_human true to talk to it. Run it from the top of the repository. Written by scripts/generate.py.
MARK=adapter_config.json
CKPT_DIR=${CKPT_DIR:-$(ls -d output/llmtune-tiny/v*/checkpoint-*/$MARK 2>/dev/null | sort -V | tail -1)}
CKPT_DIR=${CKPT_DIR%/"$MARK"}
llmtune infer \
    --ckpt_dir "${CKPT_DIR:?run sft.sh first, or say which checkpoint folder}" \
    --eval_human false \
    --max_new_tokens 64 \
    --temperature 0.9 \
    --top_k 20 \
    --top_p 0.9 \
    --do_sample true \
    --merge_lora_and_save false \
    "$@"
