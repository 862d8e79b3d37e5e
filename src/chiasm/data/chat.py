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

# LLaVA's conversations (2310.03744): images first, then words, after Vicuna's own opening.
VICUNA = (
    "{{ bos_token or '' }}A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "{% for m in messages %}{% if m.role == 'assistant' %}ASSISTANT: {{ m.content }}"
    "{{ eos_token }}{% else %}{% set said = m.content.split('<image>') %}"
    "{{ 'USER: ' if m.role == 'user' else '' }}{{ '<image>\n' * (said | length - 1) }}"
    "{{ said | map('trim') | select | join(' ') }} {% endif %}{% endfor %}"
    "{{ 'ASSISTANT:' if add_generation_prompt else '' }}"
)

# PaliGemma (2407.07726, section 3.2.1): one question, the beginning marked after its images.
PALIGEMMA = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{{ eos_token }}"
    "{% else %}{% set said = m.content.rsplit('<image>', 1) %}"
    "{{ said[0] + '<image>' if said | length == 2 else '' }}"
    "{{ bos_token if loop.first else '' }}{{ said[-1] }}\n{% endif %}{% endfor %}"
)

CHAT_TEMPLATES = {
    "plain": PLAIN,
    "chatml": CHATML,
    "gemma": GEMMA,
    "vicuna": VICUNA,
    "paligemma": PALIGEMMA,
}
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
