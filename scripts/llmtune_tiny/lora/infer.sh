#!/usr/bin/env bash
# Answer the rows that sft.sh beside this file held out, from an adapter. Needs: any CPU.
# CKPT_DIR=output/llmtune-tiny/vX-XXX/checkpoint-XXX chooses a checkpoint; without it, the newest run's last one with
# an adapter is taken. Add --eval_human true to talk to it. Run it from the top of the repository.
MARK=adapter_config.json
CKPT_DIR=${CKPT_DIR:-$(ls -d output/llmtune-tiny/v*/checkpoint-*/$MARK | sort -V | tail -1 | xargs dirname)}
llmtune infer \
    --ckpt_dir "$CKPT_DIR" \
    --eval_human false \
    --show_dataset_sample 10 \
    --max_new_tokens 64 \
    --temperature 0.9 \
    --top_k 20 \
    --top_p 0.9 \
    --do_sample true \
    --merge_lora_and_save false \
    "$@"
