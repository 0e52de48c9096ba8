#!/usr/bin/env bash
# One `llmtune sft` from the variables and options of the Qwen guide's finetune.sh: bash scripts/finetune.sh --help
# Needs what the chosen model and method need: MODEL=... DATA=... bash scripts/finetune.sh --dry_run true shows it.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash scripts/finetune.sh -m MODEL -d DATA [--deepspeed CONFIG] [--use_lora True] [--q_lora True] [flags]

Fine-tunes all the weights, by ZeRO-3 where there are several GPUs. Any flag of `llmtune sft` may follow, and wins.
  bash scripts/finetune.sh -m llmtune-tiny -d tiny-qa
  USE_LORA=True GPUS_PER_NODE=2 bash scripts/finetune.sh -m Qwen/Qwen2.5-7B-Instruct -d my.jsonl --max_length 4096

  -m, --model      MODEL           folder, hub id (owner/name) or key (llmtune list models)
  -d, --data       DATA            files or keys of datasets (llmtune list datasets), separated by blanks
  --deepspeed      DS_CONFIG_PATH  zero2, zero3, their _offload twins, a JSON file, or none.
                                   Default with several processes: zero3, with adapters zero2
  --use_lora       USE_LORA        True trains LoRA adapters
  --q_lora         Q_LORA          True trains them on weights of 4 bits
                   OUTPUT_DIR      folder of all runs [output]
                   BASE_PATH       folder that relative MODEL, DATA and OUTPUT_DIR are below, where they are
                   GPUS_PER_NODE   processes on this machine, one a GPU [all GPUs; 1 on a CPU]
                   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT
                                   several machines: run this on each [1, 0, 127.0.0.1, 29500]
TEXT
}

fail() {
    echo "finetune.sh: $1 See bash scripts/finetune.sh --help" >&2
    exit 2
}

is_true() { [[ ${1,,} =~ ^(true|1|yes)$ ]]; }

below_base() {
    if [[ -n ${BASE_PATH:-} && -e $BASE_PATH/$1 ]]; then echo "$BASE_PATH/$1"; else echo "$1"; fi
}

count_gpus() {
    if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
        tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true
    elif [[ ! -v CUDA_VISIBLE_DEVICES ]] && command -v nvidia-smi >/dev/null; then
        nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true
    else
        echo 0
    fi
}

others=()
while (($#)); do
    case $1 in
        -h | --help) usage && exit ;;
        -m | --model | -d | --data | --deepspeed | --use_lora | --q_lora)
            (($# > 1)) || fail "$1 needs a value."
            case $1 in
                -m | --model) MODEL=$2 ;;
                -d | --data) DATA=$2 ;;
                --deepspeed) DS_CONFIG_PATH=$2 ;;
                --use_lora) USE_LORA=$2 ;;
                --q_lora) Q_LORA=$2 ;;
            esac
            shift 2
            ;;
        *) others+=("$1") && shift ;;
    esac
done

[[ -n ${MODEL:-} ]] || fail "No model: -m MODEL."
[[ -n ${DATA:-} ]] || fail "No data: -d DATA."

model=$(below_base "$MODEL")
if [[ $model == */* || -d $model ]]; then flags=(--model_id_or_path "$model"); else flags=(--model_type "$model"); fi

flags+=(--dataset)
if [[ -e $(below_base "$DATA") ]]; then
    flags+=("$(below_base "$DATA")") # one path, which may hold blanks
else
    read -ra items <<<"$DATA"
    for item in "${items[@]}"; do flags+=("$(below_base "$item")"); done
fi

output=${OUTPUT_DIR:-output}
[[ -z ${BASE_PATH:-} || $output == /* ]] || output=$BASE_PATH/$output
flags+=(--output_dir "$output")

zero=zero3
if is_true "${USE_LORA:-False}" || is_true "${Q_LORA:-False}"; then
    zero=zero2
    flags+=(--sft_type lora)
    # weights that come with 4 or 8 bits stay as they are
    if is_true "${Q_LORA:-False}" && [[ ! ${MODEL,,} =~ int[48]|gptq|awq|bits ]]; then flags+=(--quantization_bit 4); fi
else
    flags+=(--sft_type full)
fi

processes=${GPUS_PER_NODE:-$(count_gpus)}
((processes > 0)) || processes=1
flags+=(--nproc "$processes")
if ((${NNODES:-1} > 1)); then
    export NNODES NODE_RANK=${NODE_RANK:-0} MASTER_ADDR=${MASTER_ADDR:-127.0.0.1} MASTER_PORT=${MASTER_PORT:-29500}
else
    unset NNODES
fi

if [[ -z ${DS_CONFIG_PATH:-} ]]; then
    ((processes * ${NNODES:-1} > 1)) && DS_CONFIG_PATH=$zero || DS_CONFIG_PATH=none
elif [[ ! -f $DS_CONFIG_PATH && $DS_CONFIG_PATH =~ zero[23](_offload)? ]]; then
    DS_CONFIG_PATH=${BASH_REMATCH[0]} # the guide's finetune/ds_config_zero3.json, say
fi
[[ $DS_CONFIG_PATH == none ]] || flags+=(--deepspeed_config_path "$DS_CONFIG_PATH")

exec llmtune sft "${flags[@]}" "${others[@]}"
