"""Patches of other libraries that are more than one place's own."""
