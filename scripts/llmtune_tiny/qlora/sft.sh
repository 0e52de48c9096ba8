#!/usr/bin/env bash
# llmtune-tiny: QLoRA.
# Needs any CPU and about 1GB of memory; downloads nothing.
# Random weights learn little by adapters: MODEL=CHECKPOINT_FOLDER puts them on what ../full left.
# Flags behind the script's name win: --max_length 1024, say; --dry_run true shows what would run.
# Run it from the top of the repository. Written by scripts/generate.py.
llmtune sft \
    --model_type llmtune-tiny \
    --model_id_or_path "${MODEL:-llmtune-tiny}" \
    --sft_type lora \
    --template_type chatml \
    --dtype fp32 \
    --output_dir output \
    --dataset tiny-qa self-intro \
    --train_dataset_sample -1 \
    --num_train_epochs 2 \
    --max_length 256 \
    --lora_rank 8 \
    --lora_alpha 32 \
    --lora_dropout_p 0. \
    --lora_target_modules ALL \
    --quantization_bit 4 \
    --bnb_4bit_comp_dtype fp32 \
    --gradient_checkpointing auto \
    --batch_size 4 \
    --gradient_accumulation_steps 4 \
    --learning_rate 1e-3 \
    --weight_decay 0. \
    --max_grad_norm 0.5 \
    --warmup_ratio 0.03 \
    --eval_steps 50 \
    --save_steps 50 \
    --save_total_limit 2 \
    --logging_steps 10 \
    "$@"
