#!/usr/bin/env bash
# LoRA on Qwen2.5-7B-Instruct. Needs: one GPU with bf16 (A10, 3090, A100 or newer) and about 20 GB of its memory: an estimate
# (15 GB of bf16 weights, the rest adapters and activations with gradient checkpointing), not measured.
# MODEL is the folder of the weights (this version downloads nothing), DATASET your file, say my.jsonl.
# Run it from the top of the repository.
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} \
llmtune sft \
    --model_type qwen2.5-7b-instruct \
    --model_id_or_path "${MODEL:?the folder of Qwen2.5-7B-Instruct}" \
    --sft_type lora \
    --dtype bf16 \
    --output_dir output \
    --dataset "${DATASET:?a data set: llmtune list datasets, or a file}" \
    --train_dataset_sample -1 \
    --num_train_epochs 1 \
    --max_length 2048 \
    --lora_rank 8 \
    --lora_alpha 32 \
    --lora_dropout_p 0. \
    --lora_target_modules ALL \
    --gradient_checkpointing true \
    --batch_size 1 \
    --gradient_accumulation_steps 16 \
    --learning_rate 1e-4 \
    --weight_decay 0. \
    --max_grad_norm 0.5 \
    --warmup_ratio 0.03 \
    --eval_steps 100 \
    --save_steps 100 \
    --save_total_limit 2 \
    --logging_steps 10 \
    "$@"
