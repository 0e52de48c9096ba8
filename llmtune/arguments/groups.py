"""The flags that several commands share, one small class a subject. The text below a field is its help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmtune.arguments.fields import Given, fixed, free, taken
from llmtune.types import LossOn, TruncationStrategy

__all__ = ["DataArguments", "GenerationArguments", "ModelArguments", "QuantizationArguments", "SftType"]

SftType = Literal["lora", "full", "adalora", "ia3", "vera"]


@dataclass(kw_only=True)
class ModelArguments(Given):
    """Model."""

    model_type: str | None = fixed(None)
    """Key of the model (`llmtune list models`). Documented default: qwen-7b-chat."""
    model_id_or_path: str | None = taken(None)
    """Local folder or hub id of the weights, instead of the one that the key names. Alone, it also finds the key."""
    model_revision: str | None = fixed(None)
    """Branch, tag or commit on the hub. Default: the entry's."""
    use_hf: bool | None = taken(None)
    """Take models and data sets from Hugging Face instead of ModelScope. Default: as USE_HF in the environment says."""
    hub_token: str | None = free(None)
    """Token of the hub. Default: the environment's MODELSCOPE_API_TOKEN or HF_TOKEN. Never written to a file."""
    cache_dir: str | None = free(None)
    """Folder for what is downloaded. Default: the hub client's own."""
    tokenizer_id_or_path: str | None = taken(None)
    """Folder of the tokenizer. Default: the model's."""
    template_type: str | None = fixed(None)
    """Key of the chat template (`llmtune list templates`). Default: the model entry's."""
    tool_format: str | None = fixed(None)
    """How tools, calls and results are written (`llmtune list tool_formats`). Default: as the template names it."""
    sft_type: SftType = fixed("lora")
    """What is trained: adapters of one of PEFT's kinds beside the frozen weights, or, full, all the weights."""
    tuner_backend: Literal["peft", "swift"] = free("peft")
    """Library of the adapters; `swift` is accepted and taken for peft. Also spelled --tuner_bankend."""
    dtype: Literal["bf16", "fp16", "fp32"] | None = taken(None)
    """Number format of the weights. Default: the entry's; else bf16, fp16 where the GPU lacks bf16, fp32 on a CPU."""
    device_map: Literal["auto", "balanced", "sequential"] | None = free(None)
    """Spread the layers over all the GPUs of a process, which work one after the other. Default: one GPU holds all."""
    use_flash_attn: bool | None = taken(None)
    """Ask for flash attention. Default: whatever attention the machine offers."""
    trust_remote_code: bool = free(False)
    """Run Python code that comes with the checkpoint."""
    allow_pickle: bool = free(False)
    """Read weights from pickle files (.bin), which can run any code, where there are no safetensors."""
    custom_register_path: str | None = free(None)
    """Python file with your own register_model, register_dataset and register_template calls."""
    seed: int = fixed(42)
    """Seed of everything random but the choice of rows: adapters, order, dropout, sampling."""

    def display_name(self) -> str:
        """What the model is called in file names: its key, or the name of its folder where no entry knows it."""
        if self.model_type == "auto" and self.model_id_or_path:
            return Path(self.model_id_or_path).expanduser().resolve().name
        return str(self.model_type)

    def hub_options(self) -> dict[str, Any]:
        """Which hub is asked, and how, as `get_model_tokenizer` takes it."""
        return {
            "use_hf": self.use_hf,
            "revision": self.model_revision,
            "hub_token": self.hub_token,
            "cache_dir": self.cache_dir,
        }


@dataclass(kw_only=True)
class DataArguments:
    """Data."""

    dataset: list[str] = taken(factory=list)
    """Data sets: keys (`llmtune list datasets`), local files or folders; `#1000` behind one samples 1,000 rows."""
    val_dataset: list[str] = taken(factory=list)
    """Data sets that serve for validation whole; then nothing is split off."""
    dataset_test_ratio: float = fixed(0.01)
    """Share of each data set without a validation part of its own that is split off for validation."""
    dataset_seed: int = fixed(42)
    """Seed of sampling and splitting. Also spelled --dataset_split_seed."""
    train_dataset_sample: int = fixed(20000)
    """Training rows, sampled over all the rows; -1 keeps all."""
    val_dataset_sample: int | None = fixed(None)
    """Validation rows. Default: train_dataset_sample times dataset_test_ratio, of what was split off."""
    system: str | None = fixed(None)
    """System text for rows without one of their own. Default: the template's."""
    chat_template_kwargs: str | None = fixed(None)
    """Variables for the tokenizer's own chat template (--template_type auto), as a JSON object:
    '{"enable_thinking": false}'. A row's or a request's own come on top. Registered templates know enable_thinking."""
    max_length: int = fixed(2048)
    """Tokens kept of a sample, special tokens included; -1 keeps all."""
    max_pixels: int | None = fixed(None)
    """Images with more pixels than that are made smaller, and take fewer tokens. Default: the model's own limit."""
    truncation_strategy: TruncationStrategy = fixed("left")
    """What a longer sample loses: left, its start; right, its end; delete, all of it."""
    loss_on: LossOn = fixed("auto")
    """Learned answers: auto, as shape and marks of the row have it; last; all; everything, the prompts too."""
    special_tokens_in_text: Literal["text", "special"] = fixed("text")
    """What a control token's spelling inside the data means: plain text, or the token."""
    strict: bool = taken(False)
    """Stop at the first bad row instead of counting and leaving it out."""
    model_name: list[str] = fixed(factory=list)
    """Name to fill in for {{NAME}}: Chinese form and other form, or one for both."""
    model_author: list[str] = fixed(factory=list)
    """Author to fill in for {{AUTHOR}}: Chinese form and other form, or one for both."""
    overwrite_cache: bool = free(False)
    """Read and encode the data anew even where an earlier run left it encoded."""


@dataclass(kw_only=True)
class QuantizationArguments:
    """Quantisation."""

    quantization_bit: Literal[0, 4, 8] = fixed(0)
    """Bits of the frozen weights under adapters, and of any model in inference; 0 leaves them as they are."""
    quant_method: Literal["bnb", "torchao"] = fixed("bnb")
    """What quantises while the weights are loaded: bitsandbytes, or torchao, which has 8 bits alone."""
    bnb_4bit_comp_dtype: Literal["bf16", "fp16", "fp32"] | None = fixed(None)
    """Number format that 4-bit weights are computed in. Default: dtype."""
    bnb_4bit_quant_type: Literal["fp4", "nf4"] = fixed("nf4")
    """Kind of 4-bit number."""
    bnb_4bit_use_double_quant: bool = fixed(True)
    """Quantise the quantisation constants as well."""


@dataclass(kw_only=True)
class GenerationArguments:
    """Generation."""

    max_new_tokens: int = taken(2048)
    """Tokens that an answer may have at most."""
    do_sample: bool = taken(True)
    """Draw tokens by chance; false takes the most likely one."""
    temperature: float = taken(0.9)
    """Above 1 flattens the distribution, below 1 sharpens it."""
    top_k: int = taken(20)
    """Draw from the so many most likely tokens; 0 from all."""
    top_p: float = taken(0.9)
    """Draw from the most likely tokens that make up this share."""
    repetition_penalty: float = taken(1.0)
    """Above 1 makes tokens that stand in the text already less likely."""
    num_beams: int = taken(1)
    """Beams of beam search; 1 is none."""
    no_repeat_ngram_size: int = taken(0)
    """Never write an n-gram of this size twice; 0 allows it."""
