#!/usr/bin/env bash
# Teach a model its name. Needs: a CPU is enough for llmtune-tiny (about 2 GB of memory, under a minute on two cores).
# Of your own: MODEL_TYPE, MODEL (a local folder), DATASET (a file with {{NAME}} and {{AUTHOR}} in its rows), e.g.
#   MODEL_TYPE=qwen2.5-7b-instruct MODEL=path/to/Qwen2.5-7B-Instruct bash examples/self_cognition/sft.sh
# Run it from the top of the repository.
set -euo pipefail

MODEL_TYPE=${MODEL_TYPE:-llmtune-tiny}
DATASET=${DATASET:-self-intro}

if [ "$MODEL_TYPE" = llmtune-tiny ]; then
    # Random weights have all to learn: everything is trained, fast, and some facts are mixed in.
    llmtune sft \
        --model_type llmtune-tiny \
        --sft_type full \
        --dataset "$DATASET" tiny-qa#200 \
        --model_name 小调 Tuny \
        --model_author 本机的主人 "the owner of this machine" \
        --num_train_epochs 12 \
        --batch_size 16 \
        --gradient_accumulation_steps 1 \
        --learning_rate 1e-3 \
        --output_dir output
else
    # A model that can talk already: adapters on all its linear layers are enough, and keep the rest of it as it is.
    llmtune sft \
        --model_type "$MODEL_TYPE" \
        --model_id_or_path "${MODEL:?the folder of the model}" \
        --sft_type lora \
        --lora_target_modules ALL \
        --dataset "$DATASET" \
        --model_name 小调 Tuny \
        --model_author 本机的主人 "the owner of this machine" \
        --num_train_epochs 10 \
        --batch_size 2 \
        --gradient_accumulation_steps 8 \
        --learning_rate 1e-4 \
        --output_dir output
fi
