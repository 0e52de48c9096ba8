"""Flags of LLaMA-Factory that only differ in name, on the command line and in files."""

from __future__ import annotations

from collections.abc import Callable

Tokens = list[tuple[str, list[str]]]
Converter = Callable[[list[str]], Tokens]

RENAMED = {
    "adapter_name_or_path": "peft_path",
    "additional_target": "modules_to_save",
    "default_system": "system",
    "double_quantization": "bnb_4bit_use_double_quant",
    "eval_dataset": "val_dataset",
    "max_samples": "train_dataset_sample",
    "quantization_type": "bnb_4bit_quant_type",
    "save_only_model": "only_save_model",
    "val_size": "dataset_test_ratio",
}
NO_EFFECT = {
    "plot_loss": "images/ has the curves in any case",
    "preprocessing_batch_size": "it changes no row",
    "low_cpu_mem_usage": "weights are always loaded piece by piece",
}


def _when_true(flag: str, wanted: str) -> Converter:
    def convert(values: list[str]) -> Tokens:
        text = (values or ["true"])[0].lower()
        if text not in ("true", "false"):
            raise ValueError("expected true or false")
        return [(flag, [wanted])] if text == "true" else []

    return convert


def _method(values: list[str]) -> Tokens:
    names = {"bnb": "bnb", "bitsandbytes": "bnb", "torchao": "torchao"}
    if values[0].lower() not in names:
        raise ValueError("expected bnb; hqq and eetq are not there")
    return [("quant_method", [names[values[0].lower()]])]


CONVERTED: dict[str, Converter] = {
    "neat_packing": _when_true("packing", "true"),
    "train_on_prompt": _when_true("loss_on", "everything"),
    "mask_history": _when_true("loss_on", "last"),
    "pissa_init": _when_true("lora_init", "pissa"),
    "quantization_method": _method,
}
