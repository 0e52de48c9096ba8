#!/usr/bin/env bash
# All the weights of the embedded model. Needs: any CPU, about 1 GB of memory, about a minute on two cores.
# Nothing is downloaded. Run it from the top of the repository.
llmtune sft \
    --model_type llmtune-tiny \
    --sft_type full \
    --output_dir output \
    --dataset tiny-qa self-intro \
    --num_train_epochs 8 \
    --max_length 256 \
    --batch_size 16 \
    --gradient_accumulation_steps 1 \
    --learning_rate 1e-3 \
    --weight_decay 0.01 \
    --max_grad_norm 1 \
    --warmup_ratio 0.03 \
    --eval_steps 100 \
    --save_steps 100 \
    --save_total_limit 2 \
    --logging_steps 20 \
    --only_save_model true \
    "$@"
