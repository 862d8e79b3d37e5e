"""chiasm precompute: a data set's pictures as codes, once and for all."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from chiasm.core.errors import DataError
from chiasm.core.progress import Bar, Show
from chiasm.core.sample import Image, Sample
from chiasm.core.vocab import Vocabulary
from chiasm.data.quarantine import Quarantine
from chiasm.data.tokens import write_tokens
from chiasm.hub.load import load_as
from chiasm.recipes.run import read
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.codec import UnifiedCodec


def precompute(tokenizer: Path, data: str, out: Path, shard: int, show: Show = Bar) -> int:
    """Write the codes of all training pictures to `out`; how many. Unreadable pictures are listed
    in OUT-quarantine.jsonl."""
    autoencoder, _ = load_as(tokenizer, Autoencoder, "TOKENIZER")
    # Codes do not depend on the text that they will share a vocabulary with.
    codec = UnifiedCodec(autoencoder, Vocabulary(5, autoencoder.quantizer.codes, 0, 1, 2, 3, 4))
    quarantine = Quarantine(out.with_name(out.name + "-quarantine.jsonl"))
    samples = read(data, "train", quarantine)
    images = [image for sample in samples for image in sample.images]

    def on_unreadable(image: Image, error: DataError) -> None:
        quarantine.add(Sample((), id=image.where or str(error)), error, len(images))

    count = write_tokens(out, images, codec, shard, on_unreadable, show)
    Console().print(f"{escape(str(out))}: codes of {count} pictures, {len(quarantine)} unusable")
    return count
