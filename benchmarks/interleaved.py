"""One request, one reply that mixes images and words, scored by a judge that saw neither.

The recipe unified_interleaved is trained on easy-VQA into --out (or taken from there) and asked
PROMPTS times "draw a red circle, then say what you drew, then draw it blue" with other colours and
shapes. A reply is right in form if it is image, words, image, and whole if besides the judge
(eval/judge.py, trained on real images) sees what was asked in both images and the words are
the caption. Also, from the same checkpoint: text -> image, image -> text and image + words ->
image, each over PROMPTS requests.

    python -m benchmarks.interleaved --out runs/interleaved      --steps 2 shows only that it runs

It times nothing, so it is no part of python -m benchmarks. Its last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL.Image

from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Sample, user
from chiasm.data import easy_vqa
from chiasm.data.objectives import CHANGES, DRAW_SAY_REDRAW
from chiasm.eval.judge import Judge, judge_accuracy, train_judge
from chiasm.generation.generator import Generator
from chiasm.hub.load import load
from chiasm.recipes.demo import ATTRIBUTES
from chiasm.recipes.recipe import find
from chiasm.recipes.run import run

PROMPTS = 100
SAMPLING = SamplingParams(1.0, top_p=0.95, guidance=1.5, max_tokens=32)
Reply = list[str | PIL.Image.Image]


@dataclass(frozen=True)
class Wish:
    """What is asked for: a shape in a colour, then in another."""

    color: str
    shape: str
    other: str

    @property
    def caption(self) -> str:
        return f"a {self.color} {self.shape}"


def wishes(count: int, seed: int) -> list[Wish]:
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        color, other = (str(c) for c in random.choice(easy_vqa.COLORS, 2, replace=False))
        made.append(Wish(color, str(random.choice(easy_vqa.SHAPES)), other))
    return made


def replies(respond: Generator, asked: Sequence[Sample], sampling: SamplingParams) -> list[Reply]:
    """Each reply as its runs of words and its images, in order."""
    made: list[Reply] = [[] for _ in asked]
    for number, piece in respond(asked, sampling):
        own = made[number]
        if piece.image is not None:
            own.append(piece.image)
        if piece.text and own and isinstance(own[-1], str):
            own[-1] += piece.text
        elif piece.text:
            own.append(piece.text)
    return made


def score_documents(judge: Judge, respond: Generator, asked: Sequence[Wish]) -> dict[str, float]:
    """Shares of all replies."""
    samples = [Sample((user(DRAW_SAY_REDRAW.format(w.caption, w.other)),)) for w in asked]
    made = replies(respond, samples, replace(SAMPLING, max_images=2))
    counts = dict.fromkeys(("form", "first", "said", "second", "whole"), 0)
    for wish, reply in zip(asked, made, strict=True):
        if [isinstance(part, str) for part in reply] != [False, True, False]:
            continue
        first, said, second = reply
        right = {
            "first": sees(judge, first, wish.color, wish.shape),
            "said": str(said).strip() == wish.caption,
            "second": sees(judge, second, wish.other, wish.shape),
        }
        counts["form"] += 1
        counts["whole"] += all(right.values())
        for name, value in right.items():
            counts[name] += value
    return {name: count / len(asked) for name, count in counts.items()}


def score_parts(
    judge: Judge, respond: Generator, asked: Sequence[Wish], shown: Sequence[Sample]
) -> dict[str, float]:
    """text -> image, image -> text, image + words -> image: shares that are right. shown:
    real images of known colour and shape, one a wish."""
    drawing = replace(SAMPLING, max_images=1, draw_first=True)
    drawn = replies(respond, [Sample((user(w.caption),)) for w in asked], drawing)
    read = replies(respond, [Sample((user(s.images[0]),)) for s in shown], SamplingParams())
    others = [
        w.other if w.other != s.meta["color"] else w.color
        for w, s in zip(asked, shown, strict=True)
    ]
    told = [
        Sample((user(s.images[0], CHANGES[0].format(color)),))
        for s, color in zip(shown, others, strict=True)
    ]
    changed = replies(respond, told, drawing)
    right = {
        "draw": [sees(judge, d[0], w.color, w.shape) for d, w in zip(drawn, asked, strict=True)],
        "read": [
            "".join(map(str, r)).strip() == s.meta["caption"]
            for r, s in zip(read, shown, strict=True)
        ],
        "change": [
            sees(judge, c[0], color, s.meta["shape"])
            for c, color, s in zip(changed, others, shown, strict=True)
        ],
    }
    return {name: sum(values) / len(values) for name, values in right.items()}


def sees(judge: Judge, image: object, color: str, shape: str) -> bool:
    assert isinstance(image, PIL.Image.Image)
    return judge.predict([image])[0] == {"color": color, "shape": shape}


def trained(out: Path, steps: int, tokenizer: str | None, data: str) -> Generator:
    """The model in `out`, trained there first if it is not."""
    if not (out / "model.json").exists():
        recipe = find("unified_interleaved")
        stages = recipe.stages
        if steps:
            stages = tuple(replace(s, steps=steps, batch_tokens=400, log_every=1) for s in stages)
        model = replace(recipe.model, tokenizer=tokenizer)
        run(replace(recipe, model=model, stages=stages, data=data), out, resume="auto")
    return Generator(*load(out), tokens=16384, precision="auto")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/interleaved"))
    parser.add_argument("--tokenizer", help="a trained image tokenizer (default: train one)")
    parser.add_argument("--steps", type=int, default=0, help="of every stage (default: its own)")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--judge-steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    respond = trained(given.out, given.steps, given.tokenizer, "easy-vqa")
    known = [s for s in easy_vqa.load("train") if s.meta["caption"]]
    judge = train_judge(known, ATTRIBUTES, steps=given.judge_steps, seed=given.seed + 1)
    unseen = [s for s in easy_vqa.load("test") if s.meta["caption"]]
    asked = wishes(given.prompts, given.seed)
    said = {
        **score_documents(judge, respond, asked),
        **score_parts(judge, respond, asked, unseen[: len(asked)]),
        "judge": judge_accuracy(judge, unseen)["joint"],
    }
    print(json.dumps({"name": "interleaved", "prompts": len(asked), **said}), flush=True)


if __name__ == "__main__":
    main()
