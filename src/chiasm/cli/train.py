"""chiasm train."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional

from chiasm.cli.options import DeviceOptions, NewFolder, RecipeName


@dataclass(kw_only=True)
class Train(DeviceOptions):
    """Train a recipe; any field of it can be set: --stages.0.steps 500 --model.hidden_size 384."""

    recipe: Positional[RecipeName]
    out: NewFolder | None = None
    """Folder of the run (default runs/RECIPE)."""
    data: str | None = None
    """"easy-vqa", hf:ORG/NAME, or a file or folder in a known format (see data import), after
    "FORMAT:" where it is not detected; a URL of .tar or .jsonl files; several of them with weights,
    "a.jsonl=2,b=1", or a mixture file (see docs/data.md)."""
    init: str | None = None
    """Begin with this model's weights, tokenizer and image processing: a run, a published or
    exported checkpoint, or an adapter of peft (a folder, or OWNER/NAME of the hub). The recipe says
    what is trained and how; --model.X sets X of that model anew."""
    resume: Literal["no", "yes", "auto"] = "no"
    """Continue from the newest complete checkpoint in the folder (--resume alone); "auto" starts,
    continues or leaves alone what is finished, as a restarted job wants it."""
    show: bool = False
    """Print the recipe's fields with their values and stop."""
    check: bool = True
    """Warn where images lose their text or details at the size the model sees, and at the end ask
    200 held-out questions with their own and with other images: does the model use them?
    (image_use.json)"""
    overrides: dict[str, str] = field(init=False, default_factory=dict)

    def __call__(self) -> None:
        from chiasm.core.config import leaves
        from chiasm.recipes.recipe import find, run_folder, with_overrides

        given = {"data": self.data, "init": self.init}
        settings = {name: value for name, value in given.items() if value is not None}
        chosen = with_overrides(find(self.recipe), {**self.overrides, **settings})
        if self.show:
            for name, value in leaves(chosen).items():
                Console().print(f"--{name} [bold]{escape(str(value))}[/bold]", highlight=False)
            return
        folder = self.out or run_folder(self.recipe)
        self.use_device()
        from chiasm.recipes.run import run

        cost = run(chosen, folder, self.resume, check=self.check)
        Console().print(f"{folder}: {cost.seconds:.0f} s, {cost.flops:.3g} FLOPs")
