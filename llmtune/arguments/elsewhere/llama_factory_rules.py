"""Keys of LLaMA-Factory's YAML (0.9.5), beside those that `aliases.py` knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmtune.arguments.elsewhere import projected
from llmtune.arguments.elsewhere.templates import AUTO
from llmtune.arguments.elsewhere.templates import LLAMA_FACTORY as TEMPLATES
from llmtune.arguments.elsewhere.translation import Harmless, Lacks, Rule, Translation, as_list, is_off, is_on, text_of


def _template(found: Translation, key: str, value: Any) -> None:
    name = text_of(value)
    if name not in TEMPLATES:
        found.refuse(key, "llmtune has no template of this text. Give --template_type KEY, or auto.", "template_type")
        return
    own = " (the tokenizer's own chat template)" if TEMPLATES[name] == AUTO else ""
    found.set("template_type", TEMPLATES[name], theirs=key, note=own.strip(" ()"))


def _thinking(found: Translation, key: str, value: Any) -> None:
    if is_on(value):
        found.without_effect(key, "as the template has it")
    else:
        found.set("chat_template_kwargs", '{"enable_thinking": false}', theirs=key)


def _no_checkpointing(found: Translation, key: str, value: Any) -> None:
    if is_on(value):
        found.set("gradient_checkpointing", "none", theirs=key)
    else:
        found.without_effect(key, "--gradient_checkpointing auto recomputes as little as memory allows")


def _deepspeed(found: Translation, key: str, value: Any) -> None:
    if "z0" in Path(text_of(value)).name:
        found.without_effect(key, "stage 0 shards nothing: --nproc N alone")
    else:
        found.set("deepspeed_config_path", value, theirs=key)


def _val_size(found: Translation, key: str, value: Any) -> None:
    size = float(text_of(value))
    if size < 1:
        found.set("dataset_test_ratio", value, theirs=key)
    else:
        found.refuse(key, "a number of rows. Give --dataset_test_ratio with a fraction.", "dataset_test_ratio")


def _method(found: Translation, key: str, value: Any) -> None:
    names = {"bnb": "bnb", "bitsandbytes": "bnb"}
    name = text_of(value).lower()
    if name in names:
        found.set("quant_method", names[name], theirs=key)
    elif is_off(found.content.get("quantization_bit")):
        found.without_effect(key, "not used")
    else:
        found.refuse(key, "llmtune quantises by bnb or torchao.", "quant_method")


def _packing(found: Translation, key: str, value: Any) -> None:
    if found.stage == "pt":
        found.without_effect(key, "documents are joined and cut into blocks, unless it is false")
    elif is_on(value):
        neat = not is_off(found.content.get("neat_packing"))
        found.set("packing", True, theirs=key, note="" if neat else "packed rows do not attend to each other")


def _finetuning(found: Translation, key: str, value: Any) -> None:
    name = text_of(value)
    if name in ("lora", "full"):
        found.set("sft_type", name, theirs=key)
    elif name == "freeze":
        found.refuse(key, "say it as --sft_type full --freeze_layers N, which counts from the first layer.", "sft_type")
    else:
        found.refuse(key, "llmtune has lora, full, adalora, ia3 and vera: --sft_type.", "sft_type")


def _fsdp(found: Translation, key: str, value: Any) -> None:
    words = " ".join(map(text_of, as_list(value)))
    if not is_off(words):
        found.set("fsdp", True, theirs=key)
    if "offload" in words:
        found.set("fsdp_offload", True, theirs=key)


def _bf16(found: Translation, key: str, value: Any) -> None:
    if is_on(value):
        found.set("dtype", "bf16", theirs=key)


def _when(flag: str, wanted: str) -> Any:
    def rule(found: Translation, key: str, value: Any) -> None:
        if is_on(value):
            found.set(flag, wanted, theirs=key)

    return rule


RULES: dict[str, Rule] = {
    "finetuning_type": _finetuning,
    "template": _template,
    "quantization_method": _method,
    "val_size": _val_size,
    "packing": _packing,
    "pure_bf16": _bf16,
    "enable_thinking": _thinking,
    "disable_gradient_checkpointing": _no_checkpointing,
    "deepspeed": _deepspeed,
    "fsdp": _fsdp,
    "ms_hub_token": Harmless("the hub's token is read from the environment"),
    "hf_hub_token": Harmless("the hub's token is read from the environment"),
    "om_hub_token": Harmless("the hub's token is read from the environment"),
    "pissa_iter": Harmless("PiSSA is computed exactly"),
    "pissa_convert": Harmless("the adapter is saved as plain LoRA on the original weights"),
    "fsdp_transformer_layer_cls_to_wrap": Harmless("decoder layers are wrapped"),
    "tokenized_path": Harmless("rows are encoded once and cached"),
    "data_shared_file_system": Harmless("the cache is locked in any case"),
    "use_v1_kernels": Harmless("speed only"),
    "use_unsloth": Harmless("speed only"),
    "use_unsloth_gc": Harmless("memory only: --gradient_checkpointing auto"),
    "use_reentrant_gc": Harmless("it changes no number"),
    "print_param_status": Harmless("logging only"),
    "offload_folder": Harmless("nothing is offloaded to disk"),
    "use_kv_cache": Harmless("generation always has a KV cache"),
    "infer_backend": Harmless("`llmtune serve --backend` chooses it"),
    "infer_dtype": Harmless("--dtype"),
    "ray_num_workers": Harmless("start processes with --nproc N, or a Ray job with `llmtune launch --ray true`"),
    "ray_init_kwargs": Harmless("`llmtune launch --ray true`"),
    "master_addr": Harmless("of its launcher"),
    "master_port": Harmless("of its launcher"),
    "video_max_pixels": Harmless("rows with videos are refused, not guessed"),
    "video_min_pixels": Harmless("rows with videos are refused, not guessed"),
    "video_fps": Harmless("rows with videos are refused, not guessed"),
    "video_maxlen": Harmless("rows with videos are refused, not guessed"),
    "media_dir": Harmless("paths of images are looked up beside the data"),
    "do_eval": Harmless("evaluation runs whenever there is validation data"),
    "include_effective_tokens_per_second": Harmless("tokens/s are logged in any case"),
    "compute_accuracy": Harmless("token accuracy is logged in any case"),
    "resize_vocab": Harmless("new tokens resize the embeddings"),
    "split_special_tokens": _when("special_tokens_in_text", "text"),
    "do_predict": Lacks("training run that also predicts", "Call llmtune infer --ckpt_dir FOLDER --dataset DATA."),
    "mix_strategy": Lacks("interleaving of datasets", "Give each dataset its share as key#1000.", off=("concat",)),
    "interleave_probs": Lacks("interleaving of datasets", "Give each dataset its share as key#1000."),
    "freeze_language_model": Lacks("frozen language model", "Use --freeze_parameters with its names."),
    "freeze_trainable_layers": Lacks("number of last layers to train", with_key="use_llama_pro"),
    "freeze_trainable_modules": Harmless("of finetuning_type freeze"),
    "freeze_extra_modules": Lacks("further modules of finetuning_type freeze"),
    "use_llama_pro": Lacks("block expansion (LLaMA Pro)"),
    "module_dropout": Lacks("module dropout"),
    "create_new_adapter": Lacks("second adapter on top of a merged one", "Merge it first: llmtune merge."),
    "loraplus_lr_embedding": Lacks("own learning rate of embeddings (LoRA+)", off=("1e-06", "1e-6")),
    "oft_rank": Lacks("OFT"),
    "oft_block_size": Lacks("OFT", off=("32",)),
    "oft_target": Lacks("OFT", off=("all",)),
    "pref_bco_weight": Lacks("BCO loss"),
    "ref_model_adapters": Lacks("reference model of base and adapter", "Merge them, or give --reference ADAPTER."),
    "ref_model_quantization_bit": Lacks("quantisation of the reference alone"),
    "reward_model_adapters": Lacks("reward model of base and adapter", "Give --rewards rm:ADAPTER."),
    "reward_model_quantization_bit": Lacks("quantisation of the reward model alone"),
    "reward_model_type": Harmless("the folder says what it is"),
    "ppo_target": "kl_target",
    "ppo_buffer_size": Lacks("buffer of several batches in PPO", off=("1",)),
    "ppo_score_norm": Lacks("normalisation of scores in PPO"),
    "ppo_whiten_rewards": Harmless("advantages are whitened"),
    "mixture_of_depths": Lacks("mixture of depths"),
    "moe_aux_loss_coef": Lacks("weight of the router's auxiliary loss"),
    "train_from_scratch": Lacks("training from random weights"),
    "upcast_layernorm": Lacks("fp32 norms in a bf16 model"),
    "upcast_lmhead_output": Harmless("the loss is computed in fp32"),
    "add_tokens": Lacks("plain new tokens in this stage", "Use --new_special_tokens."),
    "add_special_tokens": "new_special_tokens",
    "new_special_tokens_config": Lacks("descriptions of new tokens", "Use --new_special_tokens."),
    "init_special_tokens": Lacks("choice of how new tokens begin", off=("noise_init",)),
    "image_min_pixels": Lacks("lower limit of pixels", off=("1024", "32 * 32")),
    "image_do_pan_and_scan": Lacks("pan and scan of images"),
    "crop_to_patches": Lacks("cropping of images to patches"),
    "use_audio_in_video": Lacks("audio"),
    "audio_sampling_rate": Harmless("rows with audio are refused, not guessed"),
    "preserve_thinking": Lacks("thoughts of earlier turns kept by a flag"),
    "eval_on_each_dataset": Harmless("`llmtune eval` scores each dataset apart"),
    "buffer_size": Harmless("streamed rows are shuffled by llmtune's own buffer"),
    "use_dft_loss": Lacks("DFT loss"),
    "use_asft_loss": Lacks("ASFT loss"),
    "asft_alpha": Lacks("ASFT loss", with_key="use_asft_loss"),
    "use_eaft_loss": Lacks("EAFT loss"),
    "eaft_alpha": Lacks("EAFT loss", with_key="use_eaft_loss"),
    "use_adam_mini": Lacks("Adam-mini", "Choose another with --optim."),
    "use_muon": _when("optim", "muon"),
    "fp8": Lacks("FP8 training", "Use --dtype bf16, or under adapters --fp8_base true."),
    "fp8_backend": Lacks("FP8 training", with_key="fp8"),
    "fp8_enable_fsdp_float8_all_gather": Lacks("FP8 training", with_key="fp8"),
    "use_kt": Lacks("KTransformers"),
    "use_swanlab": _when("report_to", "swanlab"),
    "early_stopping_steps": "early_stopping_patience",
    "enable_torch_profiler": Harmless("profiling only"),
    **projected.RULES,
    "use_badam": Lacks("BAdam optimizer", "Choose another with --optim."),
    **{
        f"badam_{part}": Lacks("BAdam optimizer", with_key="use_badam")
        for part in (
            *("mode", "start_block", "switch_mode", "switch_interval", "update_ratio", "mask_mode", "verbose"),
        )
    },
    **{
        f"kt_{part}": Lacks("KTransformers", with_key="use_kt")
        for part in (
            *("weight_path", "expert_checkpoint_path", "use_lora_experts", "lora_expert_num"),
            "lora_expert_intermediate_size",
        )
    },
    **{
        name: Lacks("Megatron's parallelism", "Use --fsdp true or --deepspeed_config_path.", off=("1",))
        for name in (
            *("tensor_model_parallel_size", "pipeline_model_parallel_size", "expert_model_parallel_size"),
            *("sequence_parallel", "context_parallel_size"),
        )
    },
}
_TRAINS = (
    *(
        "per_device_train_batch_size",
        "learning_rate",
        "warmup_ratio",
        "logging_steps",
        "num_train_epochs",
        "save_steps",
    ),
    *("bf16", "dataloader_num_workers", "ddp_timeout", "lr_scheduler_type", "gradient_accumulation_steps", "report_to"),
)
OF_PREDICTION: dict[str, Rule] = {
    "adapter_name_or_path": "ckpt_dir",
    "output_dir": "result_dir",
    "per_device_eval_batch_size": "infer_batch_size",
    **dict.fromkeys(("do_predict", "predict_with_generate"), Harmless("the command itself says so")),
    **dict.fromkeys(_TRAINS, Harmless("of training")),
}
"""Keys of a file that predicts and does not train."""
