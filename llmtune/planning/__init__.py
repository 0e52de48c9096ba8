"""Cost of a run, from config.json only: parameters, memory by part, FLOPs, steps, disk."""
