"""What a reply finally says, apart from what its model thought before."""

from __future__ import annotations

import re

_NAMES = r"(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad)"
_BLOCK = re.compile(rf"<{_NAMES}>(?:(?!<{_NAMES}>).)*?</{_NAMES}>|◁think▷.*?◁/think▷", re.I | re.S)
_UNTIL_CLOSED = re.compile(rf"^.*(?:</{_NAMES}>|◁/think▷)", re.I | re.S)
_NEVER_CLOSED = re.compile(rf"(?:<{_NAMES}>|◁think▷).*$", re.I | re.S)


def without_thinking(reply: str) -> str:
    """The reply less what stands in thinking tags (`<think>`, `<thinking>`, `<reasoning>`, ...).

    A closing tag alone ends thinking that began in the prompt; an opening tag alone is a reply that
    was cut off while thinking, so nothing behind it was said.
    """
    if "<" not in reply and "◁" not in reply:
        return reply
    said = _BLOCK.sub("", reply)
    said = _UNTIL_CLOSED.sub("", said)
    said = _NEVER_CLOSED.sub("", said)
    return said if said == reply else said.strip()
