"""transformers' Trainer, subclassed: sample order, supervised loss in evaluation, atomic checkpoints, throughput."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import EvalLoopOutput

from llmtune.checkpoint import STATE_FILE, checkpoint_folder, rotate, seal_checkpoint, write_settings
from llmtune.distributed.collectives import any_rank, sum_over_ranks, wait_for_all
from llmtune.distributed.fsdp import BackgroundSaves, stored_names, whole_state_dict
from llmtune.errors import CheckpointError, LlmtuneError, OutputError, one_line
from llmtune.models.heads import inner_model, is_reward_model
from llmtune.models.whole_weights import check_names
from llmtune.run.resume import RATES
from llmtune.samples.collate import SAMPLES
from llmtune.samples.sampler import EpochOrder, Kind, SetEpoch
from llmtune.samples.streaming import PLACE_FILE, StreamedSamples
from llmtune.templates.media import MediaReader
from llmtune.training.callbacks import Interrupt, LossWatch
from llmtune.training.objective import Metrics, Objective, Totals
from llmtune.training.resuming import follow_rates, rates_of
from llmtune.training.throughput import Throughput
from llmtune.tuners.lora import check_adapter
from llmtune.utils.files import is_full_disk, write_json
from llmtune.utils.logging import get_logger


@dataclass(frozen=True)
class _Unfinished:
    """A checkpoint that is still being written. `running`: the pending writes."""

    saving: Path
    name: str
    running: list[Future[Any]]
    failed: Exception | None


GenerateMetrics = Callable[[Any], dict[str, float]]


class Loop(Protocol):
    """The loop of an online stage; see `llmtune.training.online`."""

    def batches(self, step: int, count: int) -> list[dict[str, Any]]:
        """Return this rank's micro-batches of an optimizer step. Collective."""
        ...

    def take_metrics(self) -> dict[str, float]: ...

    def evaluate(self, prompts: Any, prefix: str) -> dict[str, float]: ...

    def save(self, folder: Path, step: int) -> None: ...


class StageTrainer(Trainer):
    """Trainer for any stage; it minimises an objective.

    Args:
        objective: The loss, and what it counts.
        throughput: Receives every batch.
        settings: Written into each checkpoint.
        watch: Checks the loss of every step.
        order: Order of the samples in an epoch.
        keep: Max number of checkpoints; the best and the newest are always kept. None: all.
        changed: Arguments that differ from those of the resumed checkpoint.
        async_save: Write FSDP shards in the background.
        generate_metrics: Computes additional metrics of an evaluation from the model.
        media: Saved with each checkpoint.
        loop: Samples what an online stage trains on; None: batches are those of the dataset.
        sharing: Ranks that share each batch, by sequence parallelism.
    """

    loop: Loop | None = None
    _sharing = 1

    def __init__(
        self,
        *args: Any,
        objective: Objective,
        throughput: Throughput,
        settings: dict[str, Any],
        watch: LossWatch,
        order: Kind = "random",
        async_save: bool = False,
        keep: int | None = None,
        changed: frozenset[str] = frozenset(),
        generate_metrics: GenerateMetrics | None = None,
        media: MediaReader | None = None,
        loop: Loop | None = None,
        sharing: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._sharing = sharing
        # upstream: transformers 5.23.0 transformers/trainer.py: follows the class (Qwen2.5-VL: False), not our loss
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)
        self.objective = objective
        self._throughput = throughput
        self._settings = settings
        self.watch = watch
        self._order = order
        self._background = BackgroundSaves() if async_save and self.is_fsdp_enabled else None
        self._unfinished: _Unfinished | None = None
        self.last_saved: Path | None = None
        self._keep = keep
        self._changed = changed
        self._generate_metrics = generate_metrics
        self._media = media
        self.loop = loop
        self._train_metrics = Metrics(objective.train_metrics)
        self._eval_metrics = Metrics(objective.eval_metrics)
        self._totals: Totals | None = None

    def run(self, resume: Path | None, interrupt: Interrupt) -> dict[str, Any]:
        """Train, from a checkpoint if given; return the training metrics."""
        try:
            output = self.train(resume_from_checkpoint=None if resume is None else str(resume))
            self.finish_saving()
        finally:
            interrupt.restore()
        return dict(output.metrics)

    # Steps

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, *args: Any, **kwargs: Any) -> Any:
        batches = self._throughput.batches(epoch_iterator)
        if self.loop is not None:  # the dataset says only how many micro-batches there are
            count = len(list(itertools.islice(batches, num_batches)))
            batches = iter(self.loop.batches(self.state.global_step, count)) if count else batches
        return super().get_batch_samples(batches, num_batches, *args, **kwargs)

    # upstream: transformers 5.23.0 transformers/trainer.py: private, gets all batches of a step
    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor | None:
        """Count the step that begins, over all ranks; upstream asks for the divisor of its losses."""
        if not batch_samples:
            return None
        counts = [self.objective.count(batch) for batch in batch_samples]
        sequences = torch.stack([count.sequences for count in counts]).sum()
        tokens = torch.stack([count.tokens for count in counts]).sum()
        if self.args.world_size > 1:
            own = torch.stack([sequences.to(device, tokens.dtype), tokens.to(device)])
            sequences, tokens = self.accelerator.gather(own).reshape(-1, 2)[:: self._sharing].sum(0)
        self._totals = Totals(sequences.to(device), _whole(tokens).to(device))
        if self.objective.measures:
            self._measure(batch_samples)
        return self._totals.tokens

    def _measure(self, batches: Iterable[dict[str, Any]]) -> None:
        """Let the objective measure all batches of a step, or of an evaluation, over all ranks."""
        sums: torch.Tensor | None = None
        with torch.no_grad():
            for batch in batches:
                inputs = self._prepare_inputs({name: value for name, value in batch.items() if name != SAMPLES})
                with self.compute_loss_context_manager():
                    found = self.objective.measure(self.model_wrapped, inputs)
                sums = found if sums is None else sums + found
        assert sums is not None
        total = [value / self._sharing for value in sum_over_ranks(sums.tolist())]
        self.objective.settle(torch.tensor(total, dtype=torch.float32, device=sums.device))

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """Return the share of a micro-batch, times the world size, by which the model's wrapper divides gradients.

        Of ranks that share the batch, each has its whole loss, and a part of the gradient times their number.
        """
        share = self.objective.share(model, inputs, self._totals)
        self._train_metrics.add(share.metrics)
        return share.loss * self._data_ranks

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs |= self._train_metrics.take()
            logs |= {} if self.loop is None else self.loop.take_metrics()
        super().log(logs, *args, **kwargs)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        samples = inputs.pop(SAMPLES, None)
        self._throughput.count(inputs, samples)
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.watch.add(loss, samples)
        return loss

    # upstream: transformers 5.23.0 transformers/trainer.py: private, there is no public method for samplers
    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        sampler = self._sampler(self.train_dataset if train_dataset is None else train_dataset, self._order)
        self.add_callback(SetEpoch(sampler))
        return sampler

    # upstream: transformers 5.23.0 transformers/trainer.py: private, there is no public method for samplers
    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler | None:
        return self._sampler(
            eval_dataset, "longest_first"
        )  # the loss does not depend on the order, and this pads least

    def _sampler(self, dataset: Any, kind: Kind) -> EpochOrder:
        evaluates = dataset is not self.train_dataset
        batch_size = self.args.per_device_eval_batch_size if evaluates else self._train_batch_size
        together = batch_size * self._data_ranks
        return EpochOrder(
            dataset.samples,
            kind,
            seed=self.args.data_seed,
            step_size=together if evaluates else self._step_size(),
            fill_to=together if self.args.world_size > 1 else 1,
            batch_size=batch_size,
            copies=self._sharing,
        )

    # Evaluation

    def prediction_step(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> tuple[Any, None, None]:
        inputs = self._prepare_inputs(inputs)
        inputs.pop(SAMPLES, None)
        with torch.no_grad(), self.compute_loss_context_manager():
            share = self.objective.share(model, inputs, None)
        self._eval_metrics.add(share.metrics)
        return share.loss.detach(), None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Run upstream's loop; metrics are ratios of sums over all batches, independent of batching."""
        if self.loop is not None:
            found = self.loop.evaluate(self.eval_dataset.samples, metric_key_prefix)
            return EvalLoopOutput(None, None, found, len(self.eval_dataset))
        self._eval_metrics.take()
        kwargs["prediction_loss_only"] = True
        if self.objective.measures:
            self.model.eval()
            self._measure(args[0] if args else kwargs["dataloader"])
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        values = self._eval_metrics.take()
        values = {name: values.get(name, 0.0) for name in self._eval_metrics.names}
        values |= self.objective.derived("eval", values["loss"])
        if self._generate_metrics is not None:
            values |= self._generate_metrics(self.model)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in values.items()})
        return output

    # upstream: transformers 5.23.0 transformers/trainer.py: saves a best step only if it is one of save_steps
    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Save a new best checkpoint at once, whatever --save_steps is."""
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best and self.args.save_strategy != "no" and not self.control.should_save:
            self.control.should_save = True
            step = self.state.global_step
            get_logger().info(f"Best evaluation so far at step {step}: saving checkpoint-{step}.")
        return is_best

    def best_checkpoint(self) -> Path | None:
        """Return the checkpoint with the best evaluation; None if nothing was evaluated, or it is gone.

        The run may have been moved since; the checkpoint is searched where its folder is now.
        """
        if not self.state.best_model_checkpoint:
            return None
        found = Path(self.args.output_dir) / Path(self.state.best_model_checkpoint).name
        return found if found.is_dir() else None

    # Checkpoints

    # upstream: transformers 5.23.0 transformers/trainer.py: private, raises what torch raises on a damaged file
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _damage_explained(resume_from_checkpoint, "the weights"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if hasattr(self.model, "peft_config") and not self.is_fsdp_enabled:
            check_adapter(self.model, Path(resume_from_checkpoint))

    # upstream: transformers 5.23.0 transformers/trainer.py: private, raises what torch raises on a damaged file
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        rates = rates_of(self.optimizer) if self._changed & RATES else None
        with _damage_explained(checkpoint, "the optimizer's state"):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and rates is not None:
            follow_rates(self.optimizer, self.lr_scheduler, rates)

    # upstream: transformers 5.23.0 transformers/trainer.py: private, raises what torch raises on a damaged file
    def _load_scaler(self, checkpoint: str | None) -> None:
        with _damage_explained(checkpoint, "the scaler's state"):
            super()._load_scaler(checkpoint)

    # upstream: transformers 5.23.0 transformers/trainer.py: private, raises what torch raises on a damaged file
    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _damage_explained(checkpoint, "the random state"):
            super()._load_rng_state(checkpoint)

    # upstream: transformers 5.23.0 transformers/trainer.py: only warns of missing and unexpected weights
    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Raise on missing or unexpected full weights; tied tensors are saved once."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        missing = [name for name in load_result.missing_keys if name not in tied]
        check_names(Path(self.args.output_dir), missing, load_result.unexpected_keys, self.model.config)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        state = whole_state_dict(self.model)  # all ranks pass their shards, rank 0 writes
        self._save(output_dir, state_dict=state)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if state_dict is not None and not hasattr(self.model, "peft_config"):
            stored = stored_names(self.model)
            # upstream: accelerate 1.15.0 no issue: its state dict holds copies of shared weights
            state_dict = {name: value for name, value in state_dict.items() if name in stored}
        super()._save(output_dir, state_dict=state_dict)

    # upstream: transformers 5.23.0 transformers/trainer.py: writes under the final name, even if killed
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write into a hidden folder and rename it when complete, so that a checkpoint-N is never partial."""
        self.finish_saving()
        name = checkpoint_folder(Path(), self.state.global_step).name
        saving = Path(self.args.output_dir) / f".saving-{name}"
        self.store_flos()
        if self.args.should_save:
            shutil.rmtree(saving, ignore_errors=True)
            saving.mkdir()
        wait_for_all()
        running: list[Future[Any]] = []
        with contextlib.ExitStack() as stack:
            if self._background is not None:
                running = stack.enter_context(self._background.divert())
            failed = _failure_of(lambda: self._write_checkpoint(saving / name))
        some_failed = any_rank(failed is not None)
        if not some_failed and self.args.should_save:
            failed = _failure_of(lambda: self._complete(saving / name))
        self._unfinished = _Unfinished(saving, name, running, failed)
        if not running or some_failed:
            self.finish_saving()

    def finish_saving(self) -> None:
        """Wait for pending writes, and publish the checkpoint under its name."""
        if self._unfinished is None:
            return
        made, self._unfinished = self._unfinished, None
        run, failed = made.saving.parent, made.failed
        failed = failed or _failure_of(lambda: [future.result() for future in made.running])
        some_failed = any_rank(failed is not None)
        if not some_failed and self.args.should_save:
            failed = _failure_of(lambda: self._publish(made.saving / made.name, run / made.name, made.running))
            some_failed = failed is not None
        some_failed = any_rank(some_failed)
        if self.args.should_save:
            shutil.rmtree(made.saving, ignore_errors=True)
        if some_failed:
            raise OutputError(
                f"{made.name} could not be saved ({_reason(failed, run)}). "
                f"No part of it is left; earlier ones in {run} are whole. Free some space and resume from the last."
            ) from failed
        if self.args.should_save:
            self.last_saved = run / made.name
            rotate(run, self._keep, best=self.best_checkpoint(), newest=self.last_saved)
        wait_for_all()

    def _publish(self, made: Path, final: Path, running: list[Future[Any]]) -> None:
        strategy = "deepspeed" if self.is_deepspeed_enabled else "fsdp" if self.is_fsdp_enabled else ""
        seal_checkpoint(made, world_size=self.args.world_size, step_size=self._step_size(), strategy=strategy)
        shutil.rmtree(final, ignore_errors=True)
        made.rename(final)
        if running:
            get_logger().info(f"{final.name} was written in the background.")

    def _write_checkpoint(self, made: Path) -> None:
        """Write Trainer's own parts of a checkpoint, without its barrier.

        At the barrier, other ranks would wait for a rank 0 that has failed.
        """
        if callable(averages := getattr(self.optimizer, "eval", None)):
            averages()  # schedule-free optimizers train at other weights than those to save; the next step swaps back
        self.save_model(str(made), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(made))
            self._save_scaler(str(made))
            self._save_rng_state(str(made))

    def _complete(self, made: Path) -> None:
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(Path(self.args.output_dir) / made.name)
        for part in [*self.callback_handler.callbacks, self.control]:
            if isinstance(part, ExportableState):
                self.state.stateful_callbacks[type(part).__name__] = part.state()
        self.state.save_to_json(str(made / STATE_FILE))
        write_settings(made, self._settings)
        complete_checkpoint(made, self.model, self._media)
        if isinstance(self.train_dataset, StreamedSamples):
            place = self.train_dataset.place_after(self.state.global_step * self._step_size())
            write_json(made / PLACE_FILE, place)
        if self.loop is not None:
            self.loop.save(made, self.state.global_step)

    def _step_size(self) -> int:
        return self._train_batch_size * self.args.gradient_accumulation_steps * self._data_ranks

    @property
    def _data_ranks(self) -> int:
        """Ranks, or groups of those that share batches."""
        return self.args.world_size // self._sharing


@contextlib.contextmanager
def _damage_explained(checkpoint: str | None, part: str) -> Iterator[None]:
    """Turn errors of torch, pickle, safetensors and PEFT on a damaged or foreign part into one line."""
    try:
        yield
    except LlmtuneError:
        raise
    except Exception as err:
        raise CheckpointError(
            f"{part[0].upper()}{part[1:]} in {checkpoint} cannot be read, or belongs to a run with other settings "
            f"({type(err).__name__}: {_harmless(_reason(err))}). Resume from another checkpoint of the run."
        ) from err


def _harmless(text: str) -> str:
    """The text without torch's advice to load with weights_only=False, which lets a file run code."""
    return "the file is damaged" if "weights_only" in text or "Weights only" in text else text


def _whole(tokens: torch.Tensor) -> torch.Tensor:
    """Return a total as an integer if it is one, else in float32, so that all ranks decide alike."""
    if not tokens.is_floating_point():
        return tokens
    total = float(tokens)
    return torch.tensor(int(total)) if total.is_integer() else torch.tensor(total)


def complete_checkpoint(folder: Path, model: Any, media: MediaReader | None) -> None:
    """Add files that serving needs and Trainer omits: generation_config.json of adapters, image processor settings."""
    if is_reward_model(model):
        model.config.architectures = [type(inner_model(model)).__name__]
        model.config.save_pretrained(str(folder))  # the adapter's own does not say that there is one label
    config = getattr(model, "generation_config", None)
    if config is not None and not (folder / "generation_config.json").exists():
        config.save_pretrained(str(folder))
    if media is not None:
        media.save(folder)


def _failure_of(work: Callable[[], Any]) -> Exception | None:
    try:
        work()
    except Exception as err:  # safetensors and torch report a full disk by types of their own
        return err
    return None


def _reason(err: Exception | None, folder: Path | None = None) -> str:
    if err is None:
        return "in another process"
    if folder is not None and is_full_disk(err, folder):
        return "No space left on device"
    return one_line(err, 200)
