"""The metrics that ship with llmtune."""

from __future__ import annotations

from llmtune.metrics.info import MetricInfo, register_metric

__all__: list[str] = []

TEXT = "llmtune.evaluation.scores:text_scores"

register_metric("loss", MetricInfo(kind="loss", description="Loss, perplexity and token accuracy on trainable tokens."))
register_metric(
    "rouge",
    MetricInfo(function=TEXT, names=("rouge-1", "rouge-2", "rouge-l"), description="ROUGE-1, -2, -L over words."),
)
register_metric("bleu", MetricInfo(function=TEXT, names=("bleu-4",), description="BLEU-4 over characters."))
register_metric(
    "exact_match",
    MetricInfo(function=TEXT, names=("exact_match",), description="Share of responses equal to the reference."),
)
register_metric(
    "choice",
    MetricInfo(kind="choice", description="Accuracy on choice questions, by the likelihood of each choice."),
)
