#!/usr/bin/env bash
# internlm-20b: QLoRA.
# Needs one A10 and about 14GB of GPU memory, as noted in 2023.
# Flags behind the script's name win: --max_length 1024, say; --dry_run true shows what would run.
# Run it from the top of the repository. Written by scripts/generate.py.
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} \
llmtune sft \
    --model_type internlm-20b \
    --sft_type lora \
    --template_type default-generation-bos \
    --dtype bf16 \
    --output_dir output \
    --dataset advertise-gen-zh \
    --train_dataset_sample 20000 \
    --num_train_epochs 1 \
    --max_length 2048 \
    --lora_rank 8 \
    --lora_alpha 32 \
    --lora_dropout_p 0. \
    --lora_target_modules ALL \
    --quantization_bit 4 \
    --bnb_4bit_comp_dtype bf16 \
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
