"""ChatGLM2 and ChatGLM3: the vocabulary of a file, and above it the tokens that only their code knows.

Source: tokenization_chatglm.py of chatglm3-6b; chatglm2-6b's has the first five. That the ids of the others are free
in ChatGLM2 is known from its embedding, which has 65,024 rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmtune.models.ports.tokenizers import json_file, sentencepiece_bpe
from llmtune.models.ports.tokenizers.port import Source, TokenizerPort
from llmtune.utils.files import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer


WORDS = ("sop", "eop")
ABOVE = ("[MASK]", "[gMASK]", "[sMASK]", *WORDS, "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


def _backend(source: Source) -> Tokenizer:
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing

    if source.has(json_file.FILE):
        described = read_json(source.folder / json_file.FILE)
        first = _size(described["model"]["vocab"])
        tokenizer = json_file.from_json(source, {first + index: text for index, text in enumerate(ABOVE)})
    else:
        tokenizer = sentencepiece_bpe.from_model(source.folder / sentencepiece_bpe.FILE)
        tokenizer.add_special_tokens(
            # a word's part as well: philosophy. There it must not be found
            [AddedToken(text, special=True, normalized=False, single_word=text in WORDS) for text in ABOVE]
        )
    before = [(text, tokenizer.token_to_id(text)) for text in ("[gMASK]", "sop")]
    tokenizer.post_processor = TemplateProcessing(
        single="[gMASK] sop $A", pair="[gMASK] sop $A $B </s>", special_tokens=[*before, ("</s>", 2)]
    )
    return tokenizer


def _size(vocabulary: dict[str, int]) -> int:
    """How many tokens a file has without those above it, which a file that was saved anew may hold."""
    return max(token for text, token in vocabulary.items() if text not in ABOVE) + 1


def _recognises(source: Source) -> bool:
    if source.class_name != "ChatGLMTokenizer" or not source.needs_code:
        return False
    file = source.folder / sentencepiece_bpe.FILE
    return source.has(json_file.FILE) or (file.is_file() and sentencepiece_bpe.is_sentencepiece(file))


PORT = TokenizerPort(
    family="ChatGLM",
    recognises=_recognises,
    files=(json_file.FILE, sentencepiece_bpe.FILE),
    backend=_backend,
    defaults={"eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>", "padding_side": "left"},
)
