"""Evaluation of checkpoints: loss, scores of generations, choice questions, benchmarks; several side by side."""
