"""From encoded rows to batches: the store, packing, order and collation. Below planning and training."""

from llmtune.compat.optional import import_libraries

import_libraries()
