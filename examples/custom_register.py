"""Your own model, dataset and chat template, without changing llmtune.

From the command line, where the file is read before the flags are checked:

    llmtune sft --custom_register_path examples/custom_register.py --model_type my-model --dataset my-data

`llmtune infer --ckpt_dir ...` needs the same flag: code named by a checkpoint is never run. The same in Python:

    from llmtune import SftArguments, sft
    sft(SftArguments(custom_register_path="examples/custom_register.py", model_type="my-model", dataset=["my-data"]))

and a script that calls register_* itself, or imports a module that does, needs no custom_register_path.
"""

from __future__ import annotations

import os

from llmtune import register_dataset, register_model, register_template
from llmtune.models.tiny import tiny_folder

# A chat template. Prefix, then per turn: prompt, response, and chat_sep before the next prompt or suffix at the end.
# Contexts are texts; a list inside holds token ids or names of special tokens, such as the tokenizer's EOS token.
register_template(
    "my-template",
    prefix=["System: {{SYSTEM}}\n\n"],  # omitted where there is no system prompt
    prompt=["Question {{ROUND}}: {{QUERY}}\nAnswer:"],
    chat_sep=["\n\n"],
    suffix=[["eos_token_id"]],  # the end of a response, trainable
    default_system="Answer in one sentence.",
)

# A model: its folder, its template, and the default layers for LoRA. Any folder with a causal language model of
# transformers works; without MY_MODEL_FOLDER it is the one that ships with llmtune.
register_model(
    "my-model",
    model_id_or_path=os.environ.get("MY_MODEL_FOLDER") or str(tiny_folder()),
    template="my-template",
    lora_target_modules=["q_proj", "v_proj"],
)


# A dataset: a function without arguments. It runs when the dataset is used, and may return rows of any known
# format, a datasets.Dataset, or a pair (train, validation) of either.
@register_dataset("my-data")
def my_data() -> list[dict[str, str]]:
    numbers = range(1, 21)
    return [{"query": f"What is {a} times {b}?", "response": f"{a * b}."} for a in numbers for b in numbers]
