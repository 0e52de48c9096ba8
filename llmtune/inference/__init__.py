"""Generation with a checkpoint: one engine for chats, datasets, servers and rollouts."""

from llmtune.compat.optional import import_libraries

import_libraries()
