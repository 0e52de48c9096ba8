"""Write a stream of tensors into safetensors files of at most a given size, with an index."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from llmtune.errors import UsageError
from llmtune.utils.files import write_json

__all__ = ["ShardWriter", "parse_size"]

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


class ShardWriter:
    """Writer that holds one shard at a time. A tensor that is larger than a shard gets its own."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.total = 0
        self._waiting: dict[str, Tensor] = {}
        self._size = 0
        self._files: list[tuple[Path, list[str]]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self._waiting and self._size + size > self.max_bytes:
            self._flush()
        self._waiting[name] = tensor.contiguous()
        self._size += size
        self.total += size

    def finish(self) -> list[Path]:
        """Write the last shard, and rename the files, whose number is known only now."""
        self._flush()
        if len(self._files) == 1:
            return [self._files[0][0].rename(self.folder / "model.safetensors")]
        found: list[Path] = []
        places: dict[str, str] = {}
        for number, (file, names) in enumerate(self._files, start=1):
            final = file.rename(self.folder / f"model-{number:05}-of-{len(self._files):05}.safetensors")
            places |= dict.fromkeys(names, final.name)
            found.append(final)
        index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(places.items()))}
        write_json(self.folder / "model.safetensors.index.json", index)
        return found

    def _flush(self) -> None:
        from safetensors.torch import save_file

        if not self._waiting:
            return
        file = self.folder / f"shard-{len(self._files)}.part"
        save_file(self._waiting, file, metadata={"format": "pt"})
        file.chmod(0o644)  # safetensors leaves it readable by the owner alone
        self._files.append((file, list(self._waiting)))
        self._waiting = {}
        self._size = 0


def parse_size(text: str) -> int:
    """Return the bytes of `2GB`, `500MB` or a number.

    Raises:
        UsageError: Anything else, or nothing.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip().upper())
    size = 0 if found is None else int(float(found[1]) * UNITS[found[2]])
    if size < 1:
        raise UsageError(f"--max_shard_size {text}: give a size such as 2GB or 500MB.")
    return size
