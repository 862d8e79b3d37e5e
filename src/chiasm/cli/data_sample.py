"""chiasm data sample: replies of a model as a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from chiasm.cli.options import NewFolder, say


@dataclass(kw_only=True)
class Sample:
    """Sample replies of a model and keep those with the highest reward as a data set."""

    run: Positional[Path]
    """The folder of an MLLM or a unified model."""
    data: str
    """What is asked: a data set as `train --data` takes it; its own replies are references."""
    out: NewFolder
    """The folder of the new data set; one that holds a part of it is gone on with."""
    n: int = 8
    """Replies a prompt."""
    reward: tuple[str, ...] = ("exact",)
    """Names of rewards (docs/preferences.md), whose sum counts, or module:function."""
    kind: Literal["sft", "preferences"] = "sft"
    """sft writes the best reply, preferences the best as chosen and the worst as rejected."""
    least: float = 1.0
    """For sft, the reward from which on a reply is kept."""
    objective: Literal["chat", "text_to_image"] = "chat"
    """chat asks the questions of the data, text_to_image draws its captions."""
    split: Literal["train", "test"] = "train"
    """The half of the data that is asked."""
    temperature: float = 1.0
    """Of sampling."""
    max_tokens: int = 64
    """Of a reply in words."""
    limit: int = 0
    """At most this many prompts; 0 is all."""
    seed: int = 0
    """Of sampling."""

    def __call__(self) -> None:
        from chiasm.core.registry import allow_named
        from chiasm.recipes.sampled_data import Asking, sample_data

        allow_named(self.reward)  # the user's own words
        asking = Asking(
            str(self.run), self.data, self.split, self.objective, self.n,
            dict.fromkeys(self.reward, 1.0), self.temperature, self.max_tokens, self.limit,
            self.seed,
        )  # fmt: skip
        found = sample_data(asking, self.out, self.kind, self.least)
        say(
            f"{self.out}: {found.written:,} samples written, {found.left_out:,} prompts left out; "
            f"mean reward of the first reply {found.first:.3f}, of the best of {self.n} "
            f"{found.best:.3f}"
        )
