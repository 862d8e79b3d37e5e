"""chiasm plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from chiasm.cli.options import RecipeName


@dataclass(kw_only=True)
class Plan:
    """What a recipe will cost, before it runs; any field can be set as in train."""

    recipe: Positional[RecipeName]
    gpus: Annotated[str | None, arg(metavar="64xH100")] = None
    """How many of which: hours, cost, memory a GPU, what does not fit."""
    fit: bool = False
    """Propose sharding and micro-batch that fit, as flags for train."""
    mfu: float = 0.4
    """Model FLOPs utilisation: the share of the data sheet's peak that a run reaches."""
    price: float | None = None
    """US dollars an hour and GPU."""
    text_tokens: int = 128
    """Tokens of text a sample, half of them a reply."""
    image_size: tuple[int, int] = (640, 480)
    """Width and height of the images in pixels."""
    images_per_sample: int = 1
    """Images a sample."""
    plot: bool = False
    """Plot the learning rate of every stage, in the terminal and as an SVG."""
    out: Path | None = None
    """The SVG (default RECIPE-rates.svg)."""
    overrides: dict[str, str] = field(init=False, default_factory=dict)

    def __call__(self) -> None:
        from chiasm.plan.hardware import parse
        from chiasm.recipes.meta_model import Assumed
        from chiasm.recipes.planning import report
        from chiasm.recipes.rates import plan_command
        from chiasm.recipes.recipe import find, with_overrides

        chosen = with_overrides(find(self.recipe), self.overrides)
        plan_command(chosen, self.plot, self.out or Path(f"{Path(self.recipe).stem}-rates.svg"))
        cluster = parse(self.gpus) if self.gpus else None
        assumed = Assumed(self.text_tokens, self.image_size, self.images_per_sample)
        report(chosen, cluster, assumed, self.mfu, self.price, self.fit)
