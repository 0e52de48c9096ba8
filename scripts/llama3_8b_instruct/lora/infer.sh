#!/usr/bin/env bash
# Answer the rows that sft.sh beside this file held out. Needs: one GPU and about 18 GB of its memory, an estimate.
# Model, template and data are read from the checkpoint. Add --eval_human true to talk to it.
# Run it from the top of the repository.
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} \
llmtune infer \
    --ckpt_dir "${CKPT_DIR:-output/llama3-8b-instruct/vX-XXX/checkpoint-XXX}" \
    --eval_human false \
    --max_new_tokens 1024 \
    --temperature 0.9 \
    --top_k 20 \
    --top_p 0.9 \
    --do_sample true \
    --merge_lora_and_save false \
    "$@"
