"""A model, a dataset and a chat template of one's own, without touching llmtune.

From the command line, where the file is read before the flags are checked:

    llmtune sft --custom_register_path examples/custom_register.py --model_type my-model --dataset my-data

`llmtune infer --ckpt_dir ...` asks for the same flag: no code is run because a checkpoint names it. The same in Python:

    from llmtune import SftArguments, sft
    sft(SftArguments(custom_register_path="examples/custom_register.py", model_type="my-model", dataset=["my-data"]))

and a script that calls register_* itself, or imports a module that does, needs no custom_register_path.
"""

from __future__ import annotations

import os

from llmtune import register_dataset, register_model, register_template
from llmtune.models.tiny import tiny_folder

# A chat template. Prefix, then per turn: prompt, answer, and chat_sep before the next prompt or suffix at the end.
# Contexts are texts; a list of names or numbers inside stands for tokens, such as the tokenizer's end of text.
register_template(
    "my-template",
    prefix=["System: {{SYSTEM}}\n\n"],  # left out where there is no system prompt
    prompt=["Question {{ROUND}}: {{QUERY}}\nAnswer:"],
    chat_sep=["\n\n"],
    suffix=[["eos_token_id"]],  # what the model learns to end with
    default_system="Answer in one sentence.",
)

# A model: its folder, its template, and the layers that LoRA adapts unless told otherwise. Any folder with a
# causal language model of transformers will do; without MY_MODEL_FOLDER it is the one that ships with llmtune.
register_model(
    "my-model",
    model_id_or_path=os.environ.get("MY_MODEL_FOLDER") or str(tiny_folder()),
    template="my-template",
    lora_target_modules=["q_proj", "v_proj"],
)


# A dataset: a function without arguments. It runs when the dataset is used, and may return rows of any known
# shape, a datasets.Dataset, or a pair (train, validation) of either.
@register_dataset("my-data")
def my_data() -> list[dict[str, str]]:
    numbers = range(1, 21)
    return [{"query": f"What is {a} times {b}?", "response": f"{a * b}."} for a in numbers for b in numbers]
