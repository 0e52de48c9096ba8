"""Modules of version 0.4 under their names of today, until 0.6: an old import gets the new module, with a warning."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

MOVED = {
    former: today
    for today, names in {
        "arguments.aliases": "arguments.train_args",
        "arguments.checks": "tuners.names",
        "arguments.export": "arguments.merge",
        "arguments.groups": "arguments.long_context arguments.speed",
        "arguments.inheritance": "arguments.resume arguments.strangers",
        "arguments.parser": "cli.parser",
        "arguments.service": "arguments.answering arguments.serve arguments.web",
        "arguments.stage": "arguments.sft",
        "arguments.training_groups": "arguments.distributed",
        "checkpoint": "arguments.checkpoint_folder training.checkpoint",
        "cli.check": "cli.check_template",
        "cli.checkpoints": "cli.eval cli.export cli.infer cli.merge cli.push cli.serve",
        "cli.dry_run": "cli.dry_infer cli.dry_serve cli.dry_sft",
        "cli.stages": "cli.sft",
        "data.contents": "data.turns",
        "data.files": "data.archives",
        "data.items": "data.local",
        "data.preprocess.single_turn": (
            "data.preprocess.alpaca data.preprocess.classification data.preprocess.code data.preprocess.generation "
            "data.preprocess.vision"
        ),
        "data.readers": "data.delimited data.tables",
        "data.row_cache": "data.identity",
        "data.values": "data.tool_schemas",
        "distributed.collectives": "distributed.processes",
        "distributed.fsdp": "distributed.background",
        "distributed.launch": "cli.processes",
        "distributed.ranks": "utils.ranks utils.turns",
        "evaluation": "evaluating",
        "evaluation.choices": "evaluating.choices",
        "evaluation.evaluate": "evaluating.evaluate",
        "evaluation.results": "evaluating.journal evaluating.results evaluating.settings",
        "evaluation.scores": "evaluating.answers evaluating.likelihood evaluating.loss evaluating.scores",
        "evaluation.suite": "evaluating.harness evaluating.suite",
        "hub.clients": "hub.explain hub.huggingface hub.modelscope hub.repo hub.settings",
        "inference.generation": "inference.rows",
        "inference.engine": "inference.adapters",
        "inference.infer": "inference.results",
        "inference.texts": "inference.stops inference.thoughts",
        "launch": "launching",
        "launch.job": "launching.job",
        "launch.schedulers": "launching.ray launching.sky launching.slurm",
        "merging.files": "exporting.files exporting.shards",
        "merging.merge": "exporting.merge tuners.merge",
        "merging.meta_model": "exporting.hollow",
        "merging.weights": "exporting.weights",
        "metrics": "evaluating.builtin evaluating.info inference.metrics utils.tables",
        "models.devices": "planning.cards",
        "models.flops": "planning.flops",
        "models.folder": "models.headers",
        "models.layers": "planning.checkpointing training.kernels",
        "models.packed_attention": "models.varlen training.isolation",
        "models.ports.llama": "models.ports.baichuan models.ports.internlm models.ports.internlm2 models.ports.xverse",
        "models.ports.load": "models.ports.find",
        "models.ports.tokenizers.port": "models.ports.tokenizers.merges",
        "models.ports.tokenizers.sentencepiece_bpe": "models.ports.tokenizers.model_file",
        "models.quantization": "models.prequantized",
        "models.supervised_loss": "training.loss",
        "models.vision": "templates.images",
        "planning.memory": "planning.optimizers",
        "planning.plan": "planning.suggestions",
        "planning.trace": "planning.shapes",
        "planning.workload": "planning.sharding planning.spread",
        "run.curves": "training.curves",
        "run.folder": "training.run_folder training.run_lock",
        "run.log": "training.decisions training.first_look",
        "run.model_card": "training.card",
        "run.report": "training.report",
        "run.resolved": "training.before",
        "run.training_arguments": "training.strategy training.trackers training.training_arguments",
        "samples.collate": "training.collate",
        "samples.packing": "training.packing",
        "samples.prepare": "training.data_identity training.positions training.prepare",
        "samples.sampler": "training.order",
        "samples.store": "data.store",
        "samples.streaming": "training.streaming",
        "serving.app": "serving.server",
        "serving.completions": "serving.chat",
        "serving.limits": "serving.gate serving.metrics serving.patience",
        "serving.protocol": "serving.errors",
        "serving.routing": "serving.choose serving.writers",
        "serving.wire": "serving.body serving.pictures",
        "stages.sft": "training.sft",
        "templates": "inspect",
        "templates.encode": "templates.cut",
        "templates.mask_view": "inspect.mask_view",
        "templates.own_render": "templates.own_answer templates.probes templates.stops",
        "templates.parity": "templates.upstream",
        "templates.tools.info": "templates.tools.jsons templates.tools.of_template",
        "training.attention": "models.shifted",
        "training.callbacks": "training.loss_watch",
        "training.generation_eval": "training.answers",
        "training.hub_push": "training.push",
        "training.result": "training.outcome",
        "training.resuming": "training.rates",
        "tuners.lora": "tuners.loraplus tuners.mutated tuners.whole_adapter",
        "tuners.named_layers": "training.named_layers",
        "tuners.targets": "tuners.experts tuners.freeze tuners.parts",
        "tuners.tune": "tuners.adalora tuners.ia3 tuners.kbit tuners.vera",
        "utils.files": "utils.atomic utils.cache",
        "utils.logging": "utils.quiet",
        "utils.seal": "utils.own",
        "utils.system": "utils.addresses",
        "web.history": "web.talk",
        "web.images": "web.pictures",
        "web.page": "web.texts",
    }.items()
    for former in names.split()
}


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of MOVED under their old names."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        known = name.startswith("llmtune.") and name.removeprefix("llmtune.") in MOVED
        return importlib.machinery.ModuleSpec(name, self) if known else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        today = f"llmtune.{MOVED[name.removeprefix('llmtune.')]}"
        warnings.warn(f"{name} is {today} since 0.5, and goes in 0.6.", DeprecationWarning, stacklevel=6)
        sys.modules[name] = importlib.import_module(today)


def install() -> None:
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
