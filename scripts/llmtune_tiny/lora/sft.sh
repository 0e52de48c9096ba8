#!/usr/bin/env bash
# LoRA on the embedded model: the flow of a large model's run, in seconds. Needs: any CPU, about 1 GB of memory.
# Its weights are random, so adapters alone teach it little: MODEL=output/llmtune-tiny/vX-XXX/checkpoint-XXX puts them
# on the result of ../full/sft.sh instead. Run it from the top of the repository.
llmtune sft \
    --model_type llmtune-tiny \
    --model_id_or_path "${MODEL:-llmtune-tiny}" \
    --sft_type lora \
    --output_dir output \
    --dataset tiny-qa self-intro \
    --num_train_epochs 2 \
    --max_length 256 \
    --lora_rank 8 \
    --lora_alpha 32 \
    --lora_dropout_p 0. \
    --lora_target_modules ALL \
    --batch_size 16 \
    --gradient_accumulation_steps 1 \
    --learning_rate 1e-3 \
    --weight_decay 0. \
    --max_grad_norm 0.5 \
    --warmup_ratio 0.03 \
    --eval_steps 50 \
    --save_steps 50 \
    --save_total_limit 2 \
    --logging_steps 10 \
    "$@"
