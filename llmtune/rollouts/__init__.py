"""Responses that a model samples for its own training, by one of several engines."""
