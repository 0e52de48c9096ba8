"""Log-probabilities of responses under the reference model: the model as the run begins, or `--reference`.

They are computed once, before the first step, by a model that is in memory anyway, and kept on disk in shards, by
content: an interrupted pass goes on where it stopped, and another run on the same data and model starts at once.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import hashlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmtune.checkpoint import checkpoint_kind, checkpoint_of
from llmtune.distributed.collectives import broadcast_from_rank0, sum_over_ranks
from llmtune.distributed.ranks import is_first, rank, world_size
from llmtune.errors import CheckpointError
from llmtune.models.dtypes import resolve_dtype
from llmtune.models.supervised_loss import has_sharded_weights, install_supervised_loss
from llmtune.run.log import Decisions
from llmtune.samples.comparisons import COMPARISONS, ComparisonSamples
from llmtune.samples.streaming import StreamedSamples
from llmtune.training.build import comparison_collator, load_weights
from llmtune.training.preference import response_logps
from llmtune.training.sequences import share_if_possible
from llmtune.tuners.lora import load_adapter
from llmtune.utils.accelerator import accelerator
from llmtune.utils.files import cache_root, publish, temporary_file
from llmtune.utils.progress import progress_bar

if TYPE_CHECKING:
    from llmtune.training.stage import Stage

SHARD_ROWS = 256
"""Comparisons per file: what an interrupted pass loses at most."""
BLOCKS, BLOCK_BYTES = 64, 1 << 16
"""Parts of a weight file that are hashed beside its size."""
WEIGHT_FILES = ("*.safetensors", "*.bin", "*config.json")


@dataclass(frozen=True)
class ReferencePass:
    """How log-probabilities are computed.

    Attributes:
        collator: Makes batches of comparisons.
        batch_size: Comparisons per forward pass.
        dtype: Of autocast; None: the weights' own.
        tail_weight: See `PreferenceLoss`.
        together: All ranks compute each batch in step, since the weights are sharded.
        sharing: Neighbouring ranks that compute each batch together.
    """

    collator: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]
    batch_size: int
    dtype: torch.dtype | None = None
    tail_weight: float = 1.0
    together: bool = False
    sharing: int = 1

    def over(self, model: Any, samples: ComparisonSamples, key: str) -> NDArray[np.float32]:
        """Return the log-probabilities of all responses, from the cache as far as it has them. Collective.

        Args:
            key: Of the model and these rows, see `reference_key`.
        """
        folder = cache_root() / "reference" / key
        num_rows = len(samples.store)
        shards = [range(start, min(start + SHARD_ROWS, num_rows)) for start in range(0, num_rows, SHARD_ROWS)]
        kept = [_kept(folder, shard, samples) for shard in shards] if is_first() else []
        missing: list[int] = broadcast_from_rank0([at for at, values in enumerate(kept) if values is None])
        found: dict[int, NDArray[np.float32]] = {at: one for at, one in enumerate(kept) if one is not None}
        groups, group = world_size() // self.sharing, rank() // self.sharing
        own = [at for at in missing if at % groups == group]
        rounds = max((sum(at % groups == one for at in missing) for one in range(groups)), default=0)
        with _evaluating(model), self._autocast(model), _bar(len(missing) * SHARD_ROWS) as bar:
            for number in range(rounds):
                # With sharded weights, a rank without work computes another's batches too: gathering needs all ranks.
                idle = number >= len(own)
                if idle and not self.together:
                    continue
                at = missing[0] if idle else own[number]
                values = self._shard(model, samples, shards[at])
                bar.update(SHARD_ROWS)
                if not idle and rank() % self.sharing == 0:
                    found[at] = values
                    _publish(values, folder / f"{shards[at].start}.npy")
        return _gathered(found, shards, samples)

    def _shard(self, model: Any, samples: ComparisonSamples, rows: range) -> NDArray[np.float32]:
        """Log-probabilities of the responses of these rows; batches are of like length, the longest first."""
        lengths = samples.store.lengths
        order = sorted(rows, key=lambda row: -int(lengths[row]))
        values: dict[int, NDArray[np.float32]] = {}
        num_batches = -(-SHARD_ROWS // self.batch_size) if self.together else -(-len(order) // self.batch_size)
        for number in range(num_batches):
            batch_rows = order[number * self.batch_size :][: self.batch_size] or order[: self.batch_size]
            comparisons = [samples.comparison(row) for row in batch_rows]
            batch = self.collator([{COMPARISONS: comparisons}])
            logps = response_logps(model, _on(model.device, batch), self.tail_weight).float().cpu().numpy()
            sizes = [len(one["ranks"]) for one in comparisons]
            values |= dict(zip(batch_rows, np.split(logps, np.cumsum(sizes)[:-1]), strict=True))
        return np.concatenate([values[row] for row in rows]).astype(np.float32)

    @contextlib.contextmanager
    def _autocast(self, model: Any) -> Iterator[None]:
        with torch.no_grad(), torch.autocast(model.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            yield


def _kept(folder: Path, rows: range, samples: ComparisonSamples) -> NDArray[np.float32] | None:
    """Return the values of a shard on disk; None where it is missing or damaged."""
    size = samples.first_response(rows.stop) - samples.first_response(rows.start)
    with contextlib.suppress(OSError, ValueError, EOFError):
        values: NDArray[np.float32] = np.load(folder / f"{rows.start}.npy", allow_pickle=False)
        if values.shape == (size,) and values.dtype == np.float32 and np.isfinite(values).all():
            return values
    return None


def _publish(values: NDArray[np.float32], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with temporary_file(file) as temporary:
        with temporary.open("wb") as out:
            np.save(out, values, allow_pickle=False)
        publish(temporary, file)


def _gathered(
    found: Mapping[int, NDArray[np.float32]], shards: Sequence[range], samples: ComparisonSamples
) -> NDArray[np.float32]:
    """All values, each from the one rank that has it: machines may not share a disk."""
    values = np.zeros(samples.num_responses, np.float64)
    for at, part in found.items():
        start = samples.first_response(shards[at].start)
        values[start : start + len(part)] = part
    return np.array(sum_over_ranks(values.tolist()), np.float32)


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _bar(num_rows: int) -> Any:
    return progress_bar(total=num_rows, desc="Reference log-probabilities", unit="row", quiet=not is_first())


def _on(device: torch.device, batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


# What the values depend on


def reference_key(rows: str, folders: Sequence[Path], settings: object) -> str:
    """Return the key of log-probabilities.

    Args:
        rows: Identity of the encoded rows.
        folders: Of the weights, and of the adapter on them, if any.
        settings: Flags that change what they compute.
    """
    digest = hashlib.blake2b(repr((rows, settings)).encode(), digest_size=16)
    for folder in folders:
        for file in sorted({file for pattern in WEIGHT_FILES for file in folder.glob(pattern)}):
            digest.update(repr((file.name, file.stat().st_size)).encode())
            _hash_blocks(file, digest)
    return digest.hexdigest()


def _hash_blocks(file: Path, digest: Any) -> None:
    """Hash blocks spread over a file: two models that differ everywhere differ in them."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        for number in range(BLOCKS):
            place = number * max(size - BLOCK_BYTES, 0) // (BLOCKS - 1)
            opened.seek(place)
            digest.update(opened.read(BLOCK_BYTES))
            if size <= BLOCK_BYTES:
                break


# In a run


REFERENCE_FILE = "reference.npz"
"""File of the run folder: a resumed run needs the same values, and its model is no longer the reference."""
SETTINGS = (
    *("dtype", "sft_type", "quantization_bit", "quant_method", "bnb_4bit_comp_dtype", "bnb_4bit_quant_type"),
    *("bnb_4bit_use_double_quant", "rope_scaling", "rope_factor", "new_special_tokens", "max_pixels", "ld_alpha"),
    "fp8_base",
)
"""Flags that change what the reference computes."""


@dataclass
class Reference:
    """Gives the samples of a stage the log-probabilities of the reference model."""

    stage: Stage
    objective: Any
    _is_known: bool = False

    def by_named_model(self) -> None:
        """Compute them with `--reference`, before the model to train is loaded; that model is dropped again."""
        args: Any = self.stage.args
        samples = self.stage.samples
        if not self._is_wanted() or self._from_run() or args.reference is None:
            return
        model, folders = load_reference(args)
        sharing = self._share(model)
        self._fill(model, comparison_collator(args, samples, model, Decisions()), folders, sharing=sharing)
        del model
        gc.collect()
        accelerator().empty_cache()

    def _share(self, model: Any) -> int:
        """Let a named reference share sequences as the model to train does; return by how many processes."""
        args = self.stage.args
        if args.sequence_parallel_size > 1 and (reason := share_if_possible(args, self.stage.samples, model)):
            self.stage.decisions.choose("Reference pass", "whole sequences in each process", reason)
            return 1
        return args.sequence_parallel_size

    def by_model(self, model: Any, collator: Any) -> None:
        """Compute them with the model that will be trained, unless they are known; keep them in the run folder."""
        stage = self.stage
        if not self._is_wanted():
            return
        if not self._is_known and (stage.args.fsdp or has_sharded_weights(model)):
            stage.at_start.append(lambda trainer: self._by_wrapped(trainer, collator))
            return
        if not self._is_known:
            self._check_is_reference()
            self._fill(model, collator, self._own_folders(), sharing=self.stage.args.sequence_parallel_size)
        self._keep()

    def _is_wanted(self) -> bool:
        streams = isinstance(self.stage.samples.train_set, StreamedSamples)
        return bool(self.objective.needs_reference) and not streams

    def _sets(self) -> dict[str, ComparisonSamples]:
        samples = self.stage.samples
        sets = {"train": samples.train_set, "validation": samples.validation_set}
        return {name: one for name, one in sets.items() if isinstance(one, ComparisonSamples)}

    def _own_folders(self) -> list[Path]:
        args = self.stage.args
        return [args.folder(weights=True), *([] if args.peft_path is None else [Path(args.peft_path).expanduser()])]

    def _by_wrapped(self, trainer: Any, collator: Any) -> None:
        if not self._is_known:
            self._check_is_reference()
            sharing = self.stage.args.sequence_parallel_size
            self._fill(trainer.model_wrapped, collator, self._own_folders(), together=True, sharing=sharing)
        self._keep()

    def _fill(
        self,
        model: Any,
        collator: Any,
        folders: Sequence[Path],
        *,
        sharing: int,
        together: bool = False,
    ) -> None:
        args = self.stage.args
        dtype = resolve_dtype(self.stage.samples.info, args.dtype)[0]
        work = ReferencePass(
            collator,
            int(args.eval_batch_size or args.batch_size),
            None if dtype is torch.float32 else dtype,
            self.objective.tail_weight,
            together,
            sharing,
        )
        settings = [str(dtype), *(getattr(args, name, None) for name in SETTINGS)]
        for samples in self._sets().values():
            key = reference_key(f"{samples.store.file.stem} {samples.identity}", folders, settings)
            samples.reference = broadcast_from_rank0(work.over(model, samples, key))
        self._is_known = True
        self.stage.decisions.fact("Reference", self._text())

    def _text(self) -> str:
        whose = getattr(self.stage.args, "reference", None) or "the model as the run begins"
        return f"{whose}; {sum(one.num_responses for one in self._sets().values()):,} responses, computed once and kept"

    def _check_is_reference(self) -> None:
        """Refuse to take a resumed model for the one that its run began with."""
        run = self.stage.run.resume
        if run is not None and (self.stage.args.peft_path is not None or self.stage.args.fsdp):
            raise CheckpointError(
                f"{run.parent / REFERENCE_FILE} is missing: the reference cannot be computed by the model of a resumed "
                "run. Copy the file from the run folder, or start a new run."
            )

    def _keep(self) -> None:
        if is_first():
            values: dict[str, Any] = {name: one.reference for name, one in self._sets().items()}
            with temporary_file(self.stage.folder / REFERENCE_FILE) as temporary:
                with temporary.open("wb") as out:
                    np.savez(out, **values)
                publish(temporary, self.stage.folder / REFERENCE_FILE)

    def _from_run(self) -> bool:
        """Take the values of the resumed run, where they fit its samples."""
        resume = self.stage.run.resume
        found = _saved(resume.parent / REFERENCE_FILE) if resume is not None and is_first() else {}
        found = broadcast_from_rank0(found)
        sets = self._sets()
        if not all(name in found and found[name].shape == (one.num_responses,) for name, one in sets.items()):
            return False
        for name, one in sets.items():
            one.reference = found[name]
        self._is_known = True
        self.stage.decisions.fact("Reference", self._text())
        return True


def _saved(file: Path) -> dict[str, NDArray[np.float32]]:
    try:
        with np.load(file, allow_pickle=False) as opened:
            return {name: opened[name] for name in opened.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return {}


def load_reference(args: Any) -> tuple[Any, list[Path]]:
    """Load `--reference`: a model, or an adapter on the model that is trained. Return it and its folders."""
    place = Path(str(args.reference)).expanduser()
    is_adapter = place.is_dir() and checkpoint_kind(checkpoint_of(place)) == "lora"
    named = copy.copy(args)
    if not is_adapter:
        named.model_id_or_path = str(args.reference)
    model = load_weights(named, Decisions())
    folders = [named.folder(weights=True)]
    if is_adapter:
        folders.append(checkpoint_of(place))
        model = load_adapter(model, folders[-1], is_trainable=False)
    install_supervised_loss(model)
    return model, folders
