"""Metrics against other people's implementations and brute force, on random input."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.eval.metrics.agreement import Seen, agrees, relations
from chiasm.eval.metrics.bleu import bleu
from chiasm.eval.metrics.boxes import Box, iou
from chiasm.eval.metrics.cider import cider
from chiasm.eval.metrics.clipscore import clip_score, reference_clip_score
from chiasm.eval.metrics.edit import levenshtein
from chiasm.eval.metrics.flat_shapes import find_shapes
from chiasm.eval.metrics.frechet import frechet_distance, frechet_name
from chiasm.eval.metrics.image import ssim
from chiasm.eval.metrics.ranking import ranks, recall_at, top_k
from chiasm.eval.metrics.rouge import rouge_l
from chiasm.eval.metrics.vqa_accuracy import vqa_accuracy

WORDS = ["a", "the", "dog", "cat", "man", "runs", "sits", "on", "red", "grass", "near", "two"]


def sentences(count: int, seed: int, references: int = 4) -> tuple[list[str], list[list[str]]]:
    """Random replies and references that share words, of 1 to 14 words."""
    random = np.random.default_rng(seed)

    def one() -> str:
        return " ".join(random.choice(WORDS, random.integers(1, 15)))

    return [one() for _ in range(count)], [
        [one() for _ in range(random.integers(1, references + 1))] for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_cider_is_the_captioning_evaluations(seed):
    scorer = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    replies, references = sentences(40, seed)
    replies[0] = references[0][0]
    mean, each = scorer.compute_score(
        dict(enumerate(references)), {i: [reply] for i, reply in enumerate(replies)}
    )
    ours = cider(replies, references)
    assert ours == pytest.approx(list(each))
    assert sum(ours) / len(ours) == pytest.approx(mean)
    assert max(ours) > 1  # the comparison is not one of zeros


def test_cider_by_hand():
    """Two images, one reference each: only words of one image weigh (log 2), and a reply equal
    to its reference scores 10 in every order it is long enough for."""
    ours = cider(["a b c d", "x"], [["a b c d"], ["e f g h"]])
    assert ours == [pytest.approx(10), 0]
    assert cider(["a b c d"], [["a b c d"]]) == [0]  # a single image: log 1
    # Repeating gains nothing: clipped 1·1 over |2|·|1|, three words too many for the penalty.
    repeated = cider(["a a", "x"], [["a"], ["b"]])[0]
    assert repeated == pytest.approx(10 * 0.5 * math.exp(-1 / 72) / 4)


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_bleu_is_sacrebleus(seed, order):
    sacrebleu = pytest.importorskip("sacrebleu")
    replies, references = sentences(60, seed)
    replies[0] = "the dog runs on red grass near two"
    references[0] = ["the dog runs on red grass near two"]
    streams = [[refs[i] if i < len(refs) else None for refs in references] for i in range(4)]
    metric = sacrebleu.BLEU(tokenize="none", smooth_method="none", max_ngram_order=order)
    theirs = metric.corpus_score(replies, streams).score / 100
    assert bleu(replies, references, order) == pytest.approx(theirs)
    assert theirs > 0


@pytest.mark.parametrize("seed", range(3))
def test_rouge_is_the_captioning_evaluations(seed):
    scorer = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    replies, references = sentences(60, seed)
    for reply, refs in zip(replies, references, strict=True):
        assert rouge_l(reply, refs) == pytest.approx(scorer.calc_score([reply], refs))


def test_rouge_f1_is_rouge_scores():
    theirs = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    replies, references = sentences(100, 7, references=1)
    for reply, (reference,) in zip(replies, references, strict=True):
        expected = theirs.score(reference, reply)["rougeL"].fmeasure
        assert rouge_l(reply, [reference], beta=1) == pytest.approx(expected)


def _table(a, b):
    """Edit distance by its definition."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


@settings(deadline=None)
@given(st.text("abc", max_size=90), st.text("abc", max_size=90))
def test_levenshtein_is_its_table(a, b):
    assert levenshtein(a, b) == _table(a, b)
    assert levenshtein(a.split("c"), b.split("c")) == _table(a.split("c"), b.split("c"))


@given(st.lists(st.sampled_from(["dog", "cat", "2"]), min_size=2, max_size=12))
def test_vqa_accuracy_is_its_loop(answers):
    for reply in ("dog", "two", "cow"):
        said = {"two": "2"}.get(reply, reply)
        others = [[b for j, b in enumerate(answers) if i != j] for i in range(len(answers))]
        expected = np.mean([min(1, sum(b == said for b in rest) / 3) for rest in others])
        assert vqa_accuracy(reply, answers) == pytest.approx(expected)


def test_ssim_is_scikit_images():
    theirs = pytest.importorskip("skimage.metrics").structural_similarity
    random = np.random.default_rng(0)
    a = random.integers(0, 256, (40, 33, 3)).astype(np.uint8)
    b = np.clip(a + random.normal(0, 25, a.shape), 0, 255).astype(np.uint8)
    settings = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 255}
    assert ssim(a, b) == pytest.approx(theirs(a, b, channel_axis=2, **settings))
    assert ssim(a[..., 0], b[..., 0]) == pytest.approx(theirs(a[..., 0], b[..., 0], **settings))


def test_ssim_is_its_formula_at_one_window():
    random = np.random.default_rng(0)
    x, y = (random.integers(0, 256, (11, 11)).astype(np.uint8) for _ in range(2))
    at = np.arange(-5, 6)
    weight = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    mx, my = (weight * x).sum(), (weight * y).sum()
    vx, vy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
    cov = (weight * (x - mx) * (y - my)).sum()
    top = (2 * mx * my + 6.5025) * (2 * cov + 58.5225)
    assert ssim(x, y) == pytest.approx(top / ((mx**2 + my**2 + 6.5025) * (vx + vy + 58.5225)))
    assert ssim(x, x) == pytest.approx(1)
    with pytest.raises(ValueError, match="11 at least"):
        ssim(x[:5], y[:5])


def test_frechet_distance_of_gaussians():
    random = np.random.default_rng(0)
    a = random.normal(size=(500, 6)) @ random.normal(size=(6, 6))
    b = random.normal(size=(400, 6)) @ random.normal(size=(6, 6)) + 1
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values = np.linalg.eigvals(first @ second)  # of an unsymmetric matrix, real and positive
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second)
    expected -= 2 * np.sqrt(values.real).sum()
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 2) == pytest.approx(24)
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(a[:1], b)


def test_only_inceptions_features_make_a_fid():
    assert frechet_name("inception-v3-pool3") == "FID"
    assert frechet_name("siglip") == "Fréchet distance (siglip)"


def test_clip_score():
    images = np.array([[1.0, 0], [3, 4], [-1, 0]])
    texts = np.array([[2.0, 0], [1, 0], [1, 0]])
    assert clip_score(images, texts) == pytest.approx([2.5, 1.5, 0])
    references = [np.array([[0, 1.0], [1, 1]]), np.array([[1.0, 0]]), np.array([[0.0, -1]])]
    cosine = 2**-0.5
    harmonic = 2 * 2.5 * cosine / (2.5 + cosine)
    assert reference_clip_score(images, texts, references) == pytest.approx([harmonic, 1.2, 0])


def test_ranks_count_ties_against_the_model():
    scores = np.array([[0.1, 0.9, 0.5], [0.3, 0.3, 0.3], [0.9, 0.1, 0.1]])
    positive = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 0]], bool)
    assert ranks(scores, positive).tolist() == [2, 3, 1]
    assert recall_at(scores, positive, (1, 2, 3)) == pytest.approx(
        {"R@1": 1 / 3, "R@2": 2 / 3, "R@3": 1}
    )
    assert top_k(scores, np.array([1, 0, 0]), (1, 5)) == pytest.approx({"top-1": 2 / 3, "top-5": 1})
    with pytest.raises(ValueError, match="row 1 has no positive"):
        ranks(scores, np.array([[1, 0, 0], [0, 0, 0], [1, 0, 0]], bool))
    with pytest.raises(ValueError, match="NaN"):
        ranks(scores * np.nan, positive)


def test_recall_is_its_sort():
    random = np.random.default_rng(3)
    scores, positive = random.normal(size=(50, 20)), random.random((50, 20)) < 0.15
    positive[:, 0] |= ~positive.any(1)
    order = np.argsort(-scores, axis=1)
    for k in (1, 5, 10):
        expected = np.take_along_axis(positive, order[:, :k], 1).any(1).mean()
        assert recall_at(scores, positive, (k,))[f"R@{k}"] == pytest.approx(expected)


def test_iou_is_counted_cells():
    random = np.random.default_rng(0)
    for _ in range(50):
        x, y = np.sort(random.integers(0, 9, (2, 2))), np.sort(random.integers(0, 9, (2, 2)))
        a, b = Box(x[0][0], y[0][0], x[0][1], y[0][1]), Box(x[1][0], y[1][0], x[1][1], y[1][1])
        cells = [
            {(i, j) for i in range(c.left, c.right) for j in range(c.top, c.bottom)} for c in (a, b)
        ]
        union = len(cells[0] | cells[1])
        assert iou(a, b) == pytest.approx(len(cells[0] & cells[1]) / union if union else 0)
    with pytest.raises(ValueError, match="before"):
        iou(Box(2, 0, 1, 1), Box(0, 0, 1, 1))


def object_at(name: str, x: float, y: float, color: str | None = None) -> Seen:
    return Seen(name, Box(x, y, x + 10, y + 10), color)


def test_objects_count_colours_and_places():
    dogs = [object_at("dog", 20 * i, 0, "red") for i in range(3)]
    three = {
        "include": [{"class": "dog", "count": 3}],
        "exclude": [{"class": "dog", "count": 4}],
    }
    assert agrees(three, dogs)
    assert not agrees(three, dogs[:2])
    assert not agrees(three, [*dogs, object_at("dog", 90, 0)])
    red = {"include": [{"class": "dog", "count": 1, "color": "red"}]}
    assert agrees(red, dogs)
    assert not agrees(red, [object_at("dog", 0, 0, "blue")])
    beside = {
        "include": [
            {"class": "dog", "count": 1},
            {"class": "cat", "count": 1, "position": ["left of", 0]},
        ]
    }
    assert agrees(beside, [object_at("dog", 50, 0), object_at("cat", 0, 0)])
    assert not agrees(beside, [object_at("dog", 0, 0), object_at("cat", 50, 0)])
    assert not agrees(beside, [object_at("dog", 0, 0)])


def test_relations():
    middle = object_at("a", 50, 50)
    assert relations(object_at("b", 0, 50), middle) == {"left of"}
    assert relations(object_at("b", 90, 50), middle) == {"right of"}
    assert relations(object_at("b", 50, 0), middle) == {"above"}
    assert relations(object_at("b", 50, 90), middle) == {"below"}
    assert relations(object_at("b", 0, 0), middle) == {"left of", "above"}
    assert relations(object_at("b", 51, 50), middle) == set()
    assert relations(middle, middle) == set()


def test_flat_shapes_are_found_with_colour_and_place():
    import PIL.Image
    import PIL.ImageDraw

    image = PIL.Image.new("RGB", (64, 64), (240, 240, 255))
    draw = PIL.ImageDraw.Draw(image)
    draw.rectangle((5, 5, 24, 14), fill="red")
    draw.ellipse((35, 5, 60, 30), fill="teal")
    draw.polygon([(20, 60), (40, 60), (30, 40)], fill="black")
    draw.point((60, 60), fill="black")
    found = {seen.name: seen for seen in find_shapes(image)}
    assert {name: seen.color for name, seen in found.items()} == {
        "circle": "teal",
        "rectangle": "red",
        "triangle": "black",
    }
    assert found["rectangle"].box == (5, 5, 25, 15)
    wanted = {
        "include": [
            {"class": "rectangle", "count": 1, "color": "red"},
            {"class": "circle", "count": 1, "color": "teal", "position": ["right of", 0]},
            {"class": "triangle", "count": 1, "position": ["below", 0]},
        ]
    }
    assert agrees(wanted, list(found.values()))
    assert find_shapes(PIL.Image.new("RGB", (64, 64), "white")) == []


def test_rules_read_easy_vqa_as_its_labels():
    pytest.importorskip("easy_vqa")
    from chiasm.data import easy_vqa

    samples = [s for s in easy_vqa.load("test") if s.meta["caption"]][:200]
    right = 0
    for sample in samples:
        first = find_shapes(sample.images[0].load())[0]
        right += f"a {first.color} {first.name}" == sample.meta["caption"]
    assert right >= 198


def test_orders_of_edit_do_not_matter():
    for a, b in itertools.combinations(["dog", "cat", "", "do"], 2):
        assert levenshtein(a, b) == levenshtein(b, a)
