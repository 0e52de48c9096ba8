"""How good a checkpoint is: loss, scores of its answers, choice questions, benchmarks; several side by side."""
