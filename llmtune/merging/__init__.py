"""Adapters merged into their base: streamed tensor by tensor, or in memory where a class cannot be streamed."""
