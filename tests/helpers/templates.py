"""Chat templates in the shapes that today's bases have, each written for these tests."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A template and what is true of it.

    Attributes:
        closer: the special token that closes an assistant's turn; "" if nothing does, so that an eos is appended.
        appended: whether the template does not write what closes the last answer.
        system: whether it takes a system turn.
        several: whether all answers of a conversation are learnt, and not the last alone.
        between: what stands between the cue and an answer's text and is learnt with it.
    """

    text: str
    closer: str = "<|im_end|>"
    appended: bool = False
    system: bool = True
    several: bool = True
    between: str = ""


CHATML = """
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

CHATML_DEFAULT = """
{%- if messages[0].role != 'system' %}
{{- '<|im_start|>system\\nYou are a helpful robot.<|im_end|>\\n' }}
{%- endif %}""" + CHATML.lstrip("\n")

NO_SYSTEM = """
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'system' %}{{ raise_exception('there is no system role') }}
{%- elif message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}
{%- else %}{{ ' ' + message.content + eos_token }}
{%- endif %}
{%- endfor %}"""

MERGED_SYSTEM = """
{{- bos_token }}
{%- set first = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' %}
{%- for message in (messages[1:] if first else messages) %}
{{- '<|im_start|>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
{{- (first if loop.first else '') + message.content | trim + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>model\\n' }}{% endif %}"""

TRAILING_EOS = CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"

TRIMMING = """
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

ALTERNATING = """
{%- set turns = messages[1:] if messages[0].role == 'system' else messages %}
{%- for message in turns %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('turns must go\\nuser, assistant, user, assistant') }}
{%- endif %}
{%- endfor %}""" + CHATML.lstrip("\n")

# nothing but text between the turns
NO_SPECIAL = """
{%- for message in messages %}
{{- '### ' + message.role + ':\\n' + message.content + '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### assistant:\\n' }}{% endif %}"""

# the next turn's opening closes an answer, as its base's list of ends says
OPENED_ONLY = """
{%- for message in messages %}
{{- '<|bot|>' if message.role == 'assistant' else '<|user|>' }}{{ message.content }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|bot|>' }}{% endif %}"""

# earlier turns are closed in another way than the last one
OTHER_CLOSER = """
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{{- '</s>' if loop.last and message.role == 'assistant' else '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# only a turn that is not the last is closed
OPEN_LAST = """
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- if not loop.last or message.role != 'assistant' %}{{ '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# thoughts of earlier turns are dropped, and the last one has a block of them even if it is empty
REASONING = """
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- set said = message.content.split('</think>')[-1].lstrip('\\n') %}
{%- set thought = message.reasoning_content or '' %}
{%- if '</think>' in message.content %}
{%- set thought = message.content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- endif %}
{%- if message.role == 'assistant' and loop.last %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}
{{- (said if message.role == 'assistant' else message.content) + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# the cue opens a thought, and so does every finished last turn
OPENED_THOUGHT = REASONING.replace(
    "{{ '<|im_start|>assistant\\n' }}{% endif %}", "{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)

# the cue opens a thought that no finished turn has
LOST_THOUGHT = """
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '<|user|>' + message.content }}
{%- elif message.role == 'system' %}{{ message.content }}
{%- else %}{{ '<|bot|>' + message.content.split('</think>')[-1] | trim }}
{%- for call in message.tool_calls or [] %}{{ '<tool_call>' + call.function.name + '</tool_call>' }}{% endfor %}
{{- '<|im_end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|bot|><think>\\n' }}{% endif %}"""

MARKED = """
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
{{- '\\n' }}
{%- else %}{{ message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

MARKED_HEADER = """
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- generation %}{{ '<|im_start|>assistant\\n' + message.content + '<|im_end|>\\n' }}{% endgeneration %}
{%- else %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# the word stands in the template, and no turn of the assistant's is within it
MARKED_NOTHING = CHATML + "{% if messages | length > 99 %}{% generation %}{{ 'x' }}{% endgeneration %}{% endif %}"

MARKED_EMPTY = CHATML + "{% generation %}{{ '' }}{% endgeneration %}"

MARKED_LAST = """
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' and loop.last %}
{%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ message.content + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

DATED = """
{%- set today = strftime_now('%d %b %Y') %}
{{- '<|im_start|>system\\nIt is the ' + today + '.' }}
{%- if messages[0].role == 'system' %}{{ ' ' + messages[0].content }}{% endif %}
{{- '<|im_end|>\\n' }}
{%- for message in messages if message.role != 'system' %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

TOOLS = """
{%- set own = messages[0].content if messages[0].role == 'system' else '' %}
{%- if tools or own %}
{{- '<|im_start|>system\\n' + own }}
{%- if tools %}{{ '\\n# Tools' }}
{%- for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages if message.role != 'system' %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>' + message.content + '</tool_response><|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

TOOLS_FIRST = TOOLS.replace(
    "{{- '<|im_start|>system\\n' + own }}\n{%- if tools %}{{ '\\n# Tools' }}",
    "{{- '<|im_start|>system\\n' }}\n{%- if tools %}{{ '# Tools' }}",
).replace(
    "{%- endif %}\n{{- '<|im_end|>\\n' }}\n{%- endif %}", "{%- endif %}\n{{- own + '<|im_end|>\\n' }}\n{%- endif %}", 1
)

SHAPES = {
    "chatml": Shape(CHATML),
    "default system": Shape(CHATML_DEFAULT),
    "no system": Shape(NO_SYSTEM, "</s>", system=False),
    "merged system": Shape(MERGED_SYSTEM),
    "trailing eos": Shape(TRAILING_EOS),
    "trimming": Shape(TRIMMING),
    "alternating": Shape(ALTERNATING),
    "no special": Shape(NO_SPECIAL, "", appended=True),
    "opened only": Shape(OPENED_ONLY, "<|user|>", appended=True),
    "other closer": Shape(OTHER_CLOSER, "</s>", several=False),
    "open last": Shape(OPEN_LAST, appended=True),
    "reasoning": Shape(REASONING, several=False, between="<think>\n\n</think>\n\n"),
    "opened thought": Shape(OPENED_THOUGHT, several=False, between="\n</think>\n\n"),
    "marked": Shape(MARKED),
    "marked header": Shape(MARKED_HEADER),
    "marked nothing": Shape(MARKED_NOTHING),
    "marked empty": Shape(MARKED_EMPTY),
    "marked last": Shape(MARKED_LAST, several=False),
    "dated": Shape(DATED),
    "tools": Shape(TOOLS),
    "tools first": Shape(TOOLS_FIRST),
}
