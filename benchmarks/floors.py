"""The demo's unified route with another quantizer, objective or data: does it reach the floors?

    python -m benchmarks.floors --quantizer vq --undrawn 4     VQ-EMA; 4 of 24 captions never drawn
    python -m benchmarks.floors --masked                       masked diffusion, drawing only

Trained, asked and judged as `chiasm demo` does (recipes/demo.py), on easy-VQA. --masked trains no
questions, only captions and drawings, 1,500 steps of them: to draw in any order is more to learn.
--undrawn: so many captions, spread over colours and shapes,
whose images are answered about and described, but never drawn in training. A run that was stopped
goes on where it was. It times nothing, so it is no part of python -m benchmarks. Its last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from chiasm.core.progress import Bar
from chiasm.data import easy_vqa
from chiasm.hub.load import load
from chiasm.recipes.demo import Settings, answers, draw_and_judge
from chiasm.recipes.jobs.tokenizer import reconstruction
from chiasm.recipes.recipe import Recipe
from chiasm.recipes.run import run
from chiasm.recipes.unified_nano import stage
from chiasm.unified.config import FSQConfig, LFQConfig, QuantizerConfig, VQConfig

QUANTIZERS: dict[str, QuantizerConfig] = {
    "fsq": FSQConfig(),
    "vq": VQConfig(),
    "lfq": LFQConfig(),
}
DRAWING = tuple(
    replace(part, save_every=50)
    for part in (
        stage("draw", 300, "text_to_image", warmup=0.05),
        stage("perceive", 100, "caption+caption+caption+text_to_image"),
        stage("settle", 640, "caption+text_to_image+text_to_image+text_to_image"),
        stage("cool", 460, "caption+text_to_image+text_to_image+text_to_image", "linear"),
    )
)
SPOT = stage("spot", 150, "word_match")
"""Instead of matching, for codes of a codebook: whole captions are compared too late (LOG.md)."""

PASSES = 32
"""Of masked diffusion over an image of 64 codes."""


def undrawn(count: int) -> tuple[str, ...]:
    """Captions of as many different colours and shapes as there can be."""
    colors, shapes = easy_vqa.COLORS, easy_vqa.SHAPES
    return tuple(f"a {colors[2 * i % len(colors)]} {shapes[i % len(shapes)]}" for i in range(count))


def share(score: dict[str, float], captions: tuple[str, ...], inside: bool) -> float | None:
    """Mean over the captions that are (not) among these; all have as many drawings."""
    own = [value for caption, value in score.items() if (caption in captions) == inside]
    return sum(own) / len(own) if own else None


def measured(
    folder: Path, settings: Settings, tokenizer: Recipe, unified: Recipe, asked: bool
) -> dict[str, Any]:
    """Train what is not trained yet in a folder, and score it."""
    run(tokenizer, folder / "tokenizer", resume="auto")
    test = easy_vqa.load("test")[: settings.test_images]
    quality = reconstruction(*load(folder / "tokenizer"), test)
    print(json.dumps(quality), flush=True)
    model = replace(unified.model, tokenizer=str(folder / "tokenizer"))  # type: ignore[arg-type]
    ledger = run(replace(unified, model=model), folder / "unified", resume="auto")
    judge, drawings = draw_and_judge(folder, settings, 0, Bar, PASSES)
    print(json.dumps({"judge": judge, **drawings}), flush=True)
    answered = {}
    if asked:
        limit = settings.unified_questions
        answered = answers(folder, "unified", settings, limit, 0, ledger, Bar)
    return {**quality, **drawings, **answered}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quantizer", choices=QUANTIZERS, default="fsq")
    parser.add_argument("--masked", action="store_true")
    parser.add_argument("--undrawn", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/floors"))
    parser.add_argument("--fast", action="store_true", help="only show that it runs")
    given = parser.parse_args()
    settings, kept_away = Settings(given.fast), undrawn(given.undrawn)
    tokenizer, unified = settings.recipe("tokenizer"), settings.recipe("unified_nano")
    codes: Any = tokenizer.model
    tokenizer = replace(tokenizer, model=replace(codes, quantizer=QUANTIZERS[given.quantizer]))
    if given.quantizer == "vq" and not given.fast:
        stages = tuple(SPOT if s.name == "itm" else s for s in unified.stages)
        unified = replace(unified, stages=stages)
    model: Any = replace(unified.model, held_out_captions=kept_away)  # type: ignore[arg-type]
    if given.masked:
        model = replace(model, image_objective="masked", rope="2d")
        stages = unified.stages[: len(DRAWING)] if given.fast else DRAWING
        unified = replace(unified, stages=stages)
    unified = replace(unified, model=model)
    found = measured(given.out, settings, tokenizer, unified, not given.masked)
    each = found["t2i_per_caption"]
    said = {
        "drawn_joint": share(each, kept_away, False),
        "undrawn_joint": share(each, kept_away, True),
    }
    print(json.dumps({"name": "floors", "undrawn": kept_away, **said, **found}), flush=True)


if __name__ == "__main__":
    main()
