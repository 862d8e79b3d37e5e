"""How lmms-eval 0.7.3 scores a reply, benchmark by benchmark, with all that is right or wrong about
it, so that a table of its numbers can be compared with.

Compared with the package itself on thousands of drawn pairs a benchmark (tests/eval/lmms_pairs.py).
Every reply is first stripped of its `<think>` and `<analysis>` blocks and of white space around it.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Mapping, Sequence

from chiasm.eval.metrics.edit import levenshtein
from chiasm.eval.metrics.vqa import ARTICLES, NUMBERS
from chiasm.eval.metrics.vqa_accuracy import CONTRACTIONS, agreement
from chiasm.eval.metrics.yes_no import Pope, YesNo, counted

VERSION = "0.7.3"

_TAGS = (("<think>", "</think>"), ("<analysis>", "</analysis>"))
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,+\d")
_MOST_PERIODS = 32  # a flag stands where the count of replacements is due
_DELETED = str.maketrans("", "", string.punctuation)


def strip_reasoning(reply: str) -> str:
    """The reply less its thinking, by the tags that the command line has by default."""
    for start, end in _TAGS:
        while start in reply and end in reply:
            first = reply.find(start)
            last = reply.find(end, first)
            if last < 0:
                break
            reply = reply[:first] + reply[last + len(end) :]
        if end in reply and start not in reply:
            reply = reply.rsplit(end, 1)[-1]
    return reply.strip()


def exact(reply: str, target: str) -> bool:
    """GQA: equal without case and ASCII punctuation."""
    # An array of strings, as they make one, ends each at its trailing NULs.
    return _bare(reply) == _bare(target)


def _bare(text: str) -> str:
    return text.rstrip("\0").lower().translate(_DELETED)


def vqa(reply: str, answers: Sequence[str]) -> float:
    """VQAv2: as the benchmark's own evaluation, of at most 32 full stops."""
    return agreement(_processed(reply), [_processed(answer) for answer in answers])


def textvqa(reply: str, answers: Sequence[str]) -> float:
    """TextVQA: the same after commas, question marks and the apostrophe of "'s" are cut."""
    return agreement(_processed(_cut(reply)), [_processed(_cut(answer)) for answer in answers])


def _cut(text: str) -> str:
    return text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()


def _processed(text: str) -> str:
    text = text.replace("\n", " ").replace("\t", " ").strip()
    number, out = _COMMA_IN_NUMBER.search(text) is not None, text
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space or number else " ")
    words = _PERIOD.sub("", out, count=_MOST_PERIODS).lower().split()
    kept = (w for word in words if (w := NUMBERS.get(word, word)) not in ARTICLES)
    return " ".join(CONTRACTIONS.get(word, word) for word in kept)


def anls(reply: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """DocVQA: distances over the lengths before runs of white space are reduced."""
    found = []
    for answer in answers:
        pair = [" ".join(text.lower().split()) for text in (answer, reply)]
        longer = max(len(answer.upper()), len(reply.upper()))
        found.append(levenshtein(*pair) / longer if longer else 0.0)
    best = 1 - min(found)
    return best if best >= threshold else 0.0


def relaxed(reply: str, target: str, tolerance: float = 0.05) -> bool:
    """ChartQA: 2008 hits 2010, "12%" is 0.12 only, "1,200" is no number, "Yes." is not "Yes"."""
    said, wanted = _float(reply), _float(target)
    if said is not None and wanted:
        return abs(said - wanted) / abs(wanted) <= tolerance
    return reply.lower() == target.lower()


def _float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def contains(reply: str, answers: Sequence[str], verbatim: bool = False) -> bool:
    """OCRBench: an answer is a substring, an empty one of everything; verbatim for HME100k."""

    def plain(text: str) -> str:
        if verbatim:
            return text.strip().replace("\n", " ").replace(" ", "")
        wide = {c: c - 0xFEE0 for c in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
        return text.translate(wide).lower().strip().replace("\n", " ")

    return any(plain(answer) in plain(reply) for answer in answers)


def yes_no(reply: str) -> str | None:
    """POPE: the bare word counts, "Yes." does not."""
    said = reply.lower().strip()
    return said if said in ("yes", "no") else None


def pope(replies: Sequence[str], answers: Sequence[YesNo]) -> Pope:
    """POPE's numbers: unreadable replies are left out of the recall, the share of yes is that of
    the answers, so that no model can change it."""
    said = [yes_no(reply) for reply in replies]
    asked = sum(a == "yes" and b is not None for a, b in zip(answers, said, strict=True))
    return counted(said, answers, asked, answers.count("yes"))


def ai2d(reply: str) -> str:
    """AI2D: a capital with a full stop at the beginning, else the whole reply, to be compared by
    `exact`."""
    found = re.match(r"\s*([A-Z])\.", reply)
    return found[1] if found else reply


def mmmu_choice(
    reply: str, options: Mapping[str, str], guess: random.Random | None = None
) -> str | None:
    """MMMU: a letter in brackets, else before a blank, else before a full stop, else a text of the
    options; the last. Where there is none they draw a letter, here from `guess` (theirs is seeded
    by whatever ran before, so single draws cannot be repeated), or None without one."""
    for mark in ",.!?;:'":
        reply = reply.strip(mark)
    reply = f" {reply} "
    # Kind of mention -> what is looked for, and where the last one is found.
    for shown, placed in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = [letter for letter in options if shown.format(letter) in reply]
        if found:
            return max(found, key=lambda letter: reply.rfind(placed.format(letter)))
    if len(reply.split()) > 5:
        lower = reply.lower()
        found = [letter for letter, text in options.items() if text.lower() in lower]
        if found:
            return max(found, key=lambda letter: lower.rfind(options[letter].lower()))
    return guess.choice(list(options)) if guess else None


_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


def mmmu_open(reply: str, answers: str | Sequence[str]) -> bool:
    """MMMU's open questions: an answer's text occurs in, or its number rounded to two places is
    one of, the tails behind "is", "so", "answer" and the like. A list of answers counts as such;
    as MMMU is published, it is the list's spelling, which only a reply that spells it hits."""
    texts = [answers] if isinstance(answers, str) else answers
    wanted = [form for text in texts for form in _forms(text)]
    said = [form for text in _candidates(reply) for form in _forms(text)]
    words = [form for form in wanted if isinstance(form, str)]
    in_words = any(word in form for form in said if isinstance(form, str) for word in words)
    return in_words or any(form in wanted for form in said if isinstance(form, float))


def _candidates(reply: str) -> list[str]:
    reply = reply.strip().strip(".").lower()
    # They split at capitals too, of which the lower-cased text has none.
    lines = reply.split("\n")
    tails = []
    for number, line in enumerate(lines):
        marks = (*_INDICATORS, "=") if number == len(lines) - 1 else _INDICATORS
        shortest = ""
        for mark in marks:
            if mark in line:
                tail = line.split(mark)[-1].strip()
                if not shortest or len(tail) < len(shortest):
                    shortest = tail
        if shortest and shortest not in (":", ",", ".", "!", "?", ";", "'"):
            tails.append(shortest)
    tails = tails or [reply]
    return tails + [n for tail in tails for pattern in _NUMBERS for n in re.findall(pattern, tail)]


def _forms(text: str) -> list[str | float]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


_PHRASES = (
    *("the answer is", "answer is", "the correct answer is", "correct answer is"),
    *("the best answer is", "best answer is", "the correct option is", "correct option is"),
    *("the best option is", "best option is", "the choice is", "choice is"),
    *("the correct choice is", "correct choice is", "i choose", "i select", "i pick"),
    *("my answer is", "my choice is", "옵션", "정답은", "답은", "답:"),
    *("答案是", "答案为", "选", "答えは"),
)


def extracted(reply: str, letters: Sequence[str] = "ABCD") -> str:
    """MMStar, Video-MME (and MMBench where its own rules find nothing): of all letters found, the
    one of the surest form, and of those the last; "" where there is none."""
    if not reply.strip():
        return ""
    text = reply.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    text = f" {text} "
    found: list[tuple[int, int, str]] = []  # sureness, place, letter
    for sureness, form in ((6, "({})"), (5, "{}."), (4, "{}:"), (3, "{})"), (2, "{} ")):
        for letter in letters:
            if (at := text.rfind(form.format(letter))) >= 0:
                found.append((sureness, at, letter))
    for phrase in _PHRASES:
        if (start := text.lower().find(phrase)) >= 0:
            behind = ((text.find(letter, start + len(phrase)), letter) for letter in letters)
            found += [(7, at, letter) for at, letter in behind if at >= 0]
    bare = text.strip()
    for letter in letters:
        if bare.startswith(letter) and not bare[1:2].isalpha():
            found.append((10, 0, letter))
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            found.append((9, len(text) - 1, letter))
    found = found or [(0, text.rfind(c), c) for c in letters if c in text]
    # The first of equals, as a stable sort leaves it.
    return max(found, key=lambda one: one[:2])[2] if found else ""


_AROUND = (
    *(("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ").")),
    *((":", ""), (":", ","), (":", "."), (":", ")"), (":", ").")),
)


def mmbench(reply: str, options: Mapping[str, str]) -> str:
    """MMBench without a judge ("static"): the only letter among the words, else the only option
    whose text occurs, else `extracted`. A missing option has the text "nan", as it is published."""
    texts = {letter: str(options.get(letter, "nan")).lower() for letter in "ABCD"}
    words = reply.split()
    alone = [letter for letter in "ABCDE" if letter in words]
    if len(alone) == 1 and not ("A" in words and len(words) > 3):
        return alone[0]
    for before, behind in _AROUND:
        marked = [letter for letter in "ABCDE" if before + letter + behind in words]
        if len(marked) == 1:
            return marked[0]
    named = [letter for letter, text in texts.items() if text in reply.lower()]
    return named[0] if len(named) == 1 else extracted(reply, "ABCD")
