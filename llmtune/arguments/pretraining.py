"""Arguments of continued pre-training: pt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from llmtune.arguments.fields import Problems, Rule, above, fixed, taken
from llmtune.arguments.stage import StageArguments
from llmtune.arguments.training_groups import VOCABULARY
from llmtune.errors import UsageError
from llmtune.types import DocumentUnit


@dataclass(kw_only=True)
class DocumentArguments:
    """Documents."""

    document: DocumentUnit = fixed("line")
    """Document of a .txt file: each of its lines, or the whole file. A row of any other format is one document."""
    packing: bool = fixed(True)
    """Pack documents into sequences of max_length tokens; packed documents do not attend to each other. batch_size then
    counts sequences."""
    join_documents: bool = fixed(False)
    """Join all documents, in order, and cut them into blocks of max_length tokens. Attention then crosses documents,
    and batch_size counts blocks."""
    new_tokens_file: str | None = fixed(None)
    """Text file of tokens to add to the vocabulary, one per line. Their embedding and head rows start as the mean of
    those of the tokens that they were before, and are trained and saved."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            lambda args: not args.join_documents or args.max_length != -1,
            "--join_documents true needs a finite --max_length, e.g. 2048: blocks have that length.",
        ),
        Rule(
            lambda args: not (args.join_documents and args.padding_free == "true"),
            "--join_documents true cuts blocks of one length, which need no padding: remove --padding_free.",
        ),
        Rule(
            lambda args: args.new_tokens_file is None or (args.sft_type in ("lora", "full") and not args.peft_path),
            "--new_tokens_file needs --sft_type lora or full, and no --peft_path.",
        ),
        Rule(
            lambda args: not (args.new_tokens_file and VOCABULARY & set(args.modules_to_save)),
            "--new_tokens_file trains single rows of the embeddings, --modules_to_save {modules_to_save} all of them: "
            "remove one of the two.",
        ),
    )


@dataclass(kw_only=True)
class LearningRateArguments:
    """Learning rate."""

    learning_rate: float | None = taken(None, within=above(0))
    """Peak learning rate. Default: 1e-4 for lora, 2e-5 for full, 1e-3 for adalora, 3e-3 for ia3, 4e-3 for vera. Full: a
    tenth or less of what models are first trained with, so that they forget little; adapters start at zero and need
    more."""


@dataclass(kw_only=True)
class PtArguments(DocumentArguments, LearningRateArguments, StageArguments):
    """Arguments of `pt()`.

    Raises:
        UsageError: All invalid or contradictory values at once. UnknownKeyError: No such model or template.
    """

    STAGE = "pt"
    LEARNING_RATES: ClassVar[dict[str, float]] = {
        "lora": 1e-4, "full": 2e-5, "adalora": 1e-3, "ia3": 3e-3, "vera": 4e-3,
    }  # fmt: skip

    def _check(self, problems: Problems) -> None:
        problems.need(
            not (self.join_documents and self.predict_with_generate),
            "--predict_with_generate evaluates responses, and --join_documents true joins all rows: remove one of the "
            "two.",
        )

    def _fill(self) -> None:
        super()._fill()
        if self.join_documents:
            self.packing = False  # blocks are sequences of one length already

    def why_padded(self) -> str:
        return "blocks have one length" if self.join_documents else super().why_padded()

    def check_files(self) -> None:
        """Raise UsageError if a file is missing that the run needs besides its data."""
        file = self.new_tokens_file
        if file is not None and not Path(file).expanduser().is_file():
            raise UsageError(f"--new_tokens_file {file}: there is no such file. Write one, with a token on each line.")

    @property
    def documents(self) -> Literal["windows", "joined"]:
        """How texts become samples: see `templates.lookup.get_template`."""
        return "joined" if self.join_documents else "windows"


def document_of(args: StageArguments) -> DocumentUnit:
    """Row of a `.txt` file: `--document`, or a line in the other stages."""
    return args.document if isinstance(args, PtArguments) else "line"


def joins_documents(args: StageArguments) -> bool:
    """Whether samples are blocks of joined documents."""
    return isinstance(args, PtArguments) and args.join_documents
