#!/usr/bin/env bash
# qwen-7b-chat: all the weights, layers over 2 GPUs, 2 processes.
# Needs 4 * A100 and about 4 * 75GB of GPU memory, as noted in 2023.
# Flags behind the script's name win: --max_length 1024, say; --dry_run true shows what would run.
# Run it from the top of the repository. Written by scripts/generate.py.
NPROC=${NPROC:-2}
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0,1,2,3} \
llmtune sft \
    --model_type qwen-7b-chat \
    --sft_type full \
    --template_type chatml \
    --dtype bf16 \
    --output_dir output \
    --dataset medical-en medical-zh \
    --train_dataset_sample 200000 \
    --num_train_epochs 1 \
    --max_length 8192 \
    --gradient_checkpointing false \
    --batch_size 1 \
    --gradient_accumulation_steps $((16 / NPROC)) \
    --learning_rate 2e-5 \
    --weight_decay 0.01 \
    --max_grad_norm 1 \
    --warmup_ratio 0.03 \
    --eval_steps 100 \
    --save_steps 100 \
    --save_total_limit 2 \
    --logging_steps 10 \
    --only_save_model true \
    --use_flash_attn true \
    --device_map auto \
    --nproc "$NPROC" \
    --ddp_backend nccl \
    "$@"
