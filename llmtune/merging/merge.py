"""Merge an adapter into its base model, streamed: one layer, one shard and the adapter are in memory, not the model.

PEFT merges each layer in fp32 while its weights are loaded, and the sum is rounded once. The merged model's logits are
compared with those of base and adapter on a few tokens, again layer by layer; of a reward model, hidden states and
scores. What cannot be streamed is merged in memory, and the reason is logged.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmtune.arguments.infer import InferArguments
from llmtune.checkpoint import checkpoint_kind, copy_settings, is_reward
from llmtune.errors import CheckpointError, ModelError, OutputError, UsageError, one_line
from llmtune.merging.files import EYES, ShardWriter, complete_merged, copy_files, parse_size, write_config
from llmtune.merging.meta_model import (
    Places,
    attach_adapters,
    build_meta_model,
    computing,
    filled,
    places_of,
    wrappers_of,
)
from llmtune.merging.weights import Group, Unstreamable, Weights
from llmtune.models.dtypes import torch_dtype
from llmtune.models.heads import SCORE, is_reward_model, output_head, outputs_per_token
from llmtune.models.info import MODEL_MAPPING
from llmtune.models.quantization import HEAD, is_quantized, saved_quantization
from llmtune.tuners.load import load_tuned
from llmtune.utils.files import atomic_folder
from llmtune.utils.logging import get_logger
from llmtune.utils.progress import progress_bar

DEFAULT_SHARD_SIZE = "2GB"
MERGED = "Merged %s into its base model: %s differ by %.1e of the largest %s."
PROBE_LENGTH = 16
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 8e-2, torch.float16: 2e-2}
"""Largest difference of logits, as a share of the largest logit, that rounding explains."""
STREAMED_LOADERS = ("llmtune.models.loading:load_causal_lm", "llmtune.models.vision:load_image_text")
MADE_FROM_BASE = ("trainable_tokens_original",)
"""PEFT's buffers for training, which merging does not need."""
NO_ROPE: dict[str, Any] = {"rope_scaling": None, "rope_factor": None, "load_args_from_ckpt_dir": False}
"""Settings already in the merged folder's own config.json."""


def merge_checkpoint(
    args: InferArguments,
    target: Path | None = None,
    *,
    max_shard_size: str = DEFAULT_SHARD_SIZE,
    resize_embeddings: bool = False,
) -> Path:
    """Write a folder of full weights, which plain transformers loads.

    Args:
        args: `ckpt_dir` is the adapter's folder; `dtype` that of the result, by default the base model's.
        target: Default: `<ckpt_dir>-merged`.
        resize_embeddings: Resize the vocabulary to the tokenizer's length first.

    Raises:
        OutputError: The folder exists already, or cannot be written.
        CheckpointError: Not an adapter, not of this base model, one that changes nothing, or the merged model's
            logits differ; nothing is written then.
    """
    assert args.ckpt_dir is not None
    checkpoint = Path(args.ckpt_dir)
    if checkpoint_kind(checkpoint) != "lora":
        raise CheckpointError(f"{checkpoint} holds full weights: there is nothing to merge.")
    target = target or checkpoint.resolve().with_name(f"{checkpoint.resolve().name}-merged")
    if target.exists():
        place = shlex.quote(str(target))
        raise OutputError(f"{target} exists already. Use it with --ckpt_dir {place}, or remove it to merge anew.")
    size = parse_size(max_shard_size)
    assert args.model_type is not None
    info = MODEL_MAPPING[args.model_type]
    base = args.folder(weights=True)
    if saved_quantization(base):
        raise CheckpointError(
            f"{checkpoint} cannot be merged: its base model was saved quantised, and the sum would be rounded again. "
            "Serve the adapter with its base model, as infer does, or merge it into the base model before quantisation "
            "(--model_id_or_path FOLDER)."
        )
    if args.quantization_bit:
        get_logger().info("Merging into the full weights, loaded without quantisation.")
    try:
        if not isinstance(info.get_function, str) or info.get_function not in STREAMED_LOADERS:
            raise Unstreamable(f"{args.model_type} has its own loading function")
        rows = len(args.load_tokenizer(base, _tokenizer_folder(args))) if resize_embeddings else 0
        return _Streamed(args, base, checkpoint, rows).write(target, size)
    except Unstreamable as err:
        if resize_embeddings:
            raise UsageError(f"--resize_emb true cannot be applied to this checkpoint: {err}.") from err
        get_logger().warning("Merging in memory, which needs as much as the whole model: %s.", err)
    return _merge_in_memory(args, checkpoint, target)


def _merge_in_memory(args: InferArguments, checkpoint: Path, target: Path) -> Path:
    whole = dataclasses.replace(args, device="cpu", load_args_from_ckpt_dir=False, quantization_bit=0)
    return merge_and_save(*load_tuned(whole), checkpoint, target)


def _tokenizer_folder(args: InferArguments) -> str | None:
    own = args.tokenizer_id_or_path is None and any(Path(str(args.ckpt_dir)).glob("tokenizer*"))
    return args.ckpt_dir if own else args.tokenizer_id_or_path


def merge_and_save(model: Any, tokenizer: Any, checkpoint: Path, target: Path) -> Path:
    """Merge a PEFT model, which is used up, and write it to `target`.

    Raises:
        CheckpointError: The base model is quantised, the adapter changes nothing, or the merged logits differ.
    """
    if is_quantized(model.get_base_model()):
        raise CheckpointError(f"{checkpoint} can be merged into whole weights only: load it with --quantization_bit 0.")
    model.eval()
    probe = probe_ids(model)
    with torch.no_grad():
        before = outputs_of(model, probe)
        with model.disable_adapter():
            base = outputs_of(model, probe)
        merged = model.merge_and_unload()
        after = outputs_of(merged, probe)
    difference = _check_merged(checkpoint, before, after, merged.dtype)
    if all(map(torch.equal, base, after)):
        raise _changes_nothing(checkpoint)
    with atomic_folder(target) as folder:
        merged.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        for source in (checkpoint, Path(merged.name_or_path)):
            copy_files(source, folder, EYES)
        copy_settings(checkpoint, folder, sft_type="full", quantization_bit=0)
    get_logger().info(MERGED, checkpoint, *_named(after, difference))
    return target


def outputs_of(model: Any, ids: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """Return what tells two models apart, in fp32: logits; of a reward model hidden states, and a score per token."""
    outputs = outputs_per_token(model, input_ids=ids, **options)
    return (outputs.float(), output_head(model)(outputs).float()) if is_reward_model(model) else (outputs.float(),)


def _named(outputs: Sequence[Tensor], difference: float) -> tuple[str, float, str]:
    """Return what was compared, the difference, and what it is a share of."""
    return ("logits", difference, "logit") if len(outputs) == 1 else ("hidden states and scores", difference, "one")


def probe_ids(model: Any) -> Tensor:
    """A few tokens that logits are compared on, [1, T]; the same ones every time."""
    size = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, size, (1, PROBE_LENGTH), generator=generator)
    return ids.to("cpu" if model.device.type == "meta" else model.device)


def check_logits(
    before: Tensor, after: Tensor, tolerance: float, *, what: str, outcome: str, least: float = 1e-6
) -> float:
    """Return the largest difference of two logits, or other outputs, as a share of the largest one, or of `least`.

    Raises:
        CheckpointError: It exceeds the tolerance. `what` is its subject, `outcome` what becomes of the result.
    """
    difference = float((before - after).abs().max() / before.abs().max().clamp(min=least))
    if not difference < tolerance:
        raise CheckpointError(
            f"{what} failed its check: its outputs differ by {difference:.2%} of the largest one. {outcome}"
        )
    return difference


def _check_merged(checkpoint: Path, before: Sequence[Tensor], after: Sequence[Tensor], dtype: torch.dtype) -> float:
    options: dict[str, Any] = {"what": f"Merging {checkpoint}", "outcome": "Nothing is written."}
    tolerance = TOLERANCE.get(dtype, 1e-3)
    found = check_logits(before[0], after[0], tolerance, **options)
    for scores, merged in zip(before[1:], after[1:], strict=True):  # small ones are sums that cancel out
        found = max(found, check_logits(scores, merged, tolerance, least=1.0, **options))
    return found


def _changes_nothing(checkpoint: Path) -> CheckpointError:
    return CheckpointError(
        f"Merging {checkpoint} changes nothing: its adapter is still in its initial state. Was the run stopped at once?"
    )


class _Streamed:
    """Merge of one adapter into one base model."""

    def __init__(self, args: InferArguments, base: Path, checkpoint: Path, num_rows: int) -> None:
        self.args = args
        self.base = base
        self.checkpoint = checkpoint
        self.dtype = None if args.dtype is None else torch_dtype(args.dtype)
        self.scores = is_reward(checkpoint)
        try:
            self.model = build_meta_model(args, base, num_rows=num_rows, adapter=checkpoint, scores=self.scores)
        except (ModelError, NotImplementedError, RuntimeError) as err:
            raise Unstreamable(f"its class cannot be built on the meta device: {err}") from err
        if self.scores:
            self.model.config.pad_token_id = args.load_tokenizer(base, _tokenizer_folder(args)).pad_token_id
        self.places = places_of(self.model)
        self.changed = False
        self.untied = False

    def write(self, target: Path, max_bytes: int) -> Path:
        with ExitStack() as stack:
            heads: dict[str, Any] = {"new": (SCORE,), "unused": (HEAD,)} if self.scores else {}
            self.weights = self._open(self.model, self.base, stack, **heads)
            self.tuned = attach_adapters(self.model, self.checkpoint)
            self.wrappers = list(wrappers_of(self.tuned).values())
            self.wrapper_of = {id(part): wrapper for wrapper in self.wrappers for part in wrapper.modules()}
            self._check_complete()
            probe = probe_ids(self.model)
            before = self._outputs(self.tuned, self.places, self.wrappers, self.weights, probe)
            with atomic_folder(target) as folder:
                self._write_weights(ShardWriter(folder, max_bytes))
                if not self.changed:
                    raise _changes_nothing(self.checkpoint)
                write_config(self.model, self.base, folder, self.args, dtype=self.dtype, untied=self.untied)
                complete_merged(folder, self.base, self.checkpoint, self.args)
                difference = self._check(folder, before, probe, stack)
        get_logger().info(MERGED, self.checkpoint, *_named(before, difference))
        return target

    def _open(self, model: Any, folder: Path, stack: ExitStack, **heads: Any) -> Weights:
        remote = self.args.trust_remote_code
        return Weights(model, folder, stack, allow_pickle=self.args.allow_pickle, remote=remote, **heads)

    def _check_complete(self) -> None:
        """Refuse adapters with a part that is neither in their file nor in the base model."""
        base = {id(getattr(*place)) for place in self.places.values()}
        for wrapper in self.wrappers:
            for name, value in wrapper.state_dict(keep_vars=True).items():
                if value.device.type == "meta" and id(value) not in base and not any(n in name for n in MADE_FROM_BASE):
                    raise Unstreamable(f"{name} of its adapters is not in their file")

    # The sum

    def _write_weights(self, writer: ShardWriter) -> None:
        ready: dict[str, Tensor] = {}
        for group in progress_bar(self.weights.groups, desc="Merging", unit=" tensors", leave=False):
            touched = any(self._is_touched(name) for name in group.names)
            if touched or group.converter is None:
                values = {name: self._value(name, ready) for name in group.names}
                self._watch_ties(group, values, ready, writer)
                for name, tensor in self.weights.as_in_files(group, values).items():
                    writer.add(name, tensor)
            else:
                for name in group.files:
                    writer.add(name, self._rounded(self.weights.tensors[name][...], name))
        writer.finish()

    def _is_touched(self, name: str) -> bool:
        module, leaf = self.places[name]
        return id(module) in self.wrapper_of or getattr(module, leaf).device.type != "meta"

    def _value(self, name: str, ready: dict[str, Tensor]) -> Tensor:
        """Return a merged tensor, in the dtype of the result."""
        module, leaf = self.places[name]
        wrapper = self.wrapper_of.get(id(module))
        if wrapper is None:
            own = getattr(module, leaf)
            if own.device.type == "meta":
                return self._rounded(self.weights.read(name), name)
            value = self._rounded(own.detach(), name, like=self.weights.read(name).dtype)  # e.g. a bias of --lora_bias
            self._compare(name, value)
            return value
        if name not in ready:
            ready |= self._merged(wrapper)
        return ready.pop(name)

    def _merged(self, wrapper: Any) -> dict[str, Tensor]:
        """Return the tensors of one layer with its adapters merged."""
        from peft.utils.other import AuxiliaryTrainingWrapper

        inside = {id(module) for module in wrapper.modules()}
        own = {name: place for name, place in self.places.items() if id(place[0]) in inside}
        empty = [(name, place) for name, place in own.items() if getattr(*place).device.type == "meta"]
        original = wrapper.original_module if isinstance(wrapper, AuxiliaryTrainingWrapper) else None
        options: dict[str, Any] = {"merge": True, "safe_merge": True, "adapter_names": None}
        with filled(empty, lambda name: self.weights.read(name, torch.float32)), torch.no_grad():
            if original is None:
                if hasattr(wrapper, "unload_and_optionally_merge_module"):  # fused experts: wrappers in wrappers
                    wrapper.unload_and_optionally_merge_module(**options)
                else:
                    wrapper.merge(safe_merge=True)
                found = {name: getattr(*place).detach() for name, place in own.items()}
            else:
                paths = {id(module): path for path, module in original.named_modules()}
                whole: Any = wrapper.unload_and_optionally_merge_module(**options)
                found = {}
                for name, (module, leaf) in own.items():
                    found[name] = getattr(whole.get_submodule(paths[id(module)]), leaf).detach()
        values = {}
        for name, value in found.items():
            values[name] = self._rounded(value, name, like=self.weights.read(name).dtype)
            self._compare(name, values[name])
        return values

    def _rounded(self, tensor: Tensor, name: str, like: torch.dtype | None = None) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        # upstream: transformers 5.23.0 transformers/modeling_utils.py: no public name for the modules kept in fp32
        kept = [*(self.model._keep_in_fp32_modules or ()), *(self.model._keep_in_fp32_modules_strict or ())]
        dtype = None if any(part in name for part in kept) else self.dtype
        return tensor.to(dtype or like or tensor.dtype)

    def _compare(self, name: str, value: Tensor) -> None:
        if not self.changed:
            self.changed = not torch.equal(value, self.weights.read(name).to(value.dtype))

    def _watch_ties(
        self, group: Group, values: dict[str, Tensor], ready: dict[str, Tensor], writer: ShardWriter
    ) -> None:
        """Write both of two tied tensors where only one was trained."""
        for name, value in values.items():
            others = [other for other in self.weights.tied(name) if other != name]
            if not others or not any(self._is_touched(one) for one in [name, *others]):
                continue
            for other in others:
                theirs = self._value(other, ready)
                if torch.equal(theirs, value):
                    continue
                self.untied = True
                if self.weights.has(other):
                    ready[other] = theirs
                else:
                    writer.add(self.weights.file_name(other), theirs)

    # The proof

    def _outputs(
        self, model: Any, places: Places, wrappers: list[nn.Module], weights: Weights, ids: Tensor
    ) -> tuple[Tensor, ...]:
        with computing(model, places, wrappers, lambda name: weights.read(name, torch.float32)), torch.no_grad():
            try:
                return outputs_of(model, ids, use_cache=False)
            except (RuntimeError, NotImplementedError, TypeError) as err:
                text = one_line(err, 200)
                raise Unstreamable(f"its class does not compute layer by layer: {text}") from err

    def _check(self, folder: Path, before: Sequence[Tensor], probe: Tensor, stack: ExitStack) -> float:
        merged = build_meta_model(dataclasses.replace(self.args, **NO_ROPE), folder, scores=self.scores)
        weights = self._open(merged, folder, stack)
        after = self._outputs(merged, places_of(merged), [], weights, probe)
        dtype = self.dtype or next(value.dtype for value in map(weights.read, list(weights.shapes)[:1]))
        return _check_merged(self.checkpoint, before, after, dtype)
