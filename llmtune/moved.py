"""Modules of version 0.4 under their names of today, until 0.6: an old import gets the new module, with a warning."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

MOVED = dict(
    pair.split("=")
    for pair in [
        "arguments.answering=arguments.service",
        "arguments.checkpoint_folder=checkpoint",
        "arguments.distributed=arguments.training_groups",
        "arguments.long_context=arguments.groups",
        "arguments.merge=arguments.export",
        "arguments.resume=arguments.inheritance",
        "arguments.serve=arguments.service",
        "arguments.sft=arguments.stage",
        "arguments.speed=arguments.groups",
        "arguments.strangers=arguments.inheritance",
        "arguments.train_args=arguments.aliases",
        "arguments.web=arguments.service",
        "cli.check_template=cli.check",
        "cli.dry_infer=cli.dry_run",
        "cli.dry_serve=cli.dry_run",
        "cli.dry_sft=cli.dry_run",
        "cli.parser=arguments.parser",
        "cli.processes=distributed.launch",
        "data.archives=data.files",
        "data.delimited=data.readers",
        "data.identity=data.row_cache",
        "data.local=data.items",
        "data.store=samples.store",
        "data.tables=data.readers",
        "data.tool_schemas=data.values",
        "data.turns=data.contents",
        "distributed.background=distributed.collectives",
        "distributed.fsdp=distributed.collectives",
        "distributed.processes=distributed.collectives",
        "evaluating=evaluation",
        "evaluating.answers=evaluation.scores",
        "evaluating.builtin=metrics",
        "evaluating.choices=evaluation.choices",
        "evaluating.evaluate=evaluation.evaluate",
        "evaluating.harness=evaluation.suite",
        "evaluating.info=metrics",
        "evaluating.journal=evaluation.results",
        "evaluating.likelihood=evaluation.scores",
        "evaluating.loss=evaluation.scores",
        "evaluating.results=evaluation.results",
        "evaluating.scores=evaluation.scores",
        "evaluating.settings=evaluation.results",
        "evaluating.suite=evaluation.suite",
        "exporting.files=merging.files",
        "exporting.hollow=merging.meta_model",
        "exporting.merge=merging.merge",
        "exporting.shards=merging.files",
        "exporting.weights=merging.weights",
        "hub.explain=hub.clients",
        "hub.huggingface=hub.clients",
        "hub.modelscope=hub.clients",
        "hub.repo=hub.clients",
        "hub.settings=hub.clients",
        "inference.adapters=inference.engine",
        "inference.metrics=metrics",
        "inference.results=inference.infer",
        "inference.stops=inference.texts",
        "inference.thoughts=inference.texts",
        "inspect=templates",
        "inspect.mask_view=templates.mask_view",
        "launching=launch",
        "launching.job=launch.job",
        "launching.ray=launch.schedulers",
        "launching.sky=launch.schedulers",
        "launching.slurm=launch.schedulers",
        "models.headers=models.folder",
        "models.ports.baichuan=models.ports.llama",
        "models.ports.find=models.ports.load",
        "models.ports.internlm=models.ports.llama",
        "models.ports.internlm2=models.ports.llama",
        "models.ports.tokenizers.merges=models.ports.tokenizers.port",
        "models.ports.tokenizers.model_file=models.ports.tokenizers.sentencepiece_bpe",
        "models.ports.xverse=models.ports.llama",
        "models.prequantized=models.quantization",
        "models.shifted=training.attention",
        "models.varlen=models.packed_attention",
        "planning.cards=models.devices",
        "planning.checkpointing=models.layers",
        "planning.flops=models.flops",
        "planning.optimizers=planning.memory",
        "planning.shapes=planning.trace",
        "planning.sharding=planning.workload",
        "planning.spread=planning.workload",
        "planning.suggestions=planning.plan",
        "serving.body=serving.wire",
        "serving.chat=serving.completions",
        "serving.choose=serving.routing",
        "serving.errors=serving.protocol",
        "serving.gate=serving.limits",
        "serving.metrics=serving.limits",
        "serving.patience=serving.limits",
        "serving.pictures=serving.wire",
        "serving.server=serving.app",
        "serving.writers=serving.routing",
        "templates.cut=templates.encode",
        "templates.images=models.vision",
        "templates.own_answer=templates.own_render",
        "templates.probes=templates.own_render",
        "templates.stops=templates.own_render",
        "templates.upstream=templates.parity",
        "training.answers=training.generation_eval",
        "training.before=run.resolved",
        "training.card=run.model_card",
        "training.checkpoint=checkpoint",
        "training.collate=samples.collate",
        "training.curves=run.curves",
        "training.data_identity=samples.prepare",
        "training.decisions=run.log",
        "training.first_look=run.log",
        "training.isolation=models.packed_attention",
        "training.kernels=models.layers",
        "training.loss=models.supervised_loss",
        "training.loss_watch=training.callbacks",
        "training.named_layers=tuners.named_layers",
        "training.order=samples.sampler",
        "training.outcome=training.result",
        "training.packing=samples.packing",
        "training.positions=samples.prepare",
        "training.prepare=samples.prepare",
        "training.push=training.hub_push",
        "training.rates=training.resuming",
        "training.report=run.report",
        "training.run_folder=run.folder",
        "training.run_lock=run.folder",
        "training.sft=stages.sft",
        "training.strategy=run.training_arguments",
        "training.streaming=samples.streaming",
        "training.trackers=run.training_arguments",
        "training.training_arguments=run.training_arguments",
        "tuners.adalora=tuners.tune",
        "tuners.experts=tuners.targets",
        "tuners.freeze=tuners.targets",
        "tuners.ia3=tuners.tune",
        "tuners.kbit=tuners.tune",
        "tuners.loraplus=tuners.lora",
        "tuners.merge=merging.merge",
        "tuners.mutated=tuners.lora",
        "tuners.names=arguments.checks",
        "tuners.parts=tuners.targets",
        "tuners.vera=tuners.tune",
        "tuners.whole_adapter=tuners.lora",
        "utils.addresses=utils.system",
        "utils.atomic=utils.files",
        "utils.cache=utils.files",
        "utils.own=utils.seal",
        "utils.quiet=utils.logging",
        "utils.ranks=distributed.ranks",
        "utils.tables=metrics",
        "utils.turns=distributed.ranks",
        "web.pictures=web.chat_tab",
        "web.runs=web.training_tab",
        "web.talk=web.chat_tab",
        "web.texts=web.page",
    ]
)


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
