"""Python functions that a model may call while it generates rollouts: TOOL_MAPPING, specs and calls."""
