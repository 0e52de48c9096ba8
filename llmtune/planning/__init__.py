"""What a run will cost, told from the configuration alone: parameters, memory by part, FLOPs, steps, disk."""
