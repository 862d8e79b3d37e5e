import PIL.Image
import pytest

from chiasm.core.errors import DataError
from chiasm.core.protocols import Task
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.eval.conversation import group_key
from chiasm.eval.runner import majority_baseline
from chiasm.eval.task import QuestionTask, blind

ANSWERS = ("yes", "no", "red", "blue")


def image(n: int) -> Image:
    return Image(PIL.Image.new("RGB", (2, 2), (n, n, n)))


def sample(n: int, *replies: str) -> Sample:
    """One image with a question for each reply."""
    turns = [user(image(n), f"question 0 about {n}?"), assistant(replies[0])]
    for i, reply in enumerate(replies[1:], 1):
        turns += [user(f"question {i} about {n}?"), assistant(reply)]
    return Sample(tuple(turns), f"s{n}", "toy", True, {"number": n})


def toy(count: int = 6) -> list[Sample]:
    return [sample(n, "red" if n % 2 else "blue", "yes", "no") for n in range(count)]


def test_questions_are_split_and_the_answer_is_taken_away():
    task: Task = QuestionTask("toy", toy(), ANSWERS)
    asked = task.samples()
    assert len(asked) == 18
    assert all(s.turns[-1].role == "user" and len(s.turns) == 1 for s in asked)
    assert [s.meta["reference"] for s in asked[:3]] == ["blue", "yes", "no"]
    assert asked[1].turns[-1].text == "question 1 about 0?"
    assert len({s.id for s in asked}) == 18


def test_scores():
    task = QuestionTask("toy", toy(), ANSWERS)
    color, yes, _ = task.samples()[:3]
    assert task.score(color, "It is blue.") == {"correct": 1, "parsed": 1, "open": 1}
    assert task.score(color, "red") == {"correct": 0, "parsed": 1, "open": 1}
    assert task.score(color, "red or blue") == {"correct": 0, "parsed": 0, "open": 1}
    assert task.score(yes, "Yes.") == {"correct": 1, "parsed": 1, "open": 0}
    free = QuestionTask("toy", toy())
    assert free.score(color, "Blue!") == {"correct": 1, "parsed": 1, "open": 1}
    assert free.score(color, "") == {"correct": 0, "parsed": 0, "open": 1}


def test_a_dialogue_keeps_its_earlier_turns():
    turns = (user(image(0), "a?"), assistant("x"), user("b?"), assistant("y"))
    (asked,) = QuestionTask("toy", [Sample(turns, "d")], turns="last").samples()
    assert [t.text for t in asked.turns] == ["a?", "x", "b?"]
    assert asked.meta["reference"] == "y"


def test_bad_samples_are_named():
    with pytest.raises(DataError, match=r"'d'.*does not end with the assistant"):
        QuestionTask("toy", [Sample((user("a?"),), "d")])
    with pytest.raises(DataError, match="'d': empty conversation"):
        QuestionTask("toy", [Sample((), "d")])
    with pytest.raises(DataError, match="'purple' is not one of"):
        QuestionTask("toy", [sample(0, "purple")], ANSWERS)
    with pytest.raises(DataError, match="no questions"):
        QuestionTask("toy", [])


def test_a_subset_is_seeded_and_keeps_images_together():
    def numbers(limit, seed):
        asked = QuestionTask("toy", toy(40), ANSWERS, limit=limit, seed=seed).samples()
        return [s.meta["number"] for s in asked]

    assert numbers(30, 1) == numbers(30, 1) != numbers(30, 2)
    chosen = numbers(31, 1)
    assert len(chosen) == 31
    runs = [n for i, n in enumerate(chosen) if i == 0 or chosen[i - 1] != n]
    assert len(runs) == len(set(runs)) == 11
    assert len(numbers(1000, 1)) == 120


def test_separate_questions_of_one_image_become_adjacent(tmp_path):
    def one(n, i):
        turns = (user(Image(tmp_path / f"{n}.png"), f"{i}?"), assistant("yes"))
        return Sample(turns, f"{n}-{i}")

    task = QuestionTask("toy", [one(n, i) for i in range(2) for n in range(3)])
    assert [s.id for s in task.samples()] == ["0-0", "0-1", "1-0", "1-1", "2-0", "2-1"]


@pytest.mark.parametrize("seed", range(5))
def test_blind_is_a_derangement_by_image(seed):
    task = QuestionTask("toy", toy(7), ANSWERS)
    before, after = task.samples(), task.blinded(seed).samples()
    assert [s.turns[-1].text for s in before] == [s.turns[-1].text for s in after]
    assert [s.meta for s in before] == [s.meta for s in after]
    moved = {group_key(a): group_key(b) for a, b in zip(before, after, strict=True)}
    pairs = {(group_key(a), group_key(b)) for a, b in zip(before, after, strict=True)}
    assert len(pairs) == 7  # questions of one image share its wrong image
    assert all(a != b for a, b in moved.items())
    assert sorted(map(str, moved)) == sorted(map(str, moved.values()))
    keys = [group_key(s) for s in after]
    assert len([k for i, k in enumerate(keys) if not i or keys[i - 1] != k]) == 7


def test_blind_needs_two_images_and_leaves_the_original_alone():
    with pytest.raises(DataError, match="two different images, found 1"):
        blind([sample(0, "yes"), sample(0, "no")], 0)
    task = QuestionTask("toy", toy(3), ANSWERS)
    before = [group_key(s) for s in task.samples()]
    task.blinded(0)
    assert [group_key(s) for s in task.samples()] == before


def test_majority():
    task = QuestionTask("toy", [sample(0, "yes", "yes", "no", "red"), sample(1, "blue", "blue")])
    assert majority_baseline(task) == {
        "accuracy": pytest.approx(2 / 6),
        "open_accuracy": pytest.approx(2 / 3),
        "yes_no_accuracy": pytest.approx(2 / 3),
    }
    assert majority_baseline(QuestionTask("t", [sample(0, "red")]))["yes_no_accuracy"] is None
