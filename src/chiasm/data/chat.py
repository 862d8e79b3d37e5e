"""Chat templates for language models that come without one."""

from __future__ import annotations

from pathlib import Path

from chiasm.core.config import nearest
from chiasm.core.errors import ConfigError

PLAIN = (
    "{{ bos_token or '' }}{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}"
    "{{ eos_token if m.role == 'assistant' else '' }}\n{% endfor %}"
    "{{ 'Assistant:' if add_generation_prompt else '' }}"
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' if add_generation_prompt else '' }}"
)

# Gemma knows no system: its words open the user's turn.
GEMMA = (
    "{{ bos_token }}{% set said = namespace(system='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set said.system = m.content + '\n\n' %}{% else %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
    "{{ said.system }}{{ m.content }}<end_of_turn>\n{% set said.system = '' %}{% endif %}"
    "{% endfor %}{{ '<start_of_turn>model\n' if add_generation_prompt else '' }}"
)

CHAT_TEMPLATES = {"plain": PLAIN, "chatml": CHATML, "gemma": GEMMA}
"""plain works with any tokenizer that has an end of sequence; the others need their tokens."""


def chat_template(source: str) -> str:
    """The Jinja text of a name in CHAT_TEMPLATES, or of a file. Raises ConfigError for neither."""
    if source in CHAT_TEMPLATES:
        return CHAT_TEMPLATES[source]
    path = Path(source).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"model.chat_template: '{source}' is neither a file nor one of "
            f"{', '.join(CHAT_TEMPLATES)}{nearest(source, CHAT_TEMPLATES)}"
        )
    return path.read_text()
