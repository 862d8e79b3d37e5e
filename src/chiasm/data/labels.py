"""Which words a model learns to say: what chat templates and masks make of a data set, to be seen
before a training that would teach nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.text import Text

from chiasm.core.batch import IGNORE, Encoded
from chiasm.core.errors import DataError
from chiasm.core.sample import Sample
from chiasm.data.processor import Processor

Kind = Literal["learnt", "read", "image"]
STYLES: dict[Kind, str] = {"learnt": "bold green", "read": "dim", "image": "yellow"}


@dataclass(frozen=True)
class Span:
    """A run of tokens that are learnt, only read, or of an image."""

    kind: Kind
    text: str
    tokens: int


def spans(encoded: Encoded, processor: Processor) -> list[Span]:
    """A sample as the model gets it, in the order of its tokens; special tokens are shown."""
    learnt = np.zeros(len(encoded), bool)
    learnt[1:] = encoded.labels[:-1] != IGNORE  # a target is the token after it
    image = _of_images(encoded.input_ids, processor)
    kinds = np.where(image, "image", np.where(learnt, "learnt", "read"))
    # Branches are questions of their own: a span does not run on from one into the next.
    keys = list(zip(kinds.tolist(), encoded.branch_ids.tolist(), strict=True))
    found, start = [], 0
    for (kind, _), run in groupby(keys):
        count = len(list(run))
        ids = encoded.input_ids[start : start + count].tolist()
        found.append(Span(kind, _words(ids, kind, processor), count))
        start += count
    return found


def lint(
    samples: Sequence[Sample],
    processor: Processor,
    console: Console,
    show: int = 5,
    unread: Sequence[str] = (),
) -> None:
    """Print the first `show` samples with their learnt words in colour (in brackets where there is
    no colour), a line for every sample that teaches nothing and every record in `unread`, which
    could not be read, and the totals. DataError if there is any such sample or record."""
    tokens = learnt = shown = 0
    bad = list(unread)
    for problem in unread:
        console.print(Text(problem, "red"), soft_wrap=True)
    for sample, found, problem in check(samples, processor):
        tokens += sum(span.tokens for span in found)
        learnt += sum(span.tokens for span in found if span.kind == "learnt")
        if problem:
            bad.append(problem)
            console.print(Text(problem, "red"), soft_wrap=True)
        elif shown < show:
            shown += 1
            console.print(Text(f"— {sample.where}", "bold"))
            console.print(_painted(found, console), soft_wrap=True)
    share = learnt / max(1, tokens)
    console.print(
        f"{len(samples)} samples, {tokens:,} tokens, of which {learnt:,} ({share:.1%}) are learnt",
        highlight=False,
    )
    if bad:
        raise DataError(
            f"{len(bad)} of {len(samples) + len(unread)} samples teach nothing or cannot be used; "
            "mend or remove them (they are listed above)"
        )


def check(
    samples: Sequence[Sample], processor: Processor
) -> Iterator[tuple[Sample, list[Span], str | None]]:
    """Each sample with its spans, or none and what is the matter with it. Learning nothing but when
    to stop, from empty replies, is a matter too."""
    for sample in samples:
        try:
            encoded = processor.encode(sample)
        except DataError as error:
            yield sample, [], str(error)
            continue
        found = spans(encoded, processor)
        ids = encoded.labels[encoded.labels != IGNORE]
        ids = ids[~_of_images(ids, processor)].tolist()
        drawn = any(span.kind == "image" for span in found) and processor.supervise_images
        if not drawn and not processor.template.decode(ids).strip():
            yield sample, found, f"{sample.where}: its replies are empty; add words or remove it"
            continue
        yield sample, found, None


def _of_images(ids: np.ndarray, processor: Processor) -> np.ndarray:
    """[T] bool: ids that stand for images in either route."""
    vocabulary = processor.codec.vocabulary
    if vocabulary is None:
        return ids == processor.template.marker
    around = np.isin(ids, [vocabulary.begin_image, vocabulary.end_image])
    return around | (ids >= vocabulary.first_code)


def _words(ids: list[int], kind: str, processor: Processor) -> str:
    if kind == "image":
        return f"[image of {len(ids)} tokens]"
    tokenizer: Any = processor.template.tokenizer  # type: ignore[attr-defined]
    return tokenizer.decode(ids, skip_special_tokens=False)


def _painted(found: list[Span], console: Console) -> Text:
    text = Text()
    for span in found:
        bare = console.color_system is None and span.kind == "learnt"
        text.append(f"⟦{span.text}⟧" if bare else span.text, STYLES[span.kind])
    return text
