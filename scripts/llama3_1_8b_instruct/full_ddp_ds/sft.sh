#!/usr/bin/env bash
# llama3.1-8b-instruct: all the weights, 4 processes, ZeRO-3.
# Needs 4 * A100; 32.1GB on each for weights, gradients and Adam at 16 bytes a parameter, not activations.
# Flags behind the script's name win: --max_length 1024, say; --dry_run true shows what would run.
# Run it from the top of the repository. Written by scripts/generate.py.
NPROC=${NPROC:-4}
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0,1,2,3} \
llmtune sft \
    --model_type llama3.1-8b-instruct \
    --sft_type full \
    --template_type llama3.1 \
    --dtype bf16 \
    --output_dir output \
    --dataset alpaca-zh alpaca-en \
    --train_dataset_sample 20000 \
    --num_train_epochs 1 \
    --max_length 2048 \
    --gradient_checkpointing auto \
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
    --nproc "$NPROC" \
    --ddp_backend nccl \
    --deepspeed_config_path zero3 \
    "$@"
