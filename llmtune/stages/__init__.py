"""The stages of training, a short outline each: samples, model, objective."""

from llmtune.compat.optional import import_libraries

import_libraries()
