"""Training: the trainer, what is minimised, and what follows a run."""

from llmtune.compat.optional import import_libraries

import_libraries()
