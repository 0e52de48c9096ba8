"""Tiny random models that see, one of each family, as ordinary Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmtune.types import Media

KINDS = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl", "llava")
KEYS = {
    "qwen2-vl": "qwen2-vl-2b-instruct",
    "qwen2.5-vl": "qwen2.5-vl-3b-instruct",
    "qwen3-vl": "qwen3-vl-2b-instruct",
    "llava": "llava-1.5-7b-hf",
}
QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
LLAVA_TOKENS = ("<s>", "</s>", "<image>")

# https://huggingface.co/Qwen/Qwen2-VL-7B-Instruct, tokenizer_config.json, without what it does with videos.
QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# https://huggingface.co/llava-hf/llava-1.5-7b-hf, chat_template.json. A content that is text is our addition.
LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] + ' ' }}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN_TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.1,
    "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
}  # fmt: skip
QWEN_EYES: dict[str, dict[str, Any]] = {
    "qwen2-vl": {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 64, "mlp_ratio": 2},
    "qwen2.5-vl": {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64,
        "window_size": 56, "fullatt_block_indexes": [1],
    },
    "qwen3-vl": {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    },
}  # fmt: skip


def template_of(kind: str, tokenizer: Any, **options: Any) -> Any:
    """The template of a kind, bound to the tokenizer of a folder of `make_vision`, with the folder's image reader."""
    from llmtune import get_template

    return get_template(kind, tokenizer, media=reader_of(kind, tokenizer), **options)


def reader_of(kind: str, tokenizer: Any, folder: Path | None = None) -> Any:
    from llmtune import get_media_reader

    return get_media_reader(KEYS[kind], tokenizer, model_id_or_path=str(folder or tokenizer.name_or_path))


def images(*paths: Any) -> tuple[Media, ...]:
    return tuple(Media(str(path)) for path in paths)


def make_vision(kind: str, folder: Path) -> Path:
    """Write the model, its tokenizer and its image processor."""
    import torch

    tokenizer = _tokenizer(kind)
    torch.manual_seed(7)
    model = _llava(tokenizer) if kind == "llava" else _qwen(kind, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _image_processor(kind).save_pretrained(folder)
    if kind == "llava":
        settings = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        (folder / "processor_config.json").write_text(json.dumps(settings | {"processor_class": "LlavaProcessor"}))
    return folder


def _tokenizer(kind: str) -> Any:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from llmtune.models.tiny import tiny_folder

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_folder()))
    if kind != "llava":
        tokenizer.add_tokens(list(QWEN_TOKENS), special_tokens=True)
        tokenizer.chat_template = QWEN_TEMPLATE
        return tokenizer
    tokenizer.add_tokens(list(LLAVA_TOKENS), special_tokens=True)
    backend = tokenizer.backend_tokenizer  # Llama's puts the BOS token before each text
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", len(tokenizer) - 3)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=LLAVA_TEMPLATE, **names)


def _image_processor(kind: str) -> Any:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    if kind == "llava":
        return CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    patch_size = 16 if kind == "qwen3-vl" else 14
    edge = 4 * patch_size**2  # one token
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": 4 * edge, "longest_edge": 16 * edge}, patch_size=patch_size, merge_size=2
    )


def _qwen(kind: str, tokenizer: Any) -> Any:
    import transformers

    name = {"qwen2-vl": "Qwen2VL", "qwen2.5-vl": "Qwen2_5_VL", "qwen3-vl": "Qwen3VL"}[kind]
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(QWEN_TOKENS))
    text = QWEN_TEXT | {"vocab_size": len(tokenizer)}
    if kind == "qwen3-vl":
        text["rope_parameters"] = text["rope_parameters"] | {"mrope_interleaved": True}
    config = getattr(transformers, f"{name}Config")(
        text_config=text,
        vision_config=QWEN_EYES[kind],
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
        tie_word_embeddings=True,
    )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


def _llava(tokenizer: Any) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id, pad_token_id=0,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=image, vision_feature_layer=-2)
    )
