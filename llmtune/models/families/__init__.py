"""The models that ship with llmtune; importing this package registers them, in this order.

Where a folder's files leave several entries open, `models.identify` takes the template of the first: Llama and Mistral
come before what was made from them.
"""

from llmtune.models.families import base, llama, others, qwen  # noqa: F401
