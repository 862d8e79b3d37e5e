"""What the judge of the demo's drawings learns from: images as the tokenizer gives them back."""

import numpy as np
import torch

from chiasm.core.progress import silent
from chiasm.core.sample import Image
from chiasm.hub.load import load
from chiasm.recipes.demo import reconstructed
from chiasm.recipes.run import run
from chiasm.vision.patches import fit, to_array
from route_toys import make_parts, samples, unified_recipe


def test_reconstructions_are_the_autoencoders_and_keep_their_labels(tmp_path):
    parts = make_parts(tmp_path)
    run(unified_recipe(parts, steps=1), tmp_path / "run", show=silent, check=False)
    codec = load(tmp_path / "run")[1].codec
    network, made = codec.autoencoder, samples(5)
    again = list(reconstructed(made, codec, batch=2))
    assert [s.meta for s in again] == [s.meta for s in made]
    assert [s.turns[1:] for s in again] == [s.turns[1:] for s in made]
    for before, after in zip(made, again, strict=True):
        config = network.config
        own = fit(before.images[0].load(), config.image_size, config.stride, None)
        pixels = torch.from_numpy(to_array(own)).permute(2, 0, 1)[None].contiguous()
        with torch.no_grad():
            expected = network.decode(network.encode(pixels))[0].permute(1, 2, 0).numpy()
        assert isinstance(after.images[0], Image)
        shown = np.asarray(after.images[0].load(), np.float32) / 127.5 - 1
        assert np.abs(shown - expected.clip(-1, 1)).max() < 1.01 / 127.5
