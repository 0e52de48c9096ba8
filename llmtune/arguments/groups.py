"""Flags that several commands share, one class per subject. The text below a field is its help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from llmtune.arguments.fields import Given, Rule, above, at_least, between, fixed, free, only, taken
from llmtune.hub.clients import HubOptions
from llmtune.models.folder import model_folder
from llmtune.models.info import MODEL_MAPPING
from llmtune.types import LossOn, TruncationStrategy

SftType = Literal["lora", "full", "adalora", "ia3", "vera"]


EMPTY = "--{name} is empty: is a variable of your script unset? Omit the flag for the default."
TWO_NAMES = "--{name} takes one or two names (Chinese, other)."


def _has_no_empty_item(name: str) -> Callable[[Any], bool]:
    return lambda args: all(str(item).strip(" ,") for item in getattr(args, name))


def _has_two_items(name: str) -> Callable[[Any], bool]:
    return lambda args: len(getattr(args, name)) <= 2


@dataclass(kw_only=True)
class ModelArguments(Given):
    """Model."""

    model_type: str | None = fixed(None)
    """Key of the model (`llmtune list models`). Default: qwen-7b-chat."""
    model_id_or_path: str | None = taken(None)
    """Local folder or hub id of the weights, instead of the key's own. Given alone, the key is found from it."""
    model_revision: str | None = fixed(None)
    """Branch, tag or commit on the hub. Default: the model entry's."""
    use_hf: bool | None = taken(None)
    """Download models and datasets from Hugging Face instead of ModelScope. Default: environment variable USE_HF."""
    hub_token: str | None = free(None)
    """Hub token. Default: MODELSCOPE_API_TOKEN or HF_TOKEN from the environment. Never written to a file."""
    cache_dir: str | None = free(None)
    """Download folder. Default: the hub client's own."""
    tokenizer_id_or_path: str | None = taken(None)
    """Folder of the tokenizer. Default: the model's."""
    template_type: str | None = fixed(None)
    """Key of the chat template (`llmtune list templates`). Default: the model entry's."""
    tool_format: str | None = fixed(None)
    """Format of tools, tool calls and results (`llmtune list tool_formats`). Default: the template's."""
    sft_type: SftType = fixed("lora")
    """Kind of fine-tuning: a PEFT adapter on top of the frozen weights, or full: all weights."""
    tuner_backend: Literal["peft", "swift"] = free("peft")
    """Adapter library; `swift` is accepted and means peft. Also spelled --tuner_bankend."""
    dtype: Literal["bf16", "fp16", "fp32"] | None = taken(None)
    """Data type of the weights. Default: the model entry's; else bf16, fp16 on GPUs without bf16, fp32 on CPU."""
    device_map: Literal["auto", "balanced", "sequential"] | None = free(None)
    """Spread the layers over all GPUs of a process (naive pipeline, one GPU at a time). Default: a single GPU."""
    use_flash_attn: bool | None = taken(None)
    """Use FlashAttention. Default: the fastest attention available."""
    trust_remote_code: bool = free(False)
    """Run Python code that ships with the checkpoint."""
    allow_pickle: bool = free(False)
    """Load pickle weights (.bin) where there are no safetensors. Pickle files can run arbitrary code."""
    custom_register_path: str | None = free(None)
    """Python file with your own register_model, register_dataset and register_template calls."""
    seed: int = fixed(42)
    """Seed of adapter initialisation, data order, dropout and sampling; --dataset_seed chooses the rows."""

    def display_name(self) -> str:
        """Name of the model in file names: its key, or the name of its folder if it has no entry."""
        if self.model_type == "auto" and self.model_id_or_path:
            return Path(self.model_id_or_path).expanduser().resolve().name
        return str(self.model_type)

    def hub(self) -> HubOptions:
        """Which hub is asked, and how."""
        return HubOptions(self.use_hf, self.model_revision, self.hub_token, self.cache_dir)

    def folder(self, *, weights: bool = False) -> Path:
        """The folder of the model, downloaded where it is not on this machine; the weights only where asked for."""
        return model_folder(MODEL_MAPPING[str(self.model_type)], self.model_id_or_path, hub=self.hub(), weights=weights)

    def load_tokenizer(self, folder: Path | None = None, tokenizer: str | None = None) -> Any:
        """Load the tokenizer alone; with `folder`, that of another folder, or the one of `tokenizer`."""
        from llmtune.models.loading import get_model_tokenizer

        _, found = get_model_tokenizer(
            self.model_type,
            model_id_or_path=self.model_id_or_path if folder is None else str(folder),
            load_model=False,
            tokenizer_id_or_path=self.tokenizer_id_or_path if folder is None else tokenizer,
            trust_remote_code=self.trust_remote_code,
            **self.hub_options(),
        )
        return found

    def media_reader(self, tokenizer: Any, place: str | None = None, max_pixels: int | None = None) -> Any:
        """Return the reader of images of the model, or of `place`; None for a text model."""
        from llmtune.models.loading import get_media_reader

        return get_media_reader(
            str(self.model_type),
            tokenizer,
            model_id_or_path=place or self.model_id_or_path,
            max_pixels=max_pixels,
            **self.hub_options(),
        )

    def hub_options(self) -> dict[str, Any]:
        """Hub arguments of `get_model_tokenizer`."""
        return {
            "use_hf": self.use_hf,
            "revision": self.model_revision,
            "hub_token": self.hub_token,
            "cache_dir": self.cache_dir,
        }


@dataclass(kw_only=True)
class PromptArguments:
    """Prompts."""

    system: str | None = fixed(None)
    """System prompt for rows without one. Default: the template's."""
    chat_template_kwargs: str | None = fixed(None)
    """Variables of the tokenizer's own chat template (--template_type auto), as a JSON object: '{"enable_thinking":
    false}'. Those of a row or request override them. Registered templates accept enable_thinking only."""
    max_pixels: int | None = fixed(None, within=at_least(1))
    """Images with more pixels are scaled down, and take fewer tokens. Default: the model's own limit."""
    special_tokens_in_text: Literal["text", "special"] = fixed("text")
    """How the spelling of a control token inside the data is encoded: as plain text, or as that special token."""


@dataclass(kw_only=True)
class DataArguments:
    """Data."""

    dataset: list[str] = taken(factory=list)
    """Datasets: keys (`llmtune list datasets`), local files or folders. Append `#1000` to sample 1,000 rows."""
    val_dataset: list[str] = taken(factory=list)
    """Validation datasets, used whole; nothing is then split off the training data."""
    dataset_test_ratio: float = fixed(0.01, within=between(0, 1), only=only(streaming=False))
    """Fraction of each dataset split off for validation, unless it has its own validation split."""
    dataset_seed: int = fixed(42, within=at_least(0), only=only(streaming=False))
    """Seed for sampling and splitting rows. Also spelled --dataset_split_seed."""
    train_dataset_sample: int = fixed(20000, within=at_least(0, also=-1, meaning="all"), only=only(streaming=False))
    """Number of training rows, sampled over all datasets; -1: all."""
    val_dataset_sample: int | None = fixed(None, within=at_least(0, also=-1, meaning="all"))
    """Number of validation rows. Default: train_dataset_sample x dataset_test_ratio, of the rows split off."""
    max_length: int = fixed(2048, within=at_least(2, also=-1, meaning="no limit"))
    """Max tokens per sample, special tokens included; -1: no limit."""
    truncation_strategy: TruncationStrategy = fixed("left")
    """How samples longer than max_length are cut: left, at their start; right, at their end; delete, dropped."""
    loss_on: LossOn = fixed("auto")
    """Which tokens contribute to the loss: auto (by the row's format and its loss marks), last (the last assistant
    turn), all (all assistant turns), everything (prompts too)."""
    strict: bool = taken(False)
    """Stop at the first bad row instead of counting and skipping it."""
    model_name: list[str] = fixed(factory=list)
    """Name that replaces {{NAME}}: the Chinese and the other form, or one for both."""
    model_author: list[str] = fixed(factory=list)
    """Author that replaces {{AUTHOR}}: the Chinese and the other form, or one for both."""
    overwrite_cache: bool = free(False)
    """Read and encode the data again, even if an earlier run cached it."""
    dataset_num_proc: int = free(1, within=at_least(1))
    """Processes per machine that read large files and folders by parts, and encode more than 500,000 rows, in shards.
    Several jobs and machines that share a cache folder (LLMTUNE_CACHE) share the shards, too."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        *(Rule(_has_no_empty_item(name), EMPTY.format(name=name)) for name in ("dataset", "val_dataset")),
        *(Rule(_has_two_items(name), TWO_NAMES.format(name=name)) for name in ("model_name", "model_author")),
    )


@dataclass(kw_only=True)
class QuantizationArguments:
    """Quantisation."""

    quantization_bit: Literal[0, 4, 8] = fixed(0)
    """Bits of the frozen weights under adapters, and of any model at inference; 0: not quantised."""
    quant_method: Literal["bnb", "torchao"] = fixed("bnb", only=only(quantization_bit=(4, 8)))
    """Library that quantises the weights at load time: bitsandbytes, or torchao (8 bits only)."""
    bnb_4bit_comp_dtype: Literal["bf16", "fp16", "fp32"] | None = fixed(None, only=only(quantization_bit=4))
    """Compute dtype of 4-bit weights. Default: dtype."""
    bnb_4bit_quant_type: Literal["fp4", "nf4"] = fixed("nf4", only=only(quantization_bit=4))
    """4-bit data type: NormalFloat (nf4) or float (fp4)."""
    bnb_4bit_use_double_quant: bool = fixed(True, only=only(quantization_bit=4))
    """Quantise the quantisation constants too (double quantisation)."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            lambda args: args.quant_method == "bnb" or args.quantization_bit in (0, 8),
            "--quant_method torchao supports 8 bits only: use --quantization_bit 8, or --quant_method bnb for 4.",
        ),
    )


@dataclass(kw_only=True)
class SamplingArguments:
    """Generation."""

    max_new_tokens: int = taken(2048, within=at_least(1))
    """Max tokens per generation."""
    do_sample: bool = taken(True)
    """Sample; false: greedy decoding, or beam search with --num_beams."""
    temperature: float = taken(0.9, within=at_least(0))
    """Sampling temperature: above 1 flattens the distribution, below 1 sharpens it."""
    top_k: int = taken(20, within=at_least(0))
    """Sample from the k most likely tokens; 0: all."""
    top_p: float = taken(0.9, within=between(0, 1, open_low=True))
    """Nucleus sampling: sample from the most likely tokens that make up this probability."""
    repetition_penalty: float = taken(1.0, within=above(0))
    """Above 1: tokens that already occur become less likely."""
    no_repeat_ngram_size: int = taken(0, within=at_least(0))
    """Never generate an n-gram of this size twice; 0: off."""


@dataclass(kw_only=True)
class GenerationArguments(SamplingArguments):
    """Beam search."""

    num_beams: int = taken(1, within=at_least(1))
    """Beams of beam search; 1: no beam search."""


@dataclass(kw_only=True)
class HubPushArguments:
    """Pushing to a hub."""

    push_to_hub: bool = free(False)
    """Push checkpoints, or the exported folder, to ModelScope, or to Hugging Face with --use_hf true."""
    hub_model_id: str | None = free(None, only=only(push_to_hub=True))
    """Repository: owner/name, or a name under your own account. Default: named after model and run, or the folder."""
    hub_private_repo: bool = free(True, only=only(push_to_hub=True))
    """Create the repository as private."""


# Flags of attention, kernels and long context


AttentionName = Literal[
    "eager", "sdpa", "varlen", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4"
]


@dataclass(kw_only=True)
class AttentionArguments:
    """Attention."""

    attn_impl: AttentionName | None = taken(None)
    """Attention implementation; varlen: torch's variable-length attention for packed sequences. Default: the fastest
    available."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            lambda args: (
                None in (args.attn_impl, args.use_flash_attn)
                or args.attn_impl.startswith("flash") == args.use_flash_attn
            ),
            "--use_flash_attn {use_flash_attn} and --attn_impl {attn_impl} contradict each other: use --attn_impl "
            "only.",
        ),
    )


@dataclass(kw_only=True)
class RopeArguments:
    """RoPE scaling."""

    rope_scaling: Literal["linear", "dynamic", "yarn"] | None = fixed(None)
    """RoPE scaling for sequences longer than the model was trained on; saved with the checkpoint and applied at
    inference."""
    rope_factor: float | None = fixed(None, within=above(1))
    """RoPE scaling factor. Default: max_length / the context length the model was trained on, rounded up."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            lambda args: args.rope_factor is None or args.rope_scaling is not None,
            "--rope_factor needs --rope_scaling linear, dynamic or yarn.",
        ),
    )


def rope_options(args: RopeArguments) -> dict[str, Any]:
    """RoPE-scaling arguments of `get_model_tokenizer`; empty without scaling."""
    if args.rope_scaling is None or args.rope_factor is None:
        return {}
    return {"rope": (args.rope_scaling, args.rope_factor)}
