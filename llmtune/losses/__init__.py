"""Losses of preference stages: LOSS_MAPPING, and the functions behind its keys."""
