"""What the pages on coming from another tool say besides what aliases.py knows: which flags, and remarks.

A line is (their flag with a usual value, remark); a third text says what to type here, where we do not take it as it
is.
"""

from __future__ import annotations

from typing import NamedTuple


class Tool(NamedTuple):
    title: str
    about: str
    before: str
    after: str
    flags: tuple[tuple[str, ...], ...]
    differs: tuple[str, ...]


COMMON_RUN = (
    ("num_train_epochs 3", "1 without it"),
    ("learning_rate 1e-4", ""),
    ("gradient_accumulation_steps 8", "16 without it"),
    ("warmup_ratio 0.03", ""),
    ("lr_scheduler_type cosine", ""),
    ("logging_steps 10", ""),
    ("save_steps 100", ""),
    ("save_total_limit 2", "the best checkpoint is kept besides the last ones"),
    ("output_dir output", "each run makes a folder of its own below"),
    ("per_device_train_batch_size 2", ""),
    ("gradient_checkpointing true", "better removed: `auto` recomputes as little as memory allows"),
    ("report_to tensorboard", "curves are in logging.jsonl and images/ in any case"),
)

TOOLS = {
    "ms-swift": Tool(
        "ms-swift",
        "The names of flags of ms-swift 3 and 4 are taken as they are; those of 1.x are llmtune's own.",
        "swift sft --model Qwen/Qwen2.5-7B-Instruct --tuner_type lora --dataset my.jsonl \\\n"
        "    --torch_dtype bfloat16 --target_modules all-linear --split_dataset_ratio 0.01 --max_length 2048",
        "llmtune sft --model Qwen/Qwen2.5-7B-Instruct --tuner_type lora --dataset my.jsonl \\\n"
        "    --torch_dtype bfloat16 --target_modules all-linear --split_dataset_ratio 0.01 --max_length 2048",
        (
            ("model Qwen/Qwen2.5-7B-Instruct", "a folder, or an id on the hub"),
            ("model_type qwen2_5", "keys differ: `llmtune list models`. Mostly the model's folder is enough"),
            ("template qwen2_5", "keys differ: `llmtune list templates`"),
            ("tuner_type lora", ""),
            ("train_type full", "the name in ms-swift 3"),
            ("dataset my.jsonl#500", "also hub ids with `ms::` or `hf::` before them"),
            ("val_dataset my.jsonl", ""),
            ("split_dataset_ratio 0.01", ""),
            ("torch_dtype bfloat16", ""),
            ("target_modules all-linear", ""),
            ("lora_rank 8", ""),
            ("lora_alpha 32", ""),
            ("lora_dropout 0.05", ""),
            ("init_weights pissa", ""),
            ("lorap_lr_ratio 16", ""),
            ("freeze_vit true", ""),
            ("freeze_aligner true", ""),
            ("quant_method bnb", ""),
            ("quant_bits 4", "", "--quantization_bit 4"),
            ("bnb_4bit_compute_dtype bfloat16", "", "--bnb_4bit_comp_dtype bf16"),
            ("max_length 2048", ""),
            ("truncation_strategy delete", "`left` without it; a sample is cut, never dropped in silence"),
            ("packing true", "rows of a pack do not attend to each other, with every attention implementation"),
            ("padding_free true", ""),
            ("attn_impl flash_attn", "by transformers' name", "--attn_impl flash_attention_2"),
            ("use_liger_kernel true", ""),
            ("loss_scale last_round", "`default`, `last_round` and `all`"),
            ("agent_template hermes", "else as the model's template names it"),
            ("lazy_tokenize true", ""),
            ("streaming true", "needs `--max_steps`"),
            ("dataset_num_proc 4", ""),
            ("system 'Be brief.'", ""),
            ("model_name 小调 Tuny", ""),
            ("model_author 作者 Author", ""),
            ("deepspeed zero2", ""),
            ("fsdp fsdp2", "FSDP2 with `true`", "--fsdp true"),
            ("save_only_model true", "", "--only_save_model true"),
            ("resume_from_checkpoint FOLDER", "also `last`"),
            ("use_hf true", ""),
            ("push_to_hub true", ""),
            ("hub_model_id NAME", ""),
            (
                "adapters output/FOLDER",
                "of `llmtune infer`, `eval`, `export`. For `serve` and `web`, `--adapters "
                "NAME=FOLDER` names further ones",
            ),
            ("stream true", "of `llmtune infer`"),
            ("infer_backend vllm", "of `llmtune serve`", "--backend vllm"),
            ("merge_lora true", "of `llmtune export`", "--merge_lora true"),
            ("rlhf_type dpo", "of `llmtune rlhf`: the stage, or `orpo`, `simpo`, `cpo`", "llmtune dpo"),
            ("beta 0.1", "of dpo and kto"),
            ("loss_type sigmoid sft", "of dpo"),
            ("loss_weights 1 0.2", "of dpo, one for each loss", "--loss sigmoid sft*0.2"),
            ("rpo_alpha 0.1", ""),
            ("ld_alpha 0.5", ""),
            ("simpo_gamma 1", ""),
            ("cpo_alpha 1", ""),
            ("ref_adapters FOLDER", "mostly not needed: the reference is the model as the run begins"),
            ("ref_model FOLDER", ""),
            ("desirable_weight 1", "of kto"),
            ("undesirable_weight 1", "of kto"),
            ("center_rewards_coefficient 0.01", "of rm"),
            *COMMON_RUN,
            ("NPROC_PER_NODE=2", "", "--nproc 2"),
        ),
        (
            "`swift sft` is `llmtune sft`, `swift infer` is `llmtune infer`, `swift deploy` is `llmtune serve`, "
            "`swift app` is `llmtune web`, `swift export` is `llmtune export`, `swift eval` is `llmtune eval`.",
            "No system prompt is added that the template does not document.",
            "`--max_length` cuts a longer sample and counts it; ms-swift drops it.",
            "`args.json` of a run is `sft_args.json` here, and every checkpoint holds one: "
            "`--ckpt_dir` alone is enough afterwards.",
        ),
    ),
    "llama-factory": Tool(
        "LLaMA-Factory",
        "Its YAML files are read by `--config`, once `dataset` has paths or keys of `llmtune list datasets`, "
        "`template` is removed, and the flags marked with † are replaced.",
        "# my_run.yaml for llamafactory-cli train\n"
        "model_name_or_path: Qwen/Qwen2.5-7B-Instruct\n"
        "stage: sft\n"
        "do_train: true\n"
        "finetuning_type: lora\n"
        "lora_rank: 8\n"
        "lora_target: all\n"
        "dataset: my_rows  # a name from data/dataset_info.json\n"
        "template: qwen\n"
        "cutoff_len: 2048\n"
        "per_device_train_batch_size: 1\n"
        "bf16: true",
        "llmtune sft --model_name_or_path Qwen/Qwen2.5-7B-Instruct --finetuning_type lora --lora_rank 8 \\\n"
        "    --lora_target all --dataset my.jsonl --cutoff_len 2048 --per_device_train_batch_size 1 --bf16 true",
        (
            ("stage sft", "the command; `llmtune train --stage dpo` is `llmtune dpo`"),
            ("pref_beta 0.1", "of dpo and kto"),
            ("pref_loss sigmoid", "of dpo; `kto_pair` is `llmtune kto` on the same pairs"),
            ("pref_ftx 0.1", ""),
            ("dpo_label_smoothing 0.1", ""),
            ("simpo_gamma 0.5", ""),
            ("kto_chosen_weight 1", "of kto"),
            ("kto_rejected_weight 1", "of kto"),
            ("ref_model FOLDER", ""),
            ("do_train true", ""),
            ("model_name_or_path Qwen/Qwen2.5-7B-Instruct", ""),
            ("adapter_name_or_path FOLDER", "in training; `--ckpt_dir` afterwards", "--peft_path FOLDER"),
            ("template qwen", "keys differ; best removed: the model's entry names it"),
            ("tool_format qwen", "`llama3` is `llama3.1`; without it as the template has it", "--tool_format hermes"),
            ("finetuning_type lora", "`freeze` is `--sft_type full --freeze_layers N`"),
            ("dataset my_rows", "a path or a key; there is no dataset_info.json to write"),
            ("dataset_dir data", "it is read as data: remove it where `--dataset` has paths"),
            ("cutoff_len 2048", ""),
            ("max_samples 1000", "of all rows", "--train_dataset_sample 1000"),
            ("val_size 0.01", "", "--dataset_test_ratio 0.01"),
            ("overwrite_cache true", ""),
            ("preprocessing_num_workers 16", ""),
            ("lora_rank 8", ""),
            ("lora_alpha 16", "32 without it"),
            ("lora_dropout 0.05", ""),
            ("lora_target all", ""),
            ("additional_target embed_tokens", "", "--modules_to_save embed_tokens"),
            ("loraplus_lr_ratio 16", ""),
            ("use_rslora true", ""),
            ("use_dora true", ""),
            ("pissa_init true", "", "--lora_init pissa"),
            ("quantization_bit 4", ""),
            ("quantization_method bnb", "", "--quant_method bnb"),
            ("flash_attn fa2", "`auto`, `fa2`, `sdpa`, `disabled`"),
            ("shift_attn true", ""),
            ("rope_scaling linear", ""),
            ("enable_liger_kernel true", ""),
            ("packing true", "rows in a pack never see each other"),
            ("neat_packing true", "what `--packing` does here in any case", "--packing true"),
            ("train_on_prompt true", "", "--loss_on everything"),
            ("mask_history true", "", "--loss_on last"),
            ("freeze_vision_tower true", ""),
            ("freeze_multi_modal_projector true", ""),
            ("image_max_pixels 262144", ""),
            ("neftune_noise_alpha 5", ""),
            ("plot_loss true", "images/ has the curves in any case", "nothing"),
            ("overwrite_output_dir true", ""),
            ("bf16 true", ""),
            ("ddp_timeout 180000000", ""),
            ("eval_strategy steps", ""),
            ("per_device_eval_batch_size 1", ""),
            ("deepspeed examples/deepspeed/ds_z2_config.json", "or `zero2`, which ships with llmtune"),
            ("trust_remote_code true", ""),
            *COMMON_RUN,
            ("FORCE_TORCHRUN=1", "", "--nproc N"),
            ("USE_MODELSCOPE_HUB=1", "ModelScope is the default; `--use_hf true` for the other", "nothing"),
        ),
        (
            "`llamafactory-cli train` is `llmtune sft`, `chat` is `llmtune infer --eval_human true`, `webchat` is "
            "`llmtune web`, `api` is `llmtune serve`, `export` is `llmtune export`.",
            "Data is a path. The format of rows is recognised from their columns and logged.",
            "Rows of query and response learn the last answer; rows of messages all answers. `--loss_on` decides.",
            "Packed rows never attend to each other; there the default of `packing` lets them.",
        ),
    ),
    "qwen": Tool(
        "Qwen's finetune.sh",
        "`scripts/finetune.sh` takes the variables and options of the guide's script; `llmtune sft` takes the flags of "
        "its finetune.py.",
        "bash finetune/finetune_lora_single_gpu.sh -m Qwen/Qwen-7B-Chat -d my.json",
        "USE_LORA=True bash scripts/finetune.sh -m Qwen/Qwen-7B-Chat -d my.json",
        (
            ("MODEL, -m, --model", "of scripts/finetune.sh", "the same"),
            ("DATA, -d, --data", "of scripts/finetune.sh; several, blanks between them", "the same"),
            ("DS_CONFIG_PATH, --deepspeed", "of scripts/finetune.sh; `zero2`, `zero3` or a file", "the same"),
            ("USE_LORA, Q_LORA, OUTPUT_DIR, BASE_PATH", "of scripts/finetune.sh", "the same"),
            ("GPUS_PER_NODE, NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT", "of scripts/finetune.sh", "the same"),
            ("model_name_or_path Qwen/Qwen-7B-Chat", ""),
            ("data_path my.json", ""),
            ("eval_data_path my.json", ""),
            ("bf16 True", ""),
            ("fp16 True", ""),
            (
                "model_max_length 512",
                "samples are cut at their start; there at their end: `--truncation_strategy right` is the same",
            ),
            ("lazy_preprocess True", ""),
            ("use_lora True", ""),
            ("q_lora True", ""),
            ("lora_r 64", "8 without it, there 64"),
            ("lora_alpha 16", "32 without it, there 16"),
            ("lora_dropout 0.05", "0 without it, there 0.05"),
            ("lora_target_modules c_attn c_proj w1 w2", "c_attn alone without it; the checkpoint's names work"),
            ("lora_weight_path FOLDER", ""),
            ("lora_bias none", ""),
            ("per_device_eval_batch_size 1", ""),
            ("evaluation_strategy no", ""),
            ("save_strategy steps", ""),
            ("weight_decay 0.1", ""),
            ("adam_beta2 0.95", ""),
            ("deepspeed finetune/ds_config_zero2.json", "or `zero2`, which ships with llmtune"),
            *COMMON_RUN,
        ),
        (
            "Rows of `conversations` with `from` and `value` are read as they are, and every response is trainable.",
            "The checkpoint's own Python is not run: Qwen of 2023 is turned into transformers' classes.",
            "Its web_demo.py is `llmtune web`, its openai_api.py `llmtune serve`, which reads ReAct's calls into "
            "`tool_calls`.",
            "Its run_gptq.py is `llmtune export --quant_method gptq`.",
        ),
    ),
    "medicalgpt": Tool(
        "MedicalGPT",
        "The flags of pretraining.py, supervised_finetuning.py, reward_modeling.py and dpo_training.py are taken as "
        "they are by `llmtune pt`, `sft`, `rm` and `dpo`, those of merge_peft_adapter.py by `llmtune merge`.",
        "python supervised_finetuning.py --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --train_file_dir data \\\n"
        "    --use_peft True --lora_rank 8 --target_modules all --do_train --bf16",
        "llmtune sft --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --train_file_dir data \\\n"
        "    --use_peft True --lora_rank 8 --target_modules all --do_train --bf16",
        (
            ("model_type auto", "the model's files tell"),
            ("model_name_or_path Qwen/Qwen2.5-0.5B-Instruct", ""),
            ("tokenizer_name_or_path FOLDER", ""),
            ("template_name vicuna", "keys differ; best removed: the model's entry names it"),
            ("train_file_dir data", "every file below that rows can be read from"),
            ("validation_file_dir data", ""),
            ("dataset_name shibing624/medical", "", "--dataset hf::shibing624/medical"),
            ("validation_split_percentage 1", ""),
            ("max_train_samples 1000", "-1 for all"),
            ("max_eval_samples 10", ""),
            ("model_max_length 512", ""),
            ("block_size 512", "of pt"),
            ("max_source_length 256 --max_target_length 256", "both, or `--max_length`", "--max_length 512"),
            ("beta 0.1", "of dpo"),
            ("orpo_beta 0.1", "of `llmtune orpo`"),
            ("sft_model_path FOLDER", ""),
            ("train_on_inputs True", ""),
            ("use_peft True", "`False` trains all the weights"),
            ("qlora True", ""),
            ("load_in_4bit True", ""),
            ("load_in_8bit True", ""),
            ("target_modules all", ""),
            ("lora_rank 8", ""),
            ("lora_alpha 16", "32 without it"),
            ("lora_dropout 0.05", ""),
            ("peft_path FOLDER", ""),
            ("modules_to_save embed_tokens,lm_head", ""),
            ("torch_dtype bfloat16", ""),
            ("device_map auto", ""),
            ("flash_attn True", ""),
            ("shift_attn True", ""),
            ("rope_scaling linear", ""),
            ("neft_alpha 5", ""),
            ("do_train", ""),
            ("do_eval", ""),
            ("overwrite_output_dir", ""),
            ("preprocessing_num_workers 4", ""),
            ("logging_first_step True", ""),
            ("ddp_timeout 30000", ""),
            ("ddp_find_unused_parameters False", ""),
            ("evaluation_strategy steps", ""),
            ("cache_dir FOLDER", ""),
            ("hf_hub_token TOKEN", ""),
            *COMMON_RUN,
            ("base_model FOLDER", "of `llmtune merge`"),
            ("lora_model FOLDER", "of `llmtune merge`"),
            ("tokenizer_path FOLDER", "of `llmtune merge`"),
            ("resize_emb", "of `llmtune merge`", "--resize_emb true"),
            ("hf_hub_model_id NAME", "of `llmtune merge`", "--hf_hub_model_id NAME"),
        ),
        (
            "train_results.txt, eval_results.txt, trainer_state.json and the last adapter lie at the top of the run's "
            "folder, as its scripts leave them.",
            "Rows of `conversations` with `from` and `value` are read as they are.",
            "The chain of its scripts, pt, merge, sft, merge, rm and dpo, is examples/pipeline/run.sh. ppo and grpo "
            "come with a later version.",
            "Its blocks are `llmtune pt --join_documents true`; by default, documents do not attend to each other.",
            "openai_api.py is `llmtune serve`, gradio_demo.py `llmtune web`.",
        ),
    ),
}
