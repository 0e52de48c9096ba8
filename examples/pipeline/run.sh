#!/usr/bin/env bash
# A model in all stages that run offline, with the flags of MedicalGPT's scripts:
# pt -> merge -> sft -> merge -> rm, and dpo from the same merged model.
# Needs: two cores, 2 GB of memory, no GPU, nothing to download; some minutes. Run it from the top of the repository.
#   bash examples/pipeline/run.sh [folder for all that is written] [further flags for each stage]
set -euo pipefail

WORK=${1:-output/pipeline}
MORE=${*:2}
HERE=$(dirname "$0")
COMMON="--use_peft True --target_modules all --lora_rank 8 --lora_alpha 16 --lora_dropout 0.05 --do_train --do_eval
    --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --warmup_ratio 0.05 --logging_steps 10
    --eval_steps 50 --save_steps 50 --overwrite_output_dir --report_to tensorboard $MORE"

newest() { ls -d "$1"/*/v*/checkpoint-* | grep -v merged | sort -V | tail -1; }

BASE=$(python "$HERE/prepare.py" "$WORK/data")

# 1. Continue pre-training on the documents, and merge the adapter into the model.
llmtune pt $COMMON --model_name_or_path "$BASE" --train_file_dir "$WORK/data/pretrain" --block_size 512 \
    --num_train_epochs 1 --learning_rate 2e-3 --output_dir "$WORK/pt"
llmtune merge --base_model "$BASE" --lora_model "$(newest "$WORK/pt")" --output_dir "$WORK/merged-pt"

# 2. Supervised fine-tuning on the merged model.
llmtune sft $COMMON --model_name_or_path "$WORK/merged-pt" --train_file_dir "$WORK/data/finetune" \
    --template_name chatml --model_max_length 256 --num_train_epochs 2 --learning_rate 4e-3 --output_dir "$WORK/sft"
llmtune merge --base_model "$WORK/merged-pt" --lora_model "$(newest "$WORK/sft")" --output_dir "$WORK/merged-sft"

# 3. A reward model.
llmtune rm $COMMON --model_name_or_path "$WORK/merged-sft" --train_file_dir "$WORK/data/reward" \
    --template_name chatml --max_source_length 192 --max_target_length 64 --num_train_epochs 2 --learning_rate 2e-3 \
    --output_dir "$WORK/rm"

# 4. DPO, held to the merged model.
llmtune dpo $COMMON --model_name_or_path "$WORK/merged-sft" --train_file_dir "$WORK/data/reward" \
    --template_name chatml --max_source_length 192 --max_target_length 64 --beta 0.1 --num_train_epochs 1 \
    --learning_rate 1e-3 --output_dir "$WORK/dpo"
llmtune merge --base_model "$WORK/merged-sft" --lora_model "$(newest "$WORK/dpo")" --output_dir "$WORK/merged-dpo"

for stage in pt sft rm dpo; do
    echo "== $stage"
    cat "$(dirname "$(newest "$WORK/$stage")")/eval_results.txt"
done
