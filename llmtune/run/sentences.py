"""The state of a run in one sentence with its next step, in English and Chinese."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from llmtune.run.found import FoundRun

Language = Literal["en", "zh"]

SENTENCES: dict[Language, dict[str, str]] = {
    "en": {
        "queued": "Waiting in the queue.",
        "preparing": "Checking settings and fetching files.",
        "encoding": "Reading and encoding the data.",
        "loading": "Loading the model.",
        "training": "Training: step {step} of {max_steps}, {eta} left.",
        "evaluating": "Evaluating at step {step} of {max_steps}.",
        "saving": "Saving a checkpoint at step {step} of {max_steps}.",
        "stopping": "Saving a checkpoint, then stopping.",
        "finished": "Finished after {step} steps. Next: chat with {checkpoint}.",
        "stopped": "Stopped at step {step} of {max_steps}.",
        "failed": "Failed at step {step} of {max_steps}: {error}",
        "resume": "Resume it from {last}.",
        "again": "It has no checkpoint to resume from: start it anew.",
        "unknown": "an unknown time",
    },
    "zh": {
        "queued": "正在排队等待。",
        "preparing": "正在检查设置并获取文件。",
        "encoding": "正在读取并编码数据。",
        "loading": "正在加载模型。",
        "training": "训练中：第 {step} 步，共 {max_steps} 步，剩余 {eta}。",
        "evaluating": "正在评估，第 {step} 步，共 {max_steps} 步。",
        "saving": "正在保存检查点，第 {step} 步，共 {max_steps} 步。",
        "stopping": "正在保存检查点，随后停止。",
        "finished": "已完成，共 {step} 步。下一步：与 {checkpoint} 对话。",
        "stopped": "已停止于第 {step} 步，共 {max_steps} 步。",
        "failed": "失败于第 {step} 步，共 {max_steps} 步：{error}",
        "resume": "可从 {last} 继续训练。",
        "again": "没有可继续的检查点：请重新开始。",
        "unknown": "未知时间",
    },
}


def sentence(run: FoundRun, language: Language = "en") -> str:
    """Return the state of a run and its next step."""
    status, texts = run.status, SENTENCES[language]
    left = status.eta_seconds
    values = {
        "step": f"{status.step:,}",
        "max_steps": f"{status.max_steps:,}",
        "eta": texts["unknown"] if left is None else str(timedelta(seconds=round(left))),
        "checkpoint": status.best_checkpoint or status.last_checkpoint or "-",
        "last": status.last_checkpoint,
        "error": status.error,
    }
    text = texts[status.state].format(**values)
    if status.state in ("stopped", "failed"):
        text += " " + texts["resume" if status.resumable else "again"].format(**values)
    return text
