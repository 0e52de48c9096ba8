#!/usr/bin/env bash
# Answer the rows that sft.sh beside this file held out. Needs one A10.
# The newest checkpoint answers, or CKPT_DIR=FOLDER; it knows model, template, data, lengths and bits.
# Add --eval_human true to talk to it. Run it from the top of the repository. Written by scripts/generate.py.
MARK=adapter_config.json
CKPT_DIR=${CKPT_DIR:-$(ls -d output/ziya2-13b-chat/v*/checkpoint-*/$MARK 2>/dev/null | sort -V | tail -1)}
CKPT_DIR=${CKPT_DIR%/"$MARK"}
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} \
llmtune infer \
    --ckpt_dir "${CKPT_DIR:?run sft.sh first, or say which checkpoint folder}" \
    --eval_human false \
    --max_new_tokens 2048 \
    --temperature 0.9 \
    --top_k 20 \
    --top_p 0.9 \
    --do_sample true \
    --merge_lora_and_save false \
    "$@"
