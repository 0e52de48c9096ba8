"""What becomes of a checkpoint: merged, quantised, converted, pushed. Each writes a folder that its target loads."""
