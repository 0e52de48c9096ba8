#!/usr/bin/env bash
# A model in all stages, with the flags of MedicalGPT's scripts:
# pt -> merge -> sft -> merge -> rm, then dpo, ppo and grpo, each from the same merged model.
# Needs: two cores, 2 GB of memory, no GPU, nothing to download; some minutes. Run it from the top of the repository.
#   bash examples/pipeline/run.sh [folder for all that is written] [further flags for each stage]
#   REWARD=my_rewards.py:function bash examples/pipeline/run.sh    another reward for grpo
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

# 5. PPO against the reward model, which is an adapter of the merged model, as are policy and critic.
llmtune ppo $COMMON --model_name_or_path "$WORK/merged-sft" --train_file_dir "$WORK/data/finetune" \
    --reward_model_name_or_path "$(newest "$WORK/rm")" --template_name chatml --max_source_length 192 \
    --max_target_length 32 --max_train_samples 200 --init_kl_coef 0.05 --num_train_epochs 1 --learning_rate 3e-4 \
    --output_dir "$WORK/ppo"
llmtune merge --base_model "$WORK/merged-sft" --lora_model "$(newest "$WORK/ppo")" --output_dir "$WORK/merged-ppo"

# 6. GRPO on sums with a known answer, rewarded by a function of rewards.py; a real model can start at temperature 1.
llmtune grpo $COMMON --model_name_or_path "$WORK/merged-sft" --train_file_dir "$WORK/data/grpo" \
    --reward_funcs "${REWARD:-$HERE/rewards.py:number}" --num_generations 8 --gradient_accumulation_steps 16 --temperature 0.7 \
    --template_name chatml --max_prompt_length 192 --max_completion_length 32 --num_train_epochs 2 \
    --learning_rate 5e-4 --output_dir "$WORK/grpo"
llmtune merge --base_model "$WORK/merged-sft" --lora_model "$(newest "$WORK/grpo")" --output_dir "$WORK/merged-grpo"

for stage in pt sft rm dpo ppo grpo; do
    echo "== $stage"
    cat "$(dirname "$(newest "$WORK/$stage")")/eval_results.txt"
done
