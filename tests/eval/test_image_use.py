"""Whether the image is used, of models whose use of it is known."""

import PIL.Image
import pytest

from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.eval.conversation import group_key
from chiasm.eval.image_use import image_use, question_baseline, shuffled_questions
from chiasm.eval.task import QuestionTask

COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 128, 0), "black": (0, 0, 0)}


def color_task(count: int, questions: int = 1) -> QuestionTask:
    names = list(COLORS)
    samples = []
    for number in range(count):
        name = names[number % len(names)]
        image = PIL.Image.new("RGB", (8 + number, 8), COLORS[name])
        for extra in range(questions):
            turns = (user(Image(image), f"Which color? {extra}"), assistant(name))
            samples.append(Sample(turns, f"{number}-{extra}"))
    return QuestionTask("colors", samples)


def sees(sample: Sample) -> str:
    pixel = sample.images[0].load().getpixel((0, 0))
    return next(name for name, color in COLORS.items() if color == pixel)


def use_of(task: QuestionTask, reply, limit: int = 200):
    samples = task.samples()
    asked = shuffled_questions(samples, limit)
    own = [task.score(samples[i], reply(samples[i]))["correct"] for i, _ in asked]
    other = [task.score(sample, reply(sample))["correct"] for _, sample in asked]
    return image_use(own, other, [group_key(samples[i]) for i, _ in asked])


def test_a_model_that_sees_and_one_that_does_not():
    task = color_task(120, questions=2)
    seeing, blind = use_of(task, sees), use_of(task, lambda sample: "red")
    assert seeing.verdict == "used"
    assert seeing.accuracy == 1
    assert 0.5 < seeing.gain == pytest.approx(1 - seeing.shuffled_accuracy)
    assert blind.verdict == "not used"
    assert blind.gain == 0
    assert blind.accuracy == blind.shuffled_accuracy == pytest.approx(0.25, abs=0.05)
    assert "does not use the image" in blind.sentence()
    assert seeing.sentence().startswith("uses the image: 100.0% with its own image")


def test_few_questions_show_nothing_of_a_model_that_does_not_see():
    assert use_of(color_task(8), lambda sample: "red").verdict == "unclear"


def test_whole_images_are_drawn_and_none_keeps_its_own():
    samples = color_task(40, questions=3).samples()
    asked = shuffled_questions(samples, 30)
    assert len(asked) == 30
    assert len({group_key(samples[i]) for i, _ in asked}) == 10
    for i, shuffled in asked:
        assert shuffled.turns[-1].text == samples[i].turns[-1].text
        assert shuffled.images[0].load().size != samples[i].images[0].load().size
    assert asked[0][0] == shuffled_questions(samples, 30)[0][0]


def test_questions_without_images_or_about_one_image_cannot_be_asked():
    alone = color_task(1, questions=5).samples()
    assert shuffled_questions(alone) == []
    text = Sample((user("Which color?"),), "a", meta={"reference": "red"})
    assert [i for i, _ in shuffled_questions([text, *color_task(4).samples()])] == [1, 2, 3, 4]


def test_interval_of_the_gain_holds_its_mean():
    use = image_use([1, 1, 0, 1] * 50, [0, 1, 0, 0] * 50, list(range(200)))
    assert use.gain == 0.5
    assert use.interval[0] < 0.5 < use.interval[1]
    assert 0.12 < use.interval[1] - use.interval[0] < 0.16  # 2 * 1.96 * sqrt(.25 / 200) = 0.139


def test_question_baseline_never_reads_the_answer_it_is_scored_on():
    def task(rows):
        turns = [Sample((user(q), assistant(a)), str(i)) for i, (q, a) in enumerate(rows)]
        return QuestionTask("words", turns)

    # The commonest of the others: "1" for each "what?" of which another has "1".
    assert question_baseline(task([("what?", "1"), ("what?", "1"), ("what?", "2")])) == 2 / 3
    # Every question stands alone: the commonest of all others.
    assert question_baseline(task([("a?", "x"), ("b?", "x"), ("c?", "y")])) == 2 / 3
    assert question_baseline(task([("a?", "x"), ("b?", "y")])) == 0
