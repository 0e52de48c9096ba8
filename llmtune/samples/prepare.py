"""From arguments to token ids, without weights: shared by `sft` and `check`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from llmtune.arguments.checks import check_images, check_no_images, parse_chat_template_kwargs
from llmtune.arguments.online import OnlineStage
from llmtune.arguments.pretraining import PtArguments, document_of, joins_documents
from llmtune.arguments.stage import StageArguments
from llmtune.data.canonical import conversation_of
from llmtune.data.image_marks import any_images
from llmtune.data.mixing import get_dataset
from llmtune.distributed.ranks import local_rank, world_size
from llmtune.errors import TemplateError, UsageError
from llmtune.models.info import MODEL_MAPPING, ModelInfo
from llmtune.models.ports import native_config
from llmtune.samples.blocks import JoinedDataset
from llmtune.samples.comparisons import ComparisonSamples, pack_capacity
from llmtune.samples.offered import check_tool_format, offer_tools
from llmtune.samples.packing import PackedDataset
from llmtune.samples.prompts import PromptSamples
from llmtune.samples.store import TokenStore, encode_dataset
from llmtune.samples.streaming import StreamedSamples, open_stream, stream_samples
from llmtune.templates.chat import ChatTemplate
from llmtune.templates.documents import is_document
from llmtune.templates.jinja import to_jinja
from llmtune.templates.lookup import get_template
from llmtune.templates.media import MediaReader
from llmtune.templates.parity import first_difference
from llmtune.tool_functions.functions import load_tools
from llmtune.tuners.vocabulary import NewRows, add_new_tokens, add_tokens_of_file
from llmtune.utils.logging import get_logger

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from numpy.typing import NDArray

    from llmtune.data.streaming import RecordStream


Items: TypeAlias = TokenStore | PackedDataset | JoinedDataset | ComparisonSamples | PromptSamples
PARITY_ROWS = 20
HEAD_ROWS = 1000
DATA_FLAGS = (
    *("dataset_test_ratio", "dataset_seed", "train_dataset_sample", "val_dataset_sample", "val_dataset", "strict"),
    *("model_name", "model_author", "use_hf", "hub_token", "cache_dir", "dataset_num_proc"),
)
DESCRIBED_ROWS = 4
EXCERPT_CHARS = 60


@dataclass(frozen=True)
class Prepared:
    """All that a run needs except weights."""

    info: ModelInfo
    tokenizer: Any
    template: ChatTemplate
    media: MediaReader | None
    """Of a vision model, whether or not the template has a place for images."""
    train: Dataset
    validation: Dataset | None
    train_tokens: TokenStore
    validation_tokens: TokenStore | None
    train_set: Items | StreamedSamples
    """The items of batches: samples, packs, or with `--streaming` a stream of either, of which `train` and
    `train_tokens` are the first rows."""
    validation_set: Items | None
    new_rows: NewRows
    """Ids that --new_special_tokens and --new_tokens_file add."""

    def describe(self, samples: Sequence[int]) -> str:
        """Describe training samples by their rows, for messages."""
        if isinstance(self.train_set, StreamedSamples):
            return ", ".join(f"row {row} of the stream" for row in samples)
        tokens = [row for sample in samples for row in self._rows_of(sample)]
        rows = [self.train_tokens.row_of(index) for index in tokens]
        shown = [f"row {row} ({_excerpt(self.train[row])})" for row in rows[:DESCRIBED_ROWS]]
        more = len(rows) - len(shown)
        return "; ".join(shown) + (f"; and {more} more" if more else "")

    def _rows_of(self, sample: int) -> list[int]:
        return [sample] if isinstance(self.train_set, (TokenStore, StreamedSamples)) else self.train_set.rows_of(sample)

    def num_steps(self, args: StageArguments) -> int:
        """Optimizer steps of the whole run."""
        items = self.train_set
        return args.max_steps if isinstance(items, StreamedSamples) else total_steps(len(items), args)

    def steps_per_epoch(self, args: StageArguments) -> int:
        """Optimizer steps per epoch; 0 for a stream."""
        items = self.train_set
        return 0 if isinstance(items, StreamedSamples) else steps_per_epoch(len(items), args)

    @property
    def may_weigh(self) -> bool:
        """Whether trainable tokens may have weights other than 1; unknown for a stream."""
        return isinstance(self.train_set, StreamedSamples) or bool(self.train_tokens.report.num_weighted)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each training sample as the model gets it.

        Of the blocks, where documents are joined; of prompts with the longest response that they may have.
        """
        if isinstance(self.train_set, PromptSamples):
            return self.train_set.longest
        return self.train_set.lengths if isinstance(self.train_set, JoinedDataset) else self.train_tokens.lengths


def prepare(args: StageArguments) -> Prepared:
    """Load the tokenizer and the rows, and encode them."""
    assert args.model_type is not None
    assert args.template_type is not None
    overwrite = args.overwrite_cache and local_rank() == 0  # the others open what the first process made
    stream = open_stream(args) if args.streaming else None
    train, validation = _load(args, overwrite) if stream is None else _load_head(stream, args, overwrite)
    if any_images(train) or (validation is not None and any_images(validation)):
        check_images(args, MODEL_MAPPING[args.model_type])
    tokenizer = args.load_tokenizer()
    new_rows = add_new_tokens(tokenizer, args.new_special_tokens)
    if isinstance(args, PtArguments) and args.new_tokens_file is not None:
        new_rows |= add_tokens_of_file(tokenizer, Path(args.new_tokens_file))
    media = args.media_reader(tokenizer, max_pixels=args.max_pixels)
    template = get_template(
        args.template_type,
        tokenizer,
        system=args.system,
        max_length=_limit(args),
        truncation_strategy=args.truncation_strategy,
        loss_on=args.loss_on,
        special_tokens_in_text=args.special_tokens_in_text,
        tool_format=args.tool_format,
        template_kwargs=parse_chat_template_kwargs(args.chat_template_kwargs),
        media=media,
        documents=args.documents if isinstance(args, PtArguments) else None,
    )
    if isinstance(args, OnlineStage) and args.tool_functions:
        train, validation = _with_tools(args, template, train, validation)
    check_no_images(args, template.media is not None)
    if stream is not None and template.media is not None:
        raise UsageError("--streaming true supports text models only. Remove it for vision models.")
    options: dict[str, Any] = {"strict": args.strict, "overwrite": overwrite, "processes": args.dataset_num_proc}
    train_tokens = encode_dataset(train, template, name="training", **options)
    validation_tokens = None
    if validation is not None:
        validation_tokens = encode_dataset(validation, template, name="validation", required=False, **options)
        validation_tokens = validation_tokens if len(validation_tokens) else None
    _carry_template(template, train)
    return Prepared(
        MODEL_MAPPING[args.model_type],
        tokenizer,
        template,
        media,
        train,
        validation,
        train_tokens,
        validation_tokens,
        _items(train_tokens, train, args) if stream is None else stream_samples(stream, template, args),
        None if validation is None or validation_tokens is None else _items(validation_tokens, validation, args),
        new_rows,
    )


def _load(args: StageArguments, overwrite: bool, **options: Any) -> tuple[Dataset, Dataset | None]:
    flags = {name: getattr(args, name) for name in DATA_FLAGS}
    flags |= {"names": args.dataset, "overwrite_cache": overwrite, "kind": args.KIND}
    flags |= {"document": document_of(args)}
    return get_dataset(**(flags | options))


def _load_head(stream: RecordStream, args: StageArguments, overwrite: bool) -> tuple[Dataset, Dataset | None]:
    """Return the first rows, for checks and generations, and all of `--val_dataset`."""
    train = stream.head(HEAD_ROWS)
    if not args.val_dataset:
        return train, None
    sample = -1 if args.val_dataset_sample is None else args.val_dataset_sample
    whole = {"val_dataset": (), "dataset_test_ratio": 0.0, "train_dataset_sample": sample}
    return train, _load(args, overwrite, names=args.val_dataset, **whole)[0]


def _with_tools(
    args: OnlineStage, template: ChatTemplate, train: Dataset, validation: Dataset | None
) -> tuple[Dataset, Dataset | None]:
    """Return the rows with the functions that they offer."""
    check_tool_format(template)
    functions = load_tools(args.tool_functions)
    offered = offer_tools(train, functions)
    return offered, None if validation is None else offer_tools(validation, functions, "validation")


def _excerpt(record: Mapping[str, Any]) -> str:
    turns = conversation_of(record).turns
    text = " ".join(turns[0].content.split()) if turns else ""
    return repr(text[:EXCERPT_CHARS])


def _limit(args: StageArguments) -> int:
    """Most tokens of what is encoded; -1: no limit."""
    return args.prompt_limit if isinstance(args, OnlineStage) else -1 if joins_documents(args) else args.max_length


def _items(tokens: TokenStore, dataset: Dataset, args: StageArguments) -> Items:
    """Return what batches are made of."""
    if isinstance(args, OnlineStage):
        return PromptSamples(
            tokens,
            dataset,
            num_places=args.num_places(len(tokens), world_size()),
            response_tokens=args.max_new_tokens,
            seed=args.seed,
        )
    if tokens.has_comparisons:
        capacity = pack_capacity(args) if args.packing else None
        return ComparisonSamples(tokens, capacity, seed=args.dataset_seed if args.KIND == "labels" else None)
    if joins_documents(args):
        return JoinedDataset(tokens, args.max_length)
    return PackedDataset(tokens, args.max_length) if args.packing else tokens


def total_steps(num_samples: int, args: StageArguments, processes: int | None = None) -> int:
    """Optimizer steps of the whole run.

    Args:
        num_samples: Samples, or packs.
        processes: Number of ranks. None: those of this run.
    """
    if args.max_steps > 0:
        return args.max_steps
    return math.ceil(steps_per_epoch(num_samples, args, processes) * args.num_train_epochs)


def steps_per_epoch(num_samples: int, args: StageArguments, processes: int | None = None) -> int:
    """Return the optimizer steps per epoch, over all ranks."""
    batches = -(-num_samples // (args.batch_size * args.data_ranks(processes or world_size())))
    return -(-batches // args.gradient_accumulation_steps)


def _carry_template(template: ChatTemplate, train: Dataset) -> None:
    """Set the trained template as the tokenizer's chat template, if that differs or is missing."""
    tokenizer, log = template.tokenizer, get_logger()
    rows = [conversation_of(train[index]) for index in range(min(PARITY_ROWS, len(train)))]
    if template.purpose and all(is_document(row) for row in rows):
        return  # the template has no part in them
    difference = first_difference(template, rows)
    if difference is None and tokenizer.chat_template:
        return
    if difference is not None:
        log.warning("The template differs from the tokenizer's chat template: %s.", difference)
    try:
        tokenizer.chat_template = to_jinja(template.info, tokenizer)
    except TemplateError as err:
        log.warning("The template cannot be saved as the tokenizer's chat template: %s.", err)
    else:
        log.info("The template %r is saved with the checkpoint's tokenizer as its chat template.", template.name)


# Identity of the samples: a resumed run must have the same ones


SAMPLES = 64


def data_identity(prepared: Prepared) -> dict[str, Any]:
    """Return the counts of samples and tokens, and a digest of all lengths and of some samples.

    It depends on what is trained, not on where it was read from or which version of llmtune encoded it. Of a stream it
    is that of its first rows.
    """
    tokens = prepared.train_tokens
    lengths = tokens.lengths
    digest = blake2b(lengths.astype("<i8").tobytes(), digest_size=16)
    for index in sorted({number * (len(tokens) - 1) // max(SAMPLES - 1, 1) for number in range(SAMPLES)}):
        sample = tokens[index]
        for name in ("input_ids", "labels"):
            digest.update(sample[name].astype("<i8").tobytes())
    return {
        "samples": len(tokens),
        "tokens": int(lengths.sum()),
        "trainable_tokens": tokens.report.num_trainable,
        "digest": digest.hexdigest(),
        "streamed": isinstance(prepared.train_set, StreamedSamples),
    }


# Samples longer than the model's trained positions


LEARNED_POSITIONS = frozenset({"biogpt", "codegen", "gpt2", "gpt_bigcode", "gpt_neo", "openai-gpt", "opt", "xglm"})
"""Model types with learned position embeddings, which end there."""


def note_positions(prepared: Prepared, args: StageArguments) -> None:
    """Warn about samples beyond the trained positions.

    Raises:
        UsageError: The model has no position for them at all.
    """
    config = native_config(args.folder(), trust_remote_code=args.trust_remote_code)
    trained = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(trained, int) or trained < 1:
        return
    limit = int(trained * (args.rope_factor or 1))
    lengths = prepared.lengths
    num_longer = int((lengths > limit).sum())
    if not num_longer:
        return
    text = (
        f"{num_longer:,} of {len(lengths):,} samples are longer than the {limit:,} positions that the model was "
        f"trained with; the longest has {int(lengths.max()):,} tokens."
    )
    if config.model_type in LEARNED_POSITIONS:
        raise UsageError(f"{text} This model has no more positions: use --max_length {limit}.")
    get_logger().warning("%s Truncate them with --max_length %d, or use --rope_scaling.", text, limit)
