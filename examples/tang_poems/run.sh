#!/usr/bin/env bash
# The whole homework: train all the weights, train LoRA on top of the result, answer the 15 test rows.
# Needs: two cores, 3 GB of memory, no GPU; about 17 minutes. With a real Qwen2.5 and a GPU, see README.md.
#   bash examples/tang_poems/run.sh path/to/GenAI-Hw5/data path/to/qwen2.5-tokenizer [folder for all that is written]
# Run it from the top of the repository.
set -euo pipefail

DATA=${1:?the folder with Tang_training_data.json, Tang_testing_data.json and Tang_testing_gt.txt}
TOKENIZER=${2:?the folder of a Qwen2.5 tokenizer}
WORK=${3:-output/tang}
HERE=$(dirname "$0")

newest() { ls -d "$1"/*/v*/checkpoint-* | grep -v merged | sort -V | tail -1; }

python "$HERE/make_model.py" "$TOKENIZER" "$WORK/model"
python "$HERE/prepare.py" "$DATA/Tang_testing_data.json" "$DATA/Tang_testing_gt.txt" "$WORK/test.jsonl"

# 1. All the weights. They are random, so the learning rate is high; a pretrained model wants about 1e-5.
llmtune sft \
    --model_type qwen2.5-0.5b-instruct \
    --model_id_or_path "$WORK/model" \
    --sft_type full \
    --dataset "$DATA/Tang_training_data.json" \
    --batch_size 16 \
    --gradient_accumulation_steps 1 \
    --learning_rate 3e-3 \
    --num_train_epochs 3 \
    --eval_steps 155 \
    --logging_steps 10 \
    --output_dir "$WORK/full"
FULL=$(newest "$WORK/full")

# 2. Adapters on every linear layer of the result, for a short while.
llmtune sft \
    --model_type qwen2.5-0.5b-instruct \
    --model_id_or_path "$FULL" \
    --sft_type lora \
    --lora_target_modules ALL \
    --dataset "$DATA/Tang_training_data.json" \
    --batch_size 16 \
    --gradient_accumulation_steps 1 \
    --learning_rate 1e-3 \
    --max_steps 100 \
    --eval_steps 50 \
    --logging_steps 10 \
    --output_dir "$WORK/lora"
LORA=$(newest "$WORK/lora")

# 3. The test rows: the most likely poem, then one drawn by chance as the defaults have it.
for CKPT in "$FULL" "$LORA"; do
    llmtune infer --ckpt_dir "$CKPT" --val_dataset "$WORK/test.jsonl" --do_sample false --max_new_tokens 128
    llmtune infer --ckpt_dir "$CKPT" --val_dataset "$WORK/test.jsonl" --max_new_tokens 128
done

python "$HERE/compare_decoding.py" "$FULL" "$WORK/test.jsonl"
