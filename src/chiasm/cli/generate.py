"""chiasm generate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from chiasm.cli.options import DeviceOptions, Image
from chiasm.core.errors import ConfigError


@dataclass(kw_only=True)
class Generate(DeviceOptions):
    """Generate images from text with a unified model, or edit one (--edit)."""

    run: Positional[Annotated[Path, arg(metavar="RUN")]]
    """Folder of a trained unified model."""
    text: Positional[Annotated[str, arg(metavar="TEXT")]]
    """What the image shows."""
    out: Annotated[Path, arg(metavar="IMAGE", aliases=["-o"])] = Path("out.png")
    """The image; several stand in a row."""
    num_images: int = 1
    """How many."""
    best_of: int = 4
    """Generate again, at most so often, until the model itself would describe the image so, and
    show the one that comes nearest; 1 shows the first."""
    temperature: float = 1.0
    """0 is greedy: the same image every time."""
    top_k: int = 0
    """Choose among the k likeliest codes only (0: all)."""
    top_p: float = 0.95
    """Choose among the likeliest codes that make up this probability."""
    guidance: float = 1.5
    """Scale of classifier-free guidance; 1 is none."""
    seed: int = 0
    """Another seed, another image."""
    edit: Image | None = None
    """An image to edit. Alone it is shown to the model beside the text, which says how ("make it
    blue"); with --mask or --strength the text says what is to be seen."""
    mask: Image | None = None
    """An image that is white where --edit is to be generated anew; the rest keeps its codes."""
    strength: float = 0.0
    """Generate this share of --edit anew, at random places."""
    grid: tuple[int, int] | None = None
    """Rows and columns of codes, for models that generate several sizes."""
    steps: int = 12
    """Passes an image, for models that generate by masked diffusion."""

    def __call__(self) -> None:
        self._check()
        self.use_device()
        from chiasm.core.protocols import SamplingParams
        from chiasm.recipes.chat import Change, draw_images

        sampling = SamplingParams(
            self.temperature,
            self.top_k,
            self.top_p,
            guidance=self.guidance,
            seed=self.seed,
            grid=self.grid,
            image_steps=self.steps,
        )
        change = Change(self.edit, self.mask, self.strength) if self.edit else None
        draw_images(self.run, self.text, self.out, self.num_images, self.best_of, sampling, change)

    def _check(self) -> None:
        if self.num_images < 1 or self.best_of < 1:
            raise ConfigError(
                f"--num-images {self.num_images} --best-of {self.best_of}: both must be at least 1"
            )
        if (self.mask or self.strength) and not self.edit:
            raise ConfigError("--mask and --strength change an image: give it with --edit")
        if (self.mask and self.strength) or not 0 <= self.strength <= 1 or self.steps < 1:
            raise ConfigError(
                f"--strength {self.strength} --steps {self.steps}: give --mask or a --strength "
                "from 0 to 1, and --steps of at least 1"
            )
