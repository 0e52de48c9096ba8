"""DeepSeek's chat templates. R1's prompt opens the thought; earlier responses have no thoughts."""

from llmtune.templates.families.thoughts import continue_thought, write_continued_thought
from llmtune.templates.info import register_template

BOS = ["bos_token_id"]
EOS = ["eos_token_id"]

register_template(
    "deepseek-v2",
    prefix=[BOS, "{{SYSTEM}}\n\n"],
    prompt=["User: {{QUERY}}\n\nAssistant:"],
    chat_sep=[EOS],
    suffix=[EOS],
    answer_format=" {{ANSWER}}",
    source="chat_template of deepseek-ai/DeepSeek-V2-Lite-Chat's tokenizer_config.json, as llama.cpp's tests have it",
)
register_template(
    "deepseek-r1",
    prefix=[BOS, "{{SYSTEM}}"],
    prompt=["<｜User｜>{{QUERY}}<｜Assistant｜>"],
    answer_prefix="<think>\n",
    chat_sep=["<｜end▁of▁sentence｜>"],
    suffix=["<｜end▁of▁sentence｜>"],
    format_answer=continue_thought,
    write_thought=write_continued_thought,
    keeps_prefixes=False,
    source="chat_template of deepseek-ai/DeepSeek-R1-Distill-Qwen-32B's tokenizer_config.json",
)
