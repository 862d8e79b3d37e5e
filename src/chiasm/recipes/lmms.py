"""Our models inside lmms-eval (0.7.3): lmms_eval --model chiasm --model_args run=runs/mllm-smol

lmms-eval finds MANIFEST through the entry point `chiasm` of its group `lmms_eval.models`. It needs
torchvision, so it is nobody's dependency here; nothing but it imports this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts  # type: ignore
from lmms_eval.api.model import lmms  # type: ignore
from lmms_eval.models.registry_v2 import ModelManifest  # type: ignore

from chiasm.core.errors import DataError
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Image, Message, Part, Sample, Text, Video, assistant
from chiasm.generation.likelihood import reply_log_likelihood
from chiasm.recipes.chat import responder

MANIFEST = ModelManifest(model_id="chiasm", chat_class_path="chiasm.recipes.lmms.Chiasm")


class Chiasm(lmms):
    """A run of either route. run: its folder. max_new_tokens: of tasks that do not say."""

    is_simple = False

    def __init__(
        self,
        run: str,
        batch_size: int | str = 64,
        max_new_tokens: int = 128,
        device: str | None = None,
        **ignored: Any,
    ):
        super().__init__()
        self.respond = responder(Path(run), device)
        self.max_new_tokens = max_new_tokens
        self.batch_size = 64 if batch_size == "auto" else int(batch_size)

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Chat requests' args are (context, messages of a document, settings, document, task,
        split). Raises DataError for a sample that cannot be asked: never an empty answer."""
        replies: list[GenerationResult] = []
        for batch in _runs([r.args for r in requests], self.batch_size):
            settings = dict(batch[0][2])
            asked = [
                to_sample(messages(self.task_dict[task][split][doc]), f"{task} {doc}")
                for _, messages, _, doc, task, split in batch
            ]
            texts = [""] * len(asked)
            for index, piece in self.respond(asked, self._sampling(settings)):
                texts[index] += piece.text
            for text, args in zip(texts, batch, strict=True):
                for stop in _stops(settings):
                    text = text.split(stop)[0]
                replies.append(GenerationResult(text, TokenCounts()))
                self.cache_hook.add_partial("generate_until", (args[0], settings), text)
        return replies

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(-log p(continuation | context and images), whether greedy decoding says it). The sign
        is the harness's: its multiple choice takes the least ("we return the actual loss",
        api/task.py). args: (context, continuation or a function of the document, function of the
        document that gives its images, document, task, split)."""
        found = []
        for context, target, visuals, doc, task, split in (r.args for r in requests):
            row = self.task_dict[task][split][doc]
            wanted = str(target(row) if callable(target) else target).strip()
            if not wanted:
                raise DataError(f"{task} {doc}: an empty continuation has no likelihood")
            images = [{"type": "image", "url": p} for p in visuals(row) or ()]
            content = [*images, {"type": "text", "text": context}]
            said = to_sample([{"role": "user", "content": content}], f"{task} {doc}")
            whole = said.replace(turns=(*said.turns, assistant(wanted)))
            spoken = "".join(piece.text for _, piece in self.respond([said], SamplingParams()))
            loss = -reply_log_likelihood(self.respond, [whole])[0]
            found.append((loss, spoken.strip() == wanted))
        return found

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError(
            "chiasm answers tasks of one round; use the OpenAI endpoint (chiasm serve) for others"
        )

    def _sampling(self, settings: dict) -> SamplingParams:
        temperature = float(settings.get("temperature") or 0.0)
        if settings.get("do_sample") is False:
            temperature = 0.0
        top_p = settings.get("top_p")
        longest = int(settings.get("max_new_tokens") or self.max_new_tokens)
        return SamplingParams(
            temperature, top_p=1.0 if top_p is None else top_p, max_tokens=longest
        )


def to_sample(messages: Sequence[dict], where: str) -> Sample:
    """lmms-eval's chat messages ({"role", "content": [{"type": "image", "url": image}, ...]}) as
    a sample. Raises DataError for content that is neither text, image nor video."""
    turns = tuple(
        Message(m["role"], tuple(_part(c, where) for c in m["content"])) for m in messages
    )
    return Sample(turns, where, "lmms-eval", meta={"where": where})


def _part(content: dict, where: str) -> Part:
    kind = content["type"]
    if kind == "text":
        return Text(content["text"])
    source = content.get("url")
    if kind == "image" and isinstance(source, (str, Path, PIL.Image.Image)):
        return Image(Path(source) if isinstance(source, str) else source, where)
    if kind == "video" and isinstance(source, (str, Path)):
        return Video(Path(source), where)
    raise DataError(f"{where}: content of type '{kind}' is not something this model can read")


def _runs(arguments: list[tuple], size: int) -> Iterator[list[tuple]]:
    """Neighbours with equal settings, at most `size` together."""
    batch: list[tuple] = []
    for args in arguments:
        if batch and (len(batch) == size or args[2] != batch[0][2]):
            yield batch
            batch = []
        batch.append(args)
    if batch:
        yield batch


def _stops(settings: dict) -> list[str]:
    until = settings.get("until") or []
    return [until] if isinstance(until, str) else [stop for stop in until if stop]
