"""Write the generated pages of the documentation: `make golden`, or python docs/generate.py"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gen_commands
import gen_llms
import gen_masks
import gen_migration
import gen_registries
import gen_upstream

DOCS = Path(__file__).parent


def pages() -> Iterator[tuple[str, str]]:
    """(path below docs/, text) of everything that is generated."""
    for maker in (gen_commands, gen_registries, gen_migration, gen_masks, gen_upstream):
        yield from maker.pages()
    yield from gen_llms.pages()  # last: it reads the pages


def main() -> None:
    for path, text in pages():
        file = DOCS / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
