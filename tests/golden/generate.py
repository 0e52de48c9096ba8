"""Write what every template makes of two conversations, as files to review: `make golden`.

A change of a template, of rendering or of masks shows as a difference of these files.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from llmtune import TEMPLATE_MAPPING, get_template
from llmtune.errors import TemplateError
from llmtune.models.tiny import tiny_folder

FOLDER = Path(__file__).parent
ROWS: dict[str, dict[str, Any]] = {
    "one turn": {"query": "What is 1 plus 2?", "response": "3."},
    "two turns and a system prompt": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": " 你好\n"},
            {"role": "assistant", "content": "Hello! "},
            {"role": "user", "content": "{{QUERY}} <|im_end|>"},
            {"role": "assistant", "content": "\nBye."},
        ]
    },
    "a tool is called": {
        "tools": [{"type": "function", "function": {"name": "sky", "description": "Of a place.", "parameters": {}}}],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": "", "tool_calls": [{"name": "sky", "arguments": {"place": "Bergen"}}]},
            {"role": "tool", "content": '{"sky": "rain"}'},
            {"role": "assistant", "content": "Yes."},
        ],
    },
}


def golden(key: str) -> dict[str, Any]:
    """Rows, texts, ids and labels of one template with the embedded tokenizer, BOS being its padding token."""
    tokenizer = copy.deepcopy(AutoTokenizer.from_pretrained(str(tiny_folder())))
    tokenizer.bos_token = "<|endoftext|>"
    template = get_template(key, tokenizer)
    found: dict[str, Any] = {"template": key, "generator": "make golden", "tokenizer": tiny_folder().name}
    for name, row in ROWS.items():
        try:
            found[name] = {"row": row, "text": template.render(row), "samples": template.encode_all(row)}
        except TemplateError as err:
            found[name] = {"row": row, "refused": str(err)}
    return found


def text_of(key: str) -> str:
    """The file's content; a list of ids stands on one line."""
    text = json.dumps(golden(key), ensure_ascii=False, indent=1)
    return re.sub(r"\[\s+(-?\d[-\d,\s]*)\]", lambda found: "[" + " ".join(found[1].split()) + "]", text) + "\n"


def main() -> None:
    for file in FOLDER.glob("*.json"):
        file.unlink()
    for key in (key for key, info in TEMPLATE_MAPPING.items() if not info.from_tokenizer):
        (FOLDER / f"{key}.json").write_text(text_of(key), encoding="utf-8")


if __name__ == "__main__":
    main()
