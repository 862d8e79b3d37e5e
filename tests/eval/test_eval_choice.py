"""Which option a reply takes: what it declares, whatever it mentions or rejects besides."""

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.eval.metrics.choice import option_of, parse_choice
from chiasm.eval.metrics.thinking import without_thinking

OPTIONS = {"A": "a red dog", "B": "a cat", "C": "cat food", "D": "12 %"}

DECLARED = (
    "The answer is {}.",
    "Answer: {}",
    "**Answer:** {}",
    "Final answer: ({})",
    "The correct answer is option {}.",
    "The correct option is therefore {}.",
    "The best choice would be ({}).",
    "I would choose {}.",
    "Option {} is correct.",
    "So we get $\\boxed{{{}}}$.",
    "So we get $\\boxed{{\\text{{({})}}}}$.",
    '{{"answer": "{}"}}',
    "## Answer\n{}",
    "正确答案为{}。",
    "答案是{}。",
    "所以选{}。",
    "정답은 {}입니다.",
    "答えは{}です。",
    "Die richtige Antwort ist {}.",
    "La réponse est {}.",
    "La respuesta correcta es {}.",
    "Правильный ответ: {}.",
)
OTHERS = (
    "Option {} is too dark.",
    "({}) shows something else.",
    "Option {} is wrong.",
    "{} is incorrect.",
    "It cannot be {}.",
    "It is not option {}.",
    "We can rule out {}.",
    "One might think of {} at first.",
    "I don't think the answer is {}.",
    "If the answer were {}, it would be darker.",
    "不是{}。",
    "选项{}太暗了。",
)


@settings(deadline=None, max_examples=300)
@given(
    st.permutations("ABCD"),
    st.sampled_from(DECLARED),
    st.lists(st.sampled_from(OTHERS), min_size=3, max_size=3),
    st.integers(0, 3),
    st.sampled_from((" ", "\n", "\n\n")),
)
def test_the_declared_letter_is_read_among_mentioned_and_rejected_ones(
    letters, declared, others, before, gap
):
    said = [frame.format(letter) for frame, letter in zip(others, letters[1:], strict=True)]
    said.insert(before, declared.format(letters[0]))
    reply = gap.join(said) if declared[0] != "#" else "\n".join(said)
    assert parse_choice(reply, OPTIONS) == letters[0], reply


@pytest.mark.parametrize("letters", itertools.permutations("ABCD", 3))
def test_the_last_of_several_declarations_counts_and_thoughts_do_not(letters):
    first, second, third = letters
    assert parse_choice(f"The answer is {first}. No, the answer is {second}.", OPTIONS) == second
    thought = f"<think>Option {first}? Answer: {second}</think>\n{third}"
    assert parse_choice(thought, OPTIONS) == third
    assert parse_choice(f"Answer: {first}</think>{third.lower()}", OPTIONS) == third
    assert parse_choice(f"<answer>{first}</answer> rather than {second}", OPTIONS) == first
    listing = "\n".join(f"{letter}) {text}" for letter, text in OPTIONS.items())
    assert parse_choice(f"{listing}\nAnswer: {first}", OPTIONS) == first


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("The answer is B. Option A is too dark.", "B"),
        ("Answer: B\nOption A is wrong. Option D is wrong too.", "B"),
        ("The answer is B, not option C.", "B"),
        ("<think>Option A? Option B is bright.</think>\nC", "C"),
        ("<think>The answer is A, I guess, but", None),
        ("b", "B"),
        ("(b)", "B"),
        ("b) a cat", "B"),
        ("The correct answer is d.", "D"),
        ("The answer is a.", "A"),
        ("The answer is a because it is red", "A"),
        ("the answer is a dog", None),
        ("Answer: I think B", "B"),
        ("a dog", None),
        ("it is b", "B"),
        ("e.g. nothing", None),
        ("正确答案为C。", "C"),
        ("不选A，选C", "C"),
        ("Ｂ", "B"),
        ("The answer is A or B.", None),
        ("The answer is not A.", None),
        ("The answer is B and C is wrong", "B"),
        ("A, B and C are incorrect, leaving D", "D"),
        ("Neither A nor D but C", "C"),
        ("The best choice is C because A, B and D are wrong", "C"),
        ("Let's see. Is the answer A? No. It is B.", "B"),
        ("La réponse est C, pas A", "C"),
        ("A) a red dog\nB) a cat\nC) cat food\nD) 12 %", None),
    ],
)
def test_replies(reply, letter):
    assert parse_choice(reply, OPTIONS) == letter


def test_other_keys_than_letters():
    assert parse_choice("The answer is 2, not 1.", {"1": "dog", "2": "cat"}) == "2"
    assert parse_choice("ответ: Б", {"А": "собака", "Б": "кошка"}) == "Б"
    assert parse_choice("b", {"a": "dog", "b": "cat"}) == "b"
    assert parse_choice("B", {"a": "dog", "b": "cat"}) == "b"
    assert parse_choice("the answer is b", {"b": "dog", "B": "cat"}) == "b"


@pytest.mark.parametrize("spelled", ["B", "b", "(B)", "(b)", "B.", "a cat", "B. a cat", "A Cat"])
def test_what_a_reference_names(spelled):
    assert option_of(spelled, OPTIONS) == "B"


def test_a_reference_that_names_no_option():
    assert option_of("zebra", OPTIONS) is None


def test_thinking():
    assert without_thinking("<b>bold</b> < 3") == "<b>bold</b> < 3"
    assert without_thinking("<think>a</think>b<thinking>c</thinking>d") == "bd"
    assert without_thinking("a</think>\n\nb") == "b"
    assert without_thinking("b<think>a") == "b"
    assert without_thinking("◁think▷a◁/think▷b") == "b"


@pytest.mark.parametrize(
    "piece",
    ["answer is ", "not the ", "option ", "the answer ", "A, ", "A or ", "( * ", "<think>", "\n"],
)
def test_time_grows_with_the_length_of_a_reply(piece):
    began = time.perf_counter()
    parse_choice(piece * 2000, OPTIONS)
    assert time.perf_counter() - began < 2
