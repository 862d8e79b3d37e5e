"""Painting with conditionals that are known exactly: what comes out must follow them."""

import pytest
import torch

from chiasm.core.protocols import SamplingParams
from chiasm.core.vocab import Vocabulary
from chiasm.generation.image_token_fsm import Grammar
from chiasm.generation.maskgit import paint
from chiasm.generation.sequence import Reply, Session
from chiasm.generation.steps import Steps

V = Vocabulary(10, 4, pad=0, begin=1, end=2, begin_image=3, end_image=4, mask=9)
CODES, IMAGES = 16, 600


class Forgetful:
    """The cache of a model that needs none."""

    def __len__(self):
        return 0

    def forget(self, length):
        assert length == 0


class Known:
    """A model whose hidden states are its logits: of each place the log-probabilities of the
    codes, given all that is not masked."""

    def __init__(self, conditionals):
        self.conditionals = conditionals

    def __call__(self, batch, cache):
        codes = batch.input_ids[:, 1:] - V.first_code
        told = torch.full((*batch.input_ids.shape, V.size), -1e9)
        told[:, 1:, V.first_code :] = self.conditionals(codes.where(codes >= 0, -1)).log()
        return told

    def logits(self, hidden):
        return hidden


def painted(conditionals, steps):
    """Codes [IMAGES CODES], numbered from 0."""
    grammar = Grammar(V, [(4, 4)])
    replies = []
    for row in range(IMAGES):
        state = grammar.start(SamplingParams(draw_first=True, max_images=1))
        state.take(V.begin_image)
        replies.append(Reply(row, row, 0, 1, state, pending=[V.begin_image]))
    sampling = SamplingParams(1.0, image_steps=steps)
    random = torch.Generator().manual_seed(0)
    session = Session(replies, IMAGES, False, Forgetful(), sampling, random)
    steps_of = Steps(Known(conditionals), torch.device("cpu"))
    ids = torch.tensor(paint(steps_of, grammar, replies, session))
    assert (ids[:, -1] == V.end_image).all()
    return ids[:, :-1] - V.first_code


@pytest.mark.parametrize("steps", [1, 6, CODES])
def test_what_is_rare_stays_as_rare_as_the_model_says(steps):
    """Places that know nothing of each other: no order and no number of passes may matter."""
    share = torch.tensor([[0.8, 0.1, 0.1, 0.0], [0.4, 0.4, 0.2, 0.0]]).repeat(CODES // 2, 1)
    codes = painted(lambda codes: share.expand(len(codes), -1, -1), steps)
    for kind in (0, 1):
        found = torch.bincount(codes[:, kind::2].flatten(), minlength=4) / codes[:, kind::2].numel()
        assert (found - share[kind]).abs().max() < 0.02


def test_with_a_pass_a_code_images_are_as_coherent_as_the_model():
    """Every code has a partner that is the same; of which kind they are is open."""

    def conditionals(codes):
        partner = codes.view(-1, CODES // 2, 2).flip(-1).reshape(codes.shape)
        certain = torch.nn.functional.one_hot(partner.clamp(min=0), 4).float()
        return torch.where(partner[..., None] < 0, torch.tensor(0.25), certain)

    codes = painted(conditionals, CODES)
    assert torch.equal(codes[:, ::2], codes[:, 1::2])
    found = torch.bincount(codes.flatten(), minlength=4) / codes.numel()
    assert (found - 0.25).abs().max() < 0.02
    hasty = painted(conditionals, 3)
    assert (hasty[:, ::2] != hasty[:, 1::2]).float().mean() > 0.1
