"""METRIC_MAPPING: how generations are scored against the references of the data."""
