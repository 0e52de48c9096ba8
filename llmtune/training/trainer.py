"""transformers' Trainer, subclassed once: the learned loss in evaluation, whole checkpoints, throughput."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer
from transformers.trainer_utils import EvalLoopOutput, rotate_checkpoints

from llmtune.errors import OutputError
from llmtune.training.checkpoint import complete_checkpoint
from llmtune.training.throughput import Throughput
from llmtune.utils.files import write_json

__all__ = ["SftTrainer"]

GenerateMetrics = Callable[[Any], dict[str, float]]


class SftTrainer(Trainer):
    """The model must have the learned loss installed.

    Args:
        throughput: Is told of every batch.
        sft_args: Written into each checkpoint.
        longest_first: Train on the longest samples first instead of a random order.
        generate_metrics: Makes further metrics of an evaluation, from the model.
    """

    def __init__(
        self,
        *args: Any,
        throughput: Throughput,
        sft_args: dict[str, Any],
        longest_first: bool = False,
        generate_metrics: GenerateMetrics | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        # Some classes (Qwen2.5-VL) say no for their own loss; ours divides by the tokens of the whole step.
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)
        self._throughput = throughput
        self._sft_args = sft_args
        self._longest_first = longest_first
        self._generate_metrics = generate_metrics
        self._sums = torch.zeros(3, dtype=torch.float64)
        self._saving_into: Path | None = None

    # Steps

    def get_batch_samples(self, epoch_iterator: Iterator, *args: Any, **kwargs: Any) -> Any:
        return super().get_batch_samples(self._throughput.batches(epoch_iterator), *args, **kwargs)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        self._throughput.count(inputs)
        return super().training_step(model, inputs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self._longest_first:
            return _LongestFirst(dataset.lengths)
        return super()._get_train_sampler(train_dataset)

    # Evaluation

    def prediction_step(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> tuple[Any, None, None]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            found = model(**inputs)
        sums = [found.loss.float() * found.num_learned, found.num_learned, found.num_correct]
        self._sums += torch.stack([value.detach().double().cpu() for value in sums])
        return found.loss.detach(), None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Upstream's loop; the loss is the mean over learned tokens, whatever batches they came in."""
        self._sums.zero_()
        kwargs["prediction_loss_only"] = True
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        sums = self.accelerator.reduce(self._sums.to(torch.float32).to(self.args.device)).tolist()
        learned = max(sums[1], 1)
        output.metrics[f"{metric_key_prefix}_loss"] = sums[0] / learned
        output.metrics[f"{metric_key_prefix}_token_acc"] = sums[2] / learned
        if self._generate_metrics is not None:
            found = self._generate_metrics(self.model)
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return output

    # Checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving_into or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write into a hidden folder and rename it when it is whole: a checkpoint-N is complete or is not there."""
        run = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        self._saving_into = Path(tempfile.mkdtemp(prefix=".saving-", dir=run))
        try:
            super()._save_checkpoint(model, trial)
            made = self._saving_into / name
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(run / name)
                self.state.save_to_json(str(made / "trainer_state.json"))
            write_json(made / "sft_args.json", self._sft_args)
            complete_checkpoint(made, self.model, self.processing_class)
            if (run / name).exists():
                shutil.rmtree(run / name)
            made.rename(run / name)
        except Exception as err:  # safetensors and torch report a full disk by types of their own
            raise OutputError(
                f"The checkpoint of step {self.state.global_step} could not be saved ({_reason(err)}). "
                f"No part of it is left; earlier ones in {run} are whole. Free some space and resume from the last."
            ) from err
        finally:
            shutil.rmtree(self._saving_into, ignore_errors=True)
            self._saving_into = None
        rotate_checkpoints(
            output_dir=str(run),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
            use_mtime=True,
        )


class _LongestFirst(Sampler[int]):
    def __init__(self, lengths: Any) -> None:
        self._order = [int(index) for index in (-lengths).argsort(kind="stable")]

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)


def _reason(err: Exception) -> str:
    return " ".join(str(err).split())[:200] or type(err).__name__
