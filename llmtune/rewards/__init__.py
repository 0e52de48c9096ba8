"""Reward functions of online stages: REWARD_MAPPING, specs of `--rewards`, and how functions are called."""
