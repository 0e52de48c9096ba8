"""llmtune: fine-tune large language models from three registries.

Names are imported on first use, so that `import llmtune` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from llmtune import moved

if TYPE_CHECKING:
    from llmtune.arguments.evaluate import EvaluateArguments
    from llmtune.arguments.export import ExportArguments, MergeArguments
    from llmtune.arguments.infer import InferArguments
    from llmtune.arguments.online import GrpoArguments, PpoArguments
    from llmtune.arguments.preference import DpoArguments, KtoArguments, RmArguments
    from llmtune.arguments.pretraining import PtArguments
    from llmtune.arguments.stage import SftArguments
    from llmtune.cli.check_facts import check
    from llmtune.data.info import DATASET_MAPPING, DatasetInfo, register_dataset
    from llmtune.data.mixing import get_dataset
    from llmtune.errors import LlmtuneError
    from llmtune.evaluation.evaluate import evaluate
    from llmtune.exporting.export import export, merge
    from llmtune.inference.infer import infer
    from llmtune.metrics import METRIC_MAPPING, MetricInfo, register_metric
    from llmtune.models.info import MODEL_MAPPING, ModelInfo, register_model
    from llmtune.models.loading import get_media_reader, get_model_tokenizer
    from llmtune.planning.plan import plan
    from llmtune.rewards.info import REWARD_MAPPING, RewardInfo, register_reward
    from llmtune.stages.dpo import dpo
    from llmtune.stages.grpo import grpo
    from llmtune.stages.kto import kto
    from llmtune.stages.ppo import ppo
    from llmtune.stages.pt import pt
    from llmtune.stages.rm import rm
    from llmtune.stages.sft import sft
    from llmtune.templates.chat import ChatTemplate
    from llmtune.templates.info import TEMPLATE_MAPPING, TemplateInfo, register_template
    from llmtune.templates.lookup import get_template
    from llmtune.templates.tools import TOOL_FORMAT_MAPPING, ToolFormat, register_tool_format
    from llmtune.tool_functions.info import TOOL_MAPPING, ToolInfo, register_tool
    from llmtune.training.result import SftResult

__version__ = "0.5.0"

moved.install()

_HOMES = {
    "ChatTemplate": "llmtune.templates.chat",
    "DATASET_MAPPING": "llmtune.data.info",
    "DatasetInfo": "llmtune.data.info",
    "EvaluateArguments": "llmtune.arguments.evaluate",
    "ExportArguments": "llmtune.arguments.export",
    "InferArguments": "llmtune.arguments.infer",
    "GrpoArguments": "llmtune.arguments.online",
    "PpoArguments": "llmtune.arguments.online",
    "LlmtuneError": "llmtune.errors",
    "METRIC_MAPPING": "llmtune.metrics",
    "MergeArguments": "llmtune.arguments.export",
    "MODEL_MAPPING": "llmtune.models.info",
    "MetricInfo": "llmtune.metrics",
    "ModelInfo": "llmtune.models.info",
    "DpoArguments": "llmtune.arguments.preference",
    "KtoArguments": "llmtune.arguments.preference",
    "RmArguments": "llmtune.arguments.preference",
    "PtArguments": "llmtune.arguments.pretraining",
    "REWARD_MAPPING": "llmtune.rewards.info",
    "RewardInfo": "llmtune.rewards.info",
    "SftArguments": "llmtune.arguments.stage",
    "SftResult": "llmtune.training.result",
    "TEMPLATE_MAPPING": "llmtune.templates.info",
    "TOOL_FORMAT_MAPPING": "llmtune.templates.tools",
    "TemplateInfo": "llmtune.templates.info",
    "TOOL_MAPPING": "llmtune.tool_functions.info",
    "ToolFormat": "llmtune.templates.tools",
    "ToolInfo": "llmtune.tool_functions.info",
    "check": "llmtune.cli.check_facts",
    "dpo": "llmtune.stages.dpo",
    "evaluate": "llmtune.evaluation.evaluate",
    "export": "llmtune.exporting.export",
    "get_dataset": "llmtune.data.mixing",
    "get_media_reader": "llmtune.models.loading",
    "get_model_tokenizer": "llmtune.models.loading",
    "get_template": "llmtune.templates.lookup",
    "grpo": "llmtune.stages.grpo",
    "infer": "llmtune.inference.infer",
    "kto": "llmtune.stages.kto",
    "merge": "llmtune.exporting.export",
    "plan": "llmtune.planning.plan",
    "ppo": "llmtune.stages.ppo",
    "pt": "llmtune.stages.pt",
    "register_dataset": "llmtune.data.info",
    "register_metric": "llmtune.metrics",
    "register_model": "llmtune.models.info",
    "register_reward": "llmtune.rewards.info",
    "register_template": "llmtune.templates.info",
    "register_tool": "llmtune.tool_functions.info",
    "register_tool_format": "llmtune.templates.tools",
    "rm": "llmtune.stages.rm",
    "sft": "llmtune.stages.sft",
}

__all__ = [
    "DATASET_MAPPING",
    "METRIC_MAPPING",
    "MODEL_MAPPING",
    "REWARD_MAPPING",
    "TEMPLATE_MAPPING",
    "TOOL_FORMAT_MAPPING",
    "TOOL_MAPPING",
    "ChatTemplate",
    "DatasetInfo",
    "DpoArguments",
    "EvaluateArguments",
    "ExportArguments",
    "GrpoArguments",
    "InferArguments",
    "KtoArguments",
    "LlmtuneError",
    "MergeArguments",
    "MetricInfo",
    "ModelInfo",
    "PpoArguments",
    "PtArguments",
    "RewardInfo",
    "RmArguments",
    "SftArguments",
    "SftResult",
    "TemplateInfo",
    "ToolFormat",
    "ToolInfo",
    "check",
    "dpo",
    "evaluate",
    "export",
    "get_dataset",
    "get_media_reader",
    "get_model_tokenizer",
    "get_template",
    "grpo",
    "infer",
    "kto",
    "merge",
    "plan",
    "ppo",
    "pt",
    "register_dataset",
    "register_metric",
    "register_model",
    "register_reward",
    "register_template",
    "register_tool",
    "register_tool_format",
    "rm",
    "sft",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmtune' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
