#!/usr/bin/env bash
# seqgpt-560m: all the weights, 2 processes.
# Needs 2 * A10 and about 2 * 13GB of GPU memory, as noted in 2023.
# Flags behind the script's name win: --max_length 1024, say; --dry_run true shows what would run.
# Run it from the top of the repository. Written by scripts/generate.py.
NPROC=${NPROC:-2}
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0,1} \
llmtune sft \
    --model_type seqgpt-560m \
    --sft_type full \
    --template_type default-generation \
    --dtype bf16 \
    --output_dir output \
    --dataset ner-jave-zh \
    --train_dataset_sample -1 \
    --num_train_epochs 3 \
    --max_length 1024 \
    --gradient_checkpointing true \
    --batch_size 4 \
    --gradient_accumulation_steps $((32 / NPROC / 4)) \
    --learning_rate 2e-5 \
    --weight_decay 0.01 \
    --max_grad_norm 1 \
    --warmup_ratio 0.03 \
    --eval_steps 100 \
    --save_steps 100 \
    --save_total_limit 2 \
    --logging_steps 10 \
    --only_save_model false \
    --nproc "$NPROC" \
    --ddp_backend nccl \
    "$@"
