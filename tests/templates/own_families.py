"""Chat templates of the shape of public ones, in few words, whose texts and prompts are hard to bring together."""

from __future__ import annotations

import copy
from typing import Any

from llmtune.models.tiny import tiny_folder
from llmtune.templates.lookup import get_template

CONTROL = {
    "nemo": ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
             "[TOOL_RESULTS]", "[/TOOL_RESULTS]"],
    "deepseek-v3": ["<bos>", "<eos>", "<User>", "<Assistant>", "<calls>", "</calls>", "<call>", "</call>", "<sep>"],
    "command": ["<bos>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
                "<|SYSTEM_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_ACTION|>", "<|END_ACTION|>",
                "<|START_THINKING|>", "<|END_THINKING|>"],
    "glm": ["<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>", "<|system|>"],
    "phi": ["<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"],
}  # fmt: skip
EOS = {"nemo": "</s>", "deepseek-v3": "<eos>", "command": "<|END_OF_TURN_TOKEN|>", "glm": "<|endoftext|>",
       "phi": "<|endoftext|>"}  # fmt: skip
PLAIN_ADDED = {"glm": ["<tool_call>", "</tool_call>", "<think>", "</think>"], "nemotron": ["<think>", "</think>"]}
"""Added tokens without the special flag."""

# The system prompt and the tools stand at the last question, and only while that waits for an answer.
NEMO = """{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}
{%- set turns = messages[1:] %}
{%- else %}{% set turns = messages %}{% endif -%}
{{- bos_token -}}
{%- set users = turns | selectattr('role', 'equalto', 'user') | list -%}
{%- for m in turns -%}
{%- if m['role'] == 'user' -%}
{%- if tools is not none and m == users[-1] -%}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{%- endif -%}
{%- if loop.last and system is defined -%}[INST]{{ system }}\n\n{{ m['content'] }}[/INST]
{%- else -%}[INST]{{ m['content'] }}[/INST]{%- endif -%}
{%- elif m['tool_calls'] is defined -%}[TOOL_CALLS][
{%- for call in m['tool_calls'] -%}
{%- if call['id'] | length != 9 -%}{{ raise_exception('ids have nine characters') }}{%- endif -%}
{{- (call['function'] | tojson)[:-1] + ', "id": "' + call['id'] + '"}' -}}{{- '' if loop.last else ', ' -}}
{%- endfor -%}]{{ eos_token }}
{%- elif m['role'] == 'assistant' -%}{{ m['content'] + eos_token }}
{%- elif m['role'] == 'tool' -%}
[TOOL_RESULTS]{"content": {{ m['content'] }}, "call_id": "{{ m['tool_call_id'] }}"}[/TOOL_RESULTS]
{%- endif -%}{%- endfor -%}"""

_CALLS = """{%- for call in m['tool_calls'] -%}{{- '<calls>' if loop.first -}}
<call>{{ call['function']['name'] + '<sep>' + call['function']['arguments'] + '</call>' }}
{%- endfor -%}</calls>{{ eos_token }}"""

# The prompt closes the thought, or opens it with `thinking`; answers have lost theirs; arguments are joined as text.
DEEPSEEK = (
    """{{ bos_token }}{%- set ns = namespace(asks=false, tool=false) -%}
{%- for m in messages -%}
{%- if m['role'] == 'system' -%}{{ m['content'] }}
{%- elif m['role'] == 'user' -%}{%- set ns.asks = true -%}{%- set ns.tool = false -%}<User>{{ m['content'] }}
{%- elif m['role'] == 'assistant' and m['tool_calls'] -%}
{%- if ns.asks -%}<Assistant></think>{%- endif -%}{%- set ns.asks = false -%}
{{ m['content'] }}"""
    + _CALLS
    + """
{%- elif m['role'] == 'assistant' -%}
{%- if ns.asks -%}<Assistant></think>{%- endif -%}{%- set ns.asks = false -%}
{{ m['content'].split('</think>', 1)[-1] + eos_token }}
{%- else -%}{%- set ns.asks = false -%}{%- set ns.tool = true -%}<output>{{ m['content'] }}</output>{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and ns.asks -%}<Assistant>{{ '<think>' if thinking else '</think>' }}{%- endif -%}"""
)

# The prompt opens the thought with a newline, an answer without one closes it at once.
NEMOTRON = """{%- for m in messages -%}
{%- if m['role'] == 'assistant' -%}
{%- set content = m['content'] -%}{%- set thought = m['reasoning_content'] | default('') -%}
{%- if '</think>' in content -%}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip() -%}
{%- set content = content.split('</think>')[-1].strip() -%}{%- endif -%}
{{- '<|im_start|>assistant\n' -}}
{%- set later = messages[loop.index:] | selectattr('role', 'equalto', 'user') | list -%}
{%- if thought and not later -%}{{ '<think>\n' + thought + '\n</think>\n' + content }}
{%- else -%}{{ '<think></think>' + content }}{%- endif -%}
{%- for call in m['tool_calls'] or [] -%}
{{- '\n<tool_call>\n<function=' + call['function']['name'] + '>\n' -}}
{%- for key, value in call['function']['arguments'].items() -%}
{{- '<parameter=' + key + '>\n' ~ value ~ '\n</parameter>\n' -}}{%- endfor -%}{{- '</function>\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- else -%}{{ '<|im_start|>' + ('user' if m['role'] == 'tool' else m['role']) + '\n' + m['content'] + '<|im_end|>\n' }}
{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' + ('<think></think>' if enable_thinking is false else '<think>\n') -}}{%- endif -%}"""

# A closing control token stands before the one that ends the turn; a call begins otherwise than a text.
COMMAND = """{{ bos_token }}{%- for m in messages -%}
{%- if m['role'] == 'assistant' -%}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>
{%- if m['tool_calls'] -%}<|START_THINKING|>{{ m['content'] }}<|END_THINKING|><|START_ACTION|>[
{%- for call in m['tool_calls'] -%}{"tool_name": "{{ call['function']['name'] }}", "parameters": {{
call['function']['arguments'] | tojson }}}{{- '' if loop.last else ', ' -}}{%- endfor -%}]<|END_ACTION|>
{%- else -%}<|START_RESPONSE|>{{ m['content'] }}<|END_RESPONSE|>{%- endif -%}<|END_OF_TURN_TOKEN|>
{%- else -%}<|START_OF_TURN_TOKEN|>{{ '<|USER_TOKEN|>' if m['role'] == 'user' else '<|SYSTEM_TOKEN|>' }}
{{- m['content'] }}<|END_OF_TURN_TOKEN|>{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{%- endif -%}"""

# Nothing ends an answer but the next turn's role.
GLM = """[gMASK]<sop>
{%- for tool in tools or [] -%}{{ '<|system|>\n' if loop.first else '\n' }}{{ tool | tojson }}{%- endfor -%}
{%- for m in messages -%}
{%- if m['role'] == 'user' -%}<|user|>\n{{ m['content'] }}
{%- elif m['role'] == 'system' -%}<|system|>\n{{ m['content'] }}
{%- elif m['role'] == 'tool' -%}{{ '<|observation|>' if messages[loop.index0 - 1]['role'] != 'tool' }}
<tool_response>\n{{ m['content'] }}\n</tool_response>
{%- else -%}<|assistant|>{%- set content = m['content'] -%}
{%- set thought = m['reasoning_content'] | default('') -%}
{%- if '</think>' in content -%}{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip() -%}
{%- set content = content.split('</think>')[-1] -%}{%- endif -%}
{{- '\n<think>' + thought.strip() + '</think>' }}{{ '\n' + content.strip() if content.strip() }}
{%- for call in m['tool_calls'] or [] -%}{{ '\n<tool_call>' + call['function']['name'] + '\n' }}
{%- for key, value in call['function']['arguments'].items() -%}
<arg_key>{{ key }}</arg_key>\n<arg_value>{{ value }}</arg_value>\n{%- endfor -%}</tool_call>{%- endfor -%}
{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{{ '\n<think></think>' if enable_thinking is false }}{%- endif -%}"""
GLM = GLM.replace("\\n", "\n")

# The whole text ends in an EOS token, every turn in another.
PHI = """{%- for m in messages -%}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- else -%}{{ eos_token }}{%- endif -%}"""

SOURCES = {
    "nemo": NEMO, "deepseek-v3": DEEPSEEK, "nemotron": NEMOTRON, "command": COMMAND, "glm": GLM, "phi": PHI,
}  # fmt: skip


def own_template(source: str, family: str = "", **options: Any) -> Any:
    """`auto` on the embedded tokenizer with a chat template, and with the control tokens of a family."""
    from transformers import AddedToken, AutoTokenizer

    tokenizer = copy.deepcopy(AutoTokenizer.from_pretrained(str(tiny_folder())))
    tokenizer.add_tokens([AddedToken(text, special=True) for text in CONTROL.get(family, [])], special_tokens=True)
    tokenizer.add_tokens([AddedToken(text, special=False) for text in PLAIN_ADDED.get(family, [])])
    if family in EOS:
        tokenizer.eos_token = EOS[family]
        tokenizer.bos_token = CONTROL[family][0]
    tokenizer.chat_template = source
    return get_template("auto", tokenizer, **options)


def family_template(family: str, **options: Any) -> Any:
    return own_template(SOURCES[family], family, **options)
