#!/usr/bin/env bash
# qwen3-8b: LoRA, 2 processes.
# Needs 2 * A10; 18.1GB on each with full checkpointing, an estimate of llmtune plan.
# Flags behind the script's name win: --max_length 1024, say; --dry_run true shows what would run.
# Run it from the top of the repository. Written by scripts/generate.py.
NPROC=${NPROC:-2}
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0,1} \
llmtune sft \
    --model_type qwen3-8b \
    --sft_type lora \
    --template_type qwen3 \
    --dtype bf16 \
    --output_dir output \
    --dataset alpaca-zh alpaca-en \
    --train_dataset_sample 20000 \
    --num_train_epochs 1 \
    --max_length 2048 \
    --lora_rank 8 \
    --lora_alpha 32 \
    --lora_dropout_p 0. \
    --lora_target_modules ALL \
    --gradient_checkpointing auto \
    --batch_size 1 \
    --gradient_accumulation_steps $((16 / NPROC)) \
    --learning_rate 1e-4 \
    --weight_decay 0. \
    --max_grad_norm 0.5 \
    --warmup_ratio 0.03 \
    --eval_steps 100 \
    --save_steps 100 \
    --save_total_limit 2 \
    --logging_steps 10 \
    --use_flash_attn true \
    --nproc "$NPROC" \
    --ddp_backend nccl \
    "$@"
