"""The reference's templates of October 2023, for checkpoints that were trained with them.

Only those whose text differs from the corrected ones.
"""

from llmtune.templates.families.reference import BOS, EOS, SOURCE
from llmtune.templates.info import DEFAULT_SYSTEM, register_template

register_template(
    "chatml-2023",
    prefix=["<|im_start|>system\n{{SYSTEM}}<|im_end|>\n"],
    prompt=["<|im_start|>user\n{{QUERY}}<|im_end|>\n<|im_start|>assistant\n"],
    chat_sep=["<|im_end|>\n"],
    suffix=["<|im_end|><|endoftext|>"],
    default_system=DEFAULT_SYSTEM,
    source=SOURCE,
)
register_template(
    "llama-2023",
    prefix=[BOS, "[INST] <<SYS>>\n{{SYSTEM}}\n<</SYS>>\n\n"],
    prompt=["{{QUERY}} [/INST] "],
    chat_sep=[" ", ["eos_token_id", "bos_token_id"], "[INST] "],
    suffix=[EOS],
    default_system=DEFAULT_SYSTEM,
    source=SOURCE,
)
register_template(
    "openbuddy-2023",
    prefix=["{{SYSTEM}}\n\n"],
    prompt=["User: {{QUERY}}\nAssistant: "],
    chat_sep=["\n"],
    suffix=[EOS],
    default_system=DEFAULT_SYSTEM,
    source=SOURCE,
)
register_template(
    "internlm-2023",
    prefix=["<s>"],
    prompt=["<|User|>:{{QUERY}}<eoh>\n<|Bot|>:"],
    chat_sep=["<eoa>\n"],
    suffix=["<eoa></s>"],
    source=SOURCE,
)
