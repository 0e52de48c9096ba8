#!/usr/bin/env bash
# llmtune-tiny: all the weights, 2 processes.
# Needs any CPU and about 1GB of memory a process; downloads nothing.
# Flags behind the script's name win: --max_length 1024, say; --dry_run true shows what would run.
# Run it from the top of the repository. Written by scripts/generate.py.
NPROC=${NPROC:-2}
llmtune sft \
    --model_type llmtune-tiny \
    --sft_type full \
    --template_type chatml \
    --dtype fp32 \
    --output_dir output \
    --dataset tiny-qa self-intro \
    --train_dataset_sample -1 \
    --num_train_epochs 2 \
    --max_length 256 \
    --gradient_checkpointing auto \
    --batch_size 4 \
    --gradient_accumulation_steps $((16 / NPROC / 4)) \
    --learning_rate 1e-3 \
    --weight_decay 0.01 \
    --max_grad_norm 1 \
    --warmup_ratio 0.03 \
    --eval_steps 50 \
    --save_steps 50 \
    --save_total_limit 2 \
    --logging_steps 10 \
    --only_save_model true \
    --nproc "$NPROC" \
    "$@"
