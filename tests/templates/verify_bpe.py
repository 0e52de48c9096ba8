"""Write llmtune/templates/verified_bpe.py: `python tests/templates/verify_bpe.py FOLDER`, with a tokenizer a subfolder.

The check runs for each, whatever is listed or cached. Run it again after a change of llmtune/templates/fast_bpe.py, of
tiktoken or of tokenizers.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FILE = ROOT / "llmtune/templates/verified_bpe.py"


def verified(tokenizers: dict[str, Any]) -> dict[str, str]:
    """Return key -> name of those that pass the check, which reads no verdict from anywhere."""
    from llmtune.templates import fast_bpe as module

    found: dict[str, str] = {}
    listed, module.VERIFIED = module.VERIFIED, {}
    cache = os.environ.get("LLMTUNE_CACHE")
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["LLMTUNE_CACHE"] = folder
            for name, tokenizer in tokenizers.items():
                if module.fast_bpe(tokenizer) is not None:
                    found[module.verified_key(tokenizer.backend_tokenizer.to_str())] = name
    finally:
        module.VERIFIED = listed
        os.environ.pop("LLMTUNE_CACHE", None)
        if cache is not None:
            os.environ["LLMTUNE_CACHE"] = cache
    return found


def loaded(folder: Path, skipped: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """Yield (name, tokenizer) of the subfolders, as llmtune loads them."""
    from llmtune.models.ports.tokenizers import tokenizer_loader

    for file in sorted(folder.glob("*/tokenizer.json")):
        if file.parent.name not in skipped:
            loader = tokenizer_loader(file.parent)
            yield file.parent.name, loader.from_pretrained(str(file.parent), trust_remote_code=False)


def written(found: dict[str, str]) -> str:
    """Return the text of the module with these entries."""
    text = FILE.read_text(encoding="utf-8")
    start = text.index("VERIFIED: dict[str, str] = {")
    end = text.index('"""Key (see')
    lines = [f'    "{key}": "{name}",' for key, name in sorted(found.items(), key=lambda item: item[1])]
    return text[:start] + "\n".join(["VERIFIED: dict[str, str] = {", *lines, "}\n"]) + text[end:]


if __name__ == "__main__":
    FILE.write_text(written(verified(dict(loaded(Path(sys.argv[1]))))), encoding="utf-8")
