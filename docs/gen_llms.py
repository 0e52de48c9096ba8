"""llms.txt, as llmstxt.org describes it: the site's pages with one line each, for language models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).parent
OPTIONAL = ("Registries", "Coming from other tools", "Patches of other libraries", "中文")
"""Sections that can be skipped for a shorter context."""
SAID = {
    "quickstart.md": "Install, train the embedded model, chat with it, serve it: ten minutes, nothing to download.",
    "performance.md": "Throughput, packing, attention kernels, memory, and what was measured.",
    "howto/index.md": "The guides by task, and complete command lines for 113 combinations of model and method.",
    "howto/own-model.md": "Train any causal language model from its folder, or register an entry for it.",
    "howto/own-dataset.md": "Formats of rows, mixing, sampling, validation, images, tools, and what is trained on.",
    "howto/qlora.md": "Fine-tune a large model with 4-bit weights and LoRA, and estimate beforehand whether it fits.",
    "howto/two-cards.md": "DDP, FSDP, DeepSpeed and layers spread over GPUs, on one machine.",
    "howto/multi-node.md": "SLURM, Ray, SkyPilot, or torchrun's variables by hand.",
    "howto/resume.md": "Exact resuming, what may change, NaN and divergence, and which checkpoints are kept.",
    "howto/infer.md": "Responses for a dataset, or a chat in the terminal.",
    "howto/serve.md": "An OpenAI-compatible server: adapters, tools, JSON, batching, vLLM.",
    "howto/web.md": "Chat with a checkpoint in the browser, two models side by side.",
    "howto/push.md": "Push checkpoints to ModelScope or Hugging Face, during training or afterwards.",
    "howto/evaluate.md": "ROUGE, BLEU, exact match, choice questions, benchmarks of lm-eval, metrics of your own.",
    "howto/export.md": "Merge LoRA, quantise, GGUF and Ollama.",
    "howto/agents.md": "Train and serve models that call functions.",
}
"""Pages whose first sentence does not say what they are about."""
MOST = 200
"""Characters of a description."""


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml: what its own tags mean does not matter here."""


_Loader.add_multi_constructor("", lambda loader, suffix, node: None)


def pages() -> Iterator[tuple[str, str]]:
    """Yield llms.txt: (path below docs/, text)."""
    site = yaml.load((DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)
    top: list[str] = []
    sections: dict[str, list[str]] = {}
    for entry in site["nav"]:
        ((name, value),) = entry.items()
        found = [_line(title, page) for title, page in _leaves(name, value)]
        (top if isinstance(value, str) else sections.setdefault(name, [])).extend(found)
    shown = {"Docs": top} | {name: lines for name, lines in sections.items() if name not in OPTIONAL}
    optional = [line for name in OPTIONAL for line in sections.get(name, [])]
    parts = [f"# {site['site_name']}\n\n> {site['site_description']}.\n"]
    parts += [f"## {name}\n\n" + "\n".join(lines) + "\n" for name, lines in {**shown, "Optional": optional}.items()]
    yield "llms.txt", "\n".join(parts)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield (title, page) of an entry of the navigation."""
    if isinstance(value, str):
        yield name, value
        return
    for entry in value:
        if isinstance(entry, str):
            yield name, entry
        else:
            for inner, below in entry.items():
                yield from _leaves(inner, below)


def _line(title: str, page: str) -> str:
    said = SAID.get(page) or description((DOCS / page).read_text(encoding="utf-8"))
    return f"- [{title}]({page}): {said}"


def description(text: str) -> str:
    """Return the first sentence of a page's prose; its title where it has none."""
    prose = re.sub(r"^```.*?^```|<!--.*?-->", "", text, flags=re.M | re.S)
    blocks = [" ".join(block.split()) for block in re.split(r"\n\s*\n", prose)]
    lines = [block for block in blocks if block and block[0] not in "#|!-<>*["]
    chosen = lines[0] if lines else next(block.lstrip("# ") for block in blocks if block.startswith("#"))
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", chosen).rstrip(":：")
    sentence = re.split(r"(?<=[.!?])\s|(?<=[。！？])", plain, maxsplit=1)[0]
    return sentence if len(sentence) <= MOST else sentence[: MOST - 1].rstrip() + "…"
