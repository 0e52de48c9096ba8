"""Configuration files of other tools, read as flags of ours."""
