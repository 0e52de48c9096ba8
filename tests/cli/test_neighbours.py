"""The flags of neighbouring tools: every row of the table of names."""

from __future__ import annotations

from typing import Any

import pytest

from llmtune.arguments.aliases import ALIASES
from llmtune.arguments.infer import InferArguments
from llmtune.arguments.parser import parse
from llmtune.errors import UsageError

from .flags import TINY, changed, sft
from .test_online_flags import OF_ONLINE
from .test_stages import OF_STAGES

IGNORED = "Ignored flags: --"
NOTHING: dict[str, Any] = {}
FULL = {"sft_type": "full", "learning_rate": 2e-5, "only_save_model": True}
NEIGHBOURS: list[tuple[str, dict[str, Any] | str]] = [
    ("--model_name_or_path /m", {"model_id_or_path": "/m"}),
    ("--model_type auto --model_type llmtune-tiny", NOTHING),
    ("--tokenizer_name_or_path /t", {"tokenizer_id_or_path": "/t"}),
    ("--tokenizer_path /t", {"tokenizer_id_or_path": "/t"}),
    ("--trust_remote_code True", {"trust_remote_code": True}),
    ("--model_revision v2", {"model_revision": "v2"}),
    ("--cache_dir /c", {"cache_dir": "/c"}),
    ("--hf_hub_token t", {"hub_token": "t"}),
    ("--device_map auto", {"device_map": "auto"}),
    ("--torch_dtype float16", {"dtype": "fp16"}),
    ("--torch_dtype bfloat16", {"dtype": "bf16"}),
    ("--torch_dtype float32", {"dtype": "fp32"}),
    ("--torch_dtype auto", NOTHING),
    ("--bf16", {"dtype": "bf16"}),
    ("--bf16 true", {"dtype": "bf16"}),
    ("--fp16 True", {"dtype": "fp16"}),
    ("--bf16 False", NOTHING),
    ("--data_path d --eval_data_path e", {"dataset": ["d"], "val_dataset": ["e"]}),
    ("--dataset_name o/n --dataset_config_name c", {"dataset": ["hf::o/n:c"]}),
    ("--train_file_dir ./d --validation_file_dir ./e", {"dataset": ["./d"], "val_dataset": ["./e"]}),
    ("--max_train_samples -1 --max_eval_samples 9", {"train_dataset_sample": -1, "val_dataset_sample": 9}),
    ("--validation_split_percentage 5", {"dataset_test_ratio": 0.05}),
    ("--validation_split_percentage 1", NOTHING),  # 0.01 is the default
    ("--preprocessing_num_workers 4", {"dataset_num_proc": 4}),
    ("--overwrite_cache", {"overwrite_cache": True}),
    ("--lazy_preprocess True", IGNORED),
    ("--add_version false", {"output_dir_flat": True}),
    ("--add_output_dir_suffix false", {"output_dir_flat": True}),
    ("--lazy_tokenize True", IGNORED),
    ("--packing true", {"packing": True}),
    ("--streaming true --max_steps 9", {"streaming": True, "max_steps": 9}),
    ("--train_on_inputs", {"loss_on": "everything"}),
    ("--template_name llama3", {"template_type": "llama3"}),
    ("--agent_template hermes", {"tool_format": "hermes"}),
    ("--model_max_length 512", {"max_length": 512}),
    ("--block_size 512", {"max_length": 512}),
    ("--max_source_length 256 --max_target_length 128", {"max_length": 384}),
    ("--use_lora True", NOTHING),
    ("--use_lora False", FULL),
    ("--use_peft False", FULL),
    ("--q_lora True", {"quantization_bit": 4}),
    ("--qlora True", {"quantization_bit": 4}),
    ("--q_lora False", NOTHING),
    ("--load_in_4bit True", {"quantization_bit": 4}),
    ("--load_in_8bit True", {"quantization_bit": 8}),
    ("--lora_r 64 --lora_dropout 0.05", {"lora_rank": 64, "lora_dropout_p": 0.05}),
    ("--lora_target_modules all", {"lora_target_modules": ["ALL"]}),
    ("--target_modules q_proj,v_proj", {"lora_target_modules": ["q_proj", "v_proj"]}),
    ("--lora_bias none --modules_to_save embed_tokens,lm_head", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    ("--loraplus_lr_ratio 16", {"lorap_lr_ratio": 16.0}),
    ("--init_lora_weights pissa", {"lora_init": "pissa"}),
    ("--init_weights True", NOTHING),
    ("--use_dora true --use_rslora", {"use_dora": True, "use_rslora": True}),
    ("--lora_weight_path /p", {"peft_path": "/p"}),
    ("--peft_path /p", {"peft_path": "/p"}),
    ("--per_device_train_batch_size 2 --per_device_eval_batch_size 4", {"batch_size": 2, "eval_batch_size": 4}),
    ("--evaluation_strategy no --save_strategy epoch", {"eval_strategy": "no", "save_strategy": "epoch"}),
    ("--logging_strategy steps", {"train_args": ["logging_strategy=steps"]}),
    ("--warmup_steps 10", {"train_args": ["warmup_steps=10"]}),
    ("--adam_beta1 0.8 --adam_beta2 0.95", {"train_args": ["adam_beta1=0.8", "adam_beta2=0.95"]}),
    ("--adam_epsilon 1e-6", {"train_args": ["adam_epsilon=1e-6"]}),
    ("--max_grad_norm 0.5 --lr_scheduler_type linear", {"max_grad_norm": 0.5, "lr_scheduler_type": "linear"}),
    ("--optim adamw_hf", NOTHING),
    ("--optim adafactor", {"optim": "adafactor"}),
    ("--deepspeed zero2", {"deepspeed_config_path": "zero2"}),
    ("--gradient_checkpointing True", {"gradient_checkpointing": "full"}),
    ("--padding_free", {"padding_free": "true"}),
    ("--no_padding_free", {"padding_free": "false"}),
    ("--activation_checkpointing False", {"gradient_checkpointing": "none"}),
    ("--neft_alpha 5", {"neftune_noise_alpha": 5.0}),
    ("--neftune_noise_alpha 5", {"neftune_noise_alpha": 5.0}),
    ("--rope_scaling linear", {"rope_scaling": "linear"}),
    ("--shift_attn True", {"shift_attn": True}),
    ("--use_liger_kernel true", {"use_liger": True}),
    ("--enable_liger_kernel true", {"use_liger": True}),
    ("--flash_attn True", {"use_flash_attn": True}),
    ("--flash_attn fa2", {"use_flash_attn": True}),
    ("--flash_attn auto", NOTHING),
    ("--group_by_length", {"group_by_length": True}),
    ("--report_to tensorboard", NOTHING),
    ("--logging_dir runs", IGNORED),
    ("--run_name r", {"run_name": "r"}),
    ("--ddp_timeout 30000", {"train_args": ["ddp_timeout=30000"]}),
    ("--ddp_find_unused_parameters False", {"train_args": ["ddp_find_unused_parameters=False"]}),
    ("--logging_first_step", {"train_args": ["logging_first_step=true"]}),
    ("--do_train", IGNORED),
    ("--do_eval true", IGNORED),
    ("--overwrite_output_dir", IGNORED),
    ("--remove_unused_columns False", IGNORED),
    ("--ignore_pad_token_for_loss True", IGNORED),
    ("--use_fast_tokenizer False", IGNORED),
    ("--nproc_per_node 2", {"nproc": 2}),
    ("--model /m --tuner_type full", {"model_id_or_path": "/m", **FULL}),
    ("--train_type full --split_dataset_ratio 0.1", {**FULL, "dataset_test_ratio": 0.1}),
    ("--truncation_strategy right", {"truncation_strategy": "right"}),
    ("--loss_scale default", NOTHING),
    ("--loss_scale last_round", {"loss_on": "last"}),
    ("--loss_scale all", {"loss_on": "everything"}),
    ("--use_hf true", {"use_hf": True}),
    ("--stage sft --finetuning_type full", FULL),
    ("--stage dpo", "the stage is the command: llmtune dpo, say"),
    ("--cutoff_len 512 --lora_target all", {"max_length": 512, "lora_target_modules": ["ALL"]}),
    (
        "--image_max_pixels 9000 --freeze_vision_tower false --freeze_multi_modal_projector false",
        {"max_pixels": 9000, "freeze_vit": False, "freeze_aligner": False},
    ),
    ("--lora_target q_proj,v_proj", {"lora_target_modules": ["q_proj", "v_proj"]}),
    ("--template chatml --dataset_dir ./d", {"dataset": ["./d"]}),
    (
        "--max_samples 9 --val_size 0.1 --eval_dataset e",
        {"train_dataset_sample": 9, "dataset_test_ratio": 0.1, "val_dataset": ["e"]},
    ),
    ("--save_only_model true --adapter_name_or_path /p", {"only_save_model": True, "peft_path": "/p"}),
    ("--additional_target embed_tokens --default_system S", {"modules_to_save": ["embed_tokens"], "system": "S"}),
    (
        "--quantization_method bnb --quantization_type fp4 --double_quantization false --quantization_bit 4",
        {"quantization_bit": 4, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False},
    ),
    ("--quantization_method hqq", "expected bnb"),
    ("--neat_packing true --train_on_prompt true", {"packing": True, "loss_on": "everything"}),
    ("--mask_history true --pissa_init true", {"loss_on": "last", "lora_init": "pissa"}),
    ("--mask_history false", NOTHING),
    ("--plot_loss true", IGNORED),
    ("--preprocessing_batch_size 9", IGNORED),
    ("--low_cpu_mem_usage true", IGNORED),
    # Our own second spellings
    ("--tuner_bankend swift --dataset_split_seed 3", {"tuner_backend": "swift", "dataset_seed": 3}),
]


@pytest.mark.parametrize(("argv", "expected"), NEIGHBOURS, ids=[argv for argv, _ in NEIGHBOURS])
def test_each_flag_of_another_tool_is_translated_ignored_or_refused(argv, expected, capsys):
    if expected == IGNORED:
        assert changed(*argv.split()) == NOTHING
        assert IGNORED in capsys.readouterr().err
    elif isinstance(expected, str):
        with pytest.raises(UsageError, match=expected):
            sft(*argv.split())
    else:
        assert changed(*argv.split()) == expected


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--lora_r 4", "Translated flags: --lora_r -> --lora_rank.\n"),
        ("--use_lora False", "Translated flags: --use_lora False -> --sft_type full.\n"),
        ("--torch_dtype auto", "Translated flags: --torch_dtype auto -> the default.\n"),
        ("--do_train", "Ignored flags: --do_train (the command itself says so).\n"),
        ("--lora_r 4 --lora_r 5", "Translated flags: --lora_r -> --lora_rank.\n"),
        (
            "--lora_r 4 --do_train --use_lora True --overwrite_output_dir",
            "Translated flags: --lora_r -> --lora_rank, --use_lora True -> --sft_type lora.\n"
            "Ignored flags: --do_train (the command itself says so), "
            "--overwrite_output_dir (every run has its own folder).\n",
        ),
        ("--dataset_split_seed 3", ""),
        ("--lora_target_modules q_proj,v_proj", ""),
        ("--optim adafactor", ""),
    ],
)
def test_translated_and_ignored_flags_take_one_log_line_each(argv, said, capsys):
    sft(*argv.split())
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--torch_dtype int8", "--torch_dtype int8: expected float16, bfloat16, float32 or auto"),
        ("--finetuning_type freeze", "expected lora or full"),
        ("--loss_scale react", "expected default, last_round or all"),
        ("--use_lora perhaps", "expected true or false"),
        ("--max_source_length 256", "give both --max_source_length and --max_target_length"),
        ("--validation_split_percentage x", "--validation_split_percentage x"),
        ("--validation_split_percentage", "--validation_split_percentage"),
        ("--loss_scale", "--loss_scale"),
        ("--finetuning_type", "--finetuning_type"),
        ("--optim", "--optim"),
    ],
)
def test_an_alias_refuses_a_value_without_a_translation(argv, said):
    with pytest.raises(UsageError, match=said):
        sft(*argv.split())


INFERS = {"adapters", "use_streamer", "overwrite_generation_config", "base_model", "lora_model", "format"}


def test_the_table_holds_every_alias():
    flags = {word[2:] for argv, _ in NEIGHBOURS for word in argv.split() if word.startswith("--")}
    of_stages = {word[2:] for _, words, _ in OF_STAGES for word in words if word.startswith("--")}
    of_stages |= {word[2:] for _, line, _ in OF_ONLINE for word in line.split() if word.startswith("--")}
    assert set(ALIASES) - flags - of_stages == INFERS  # tested below and with merge


def test_infer_knows_them_too(tmp_path):
    (tmp_path / "config.json").write_text("{}")  # a checkpoint of whole weights, as far as flags are concerned
    argv = ["--use_streamer", "false", "--torch_dtype", "float32", "--overwrite_generation_config", "true"]
    found = parse(InferArguments, [*TINY, *argv, "--adapters", str(tmp_path)], command="infer")
    assert (found.stream, found.dtype, found.save_generation_config) == (False, "fp32", True)
    assert found.ckpt_dir == str(tmp_path)


def test_an_adapter_of_llama_factory_is_a_checkpoint_afterwards(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    found = parse(InferArguments, [*TINY, "--adapter_name_or_path", str(tmp_path)], command="infer")
    assert found.ckpt_dir == str(tmp_path)


def test_a_flag_of_the_command_itself_is_no_alias(capsys):
    """--adapters of ms-swift is our --ckpt_dir; `serve` and `web` have one of their own."""
    from llmtune.arguments.service import ServeArguments

    with pytest.raises(UsageError, match="'law'"):
        parse(ServeArguments, [*TINY, "--adapters", "law"], command="serve")
    assert "Translated" not in capsys.readouterr().err
