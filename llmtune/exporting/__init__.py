"""Export of checkpoints: merge, quantise, convert, push. Each writes a folder that its target loads."""
