"""Pairs of replies and answers that look like those of real models, drawn by a seed; and what
lmms-eval 0.7.3 makes of them.

Recorded with the package in an environment of its own (it needs numpy, loguru, pandas, pytz,
sacrebleu, datasets, evaluate and opencv beside it, no torch), from this folder:

    python lmms_pairs.py lmms_eval_0_7_3.json

The file holds one score a pair; the pairs are drawn anew by whoever compares.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

VERSION = "0.7.3"
COUNT = 3000
LETTERS = "ABCD"
BENCHMARKS = ("gqa", "vqav2", "textvqa", "docvqa", "chartqa", "ocrbench", "pope", "ai2d",
              "mmmu", "mmmu-open", "mmstar", "mmbench", "video-mme")  # fmt: skip

# fmt: off
NOUNS = (
    "dog", "cat", "banana", "Banana", "fire hydrant", "STOP", "São Paulo", "straße",
    "ﬁne print", "naïve café", "two", "Two", "ten", "none", "yes", "no", "Yes", "No", "left",
    "a red dog", "the cat", "an apple", "t-shirt", "black and white", "3 pm", "50 mph",
    "McDonald's", "dog's", "don't", "dont", "isnt", "couldnt've", "it's", "let's", "o'clock",
    "oclock", "somebody'd", "theyre", "youve", "wont", "nan", "Nan", "inf", "Coca-Cola", "a/b",
    "x=3", "(left)", "\"quoted\"", "e.g. this", "U.S.A.", "10:30", "Ｓｔｏｐ　ｓｉｇｎ",
    "Hello\nWorld", "tab\there", "double  space", "I", "A", "a",
)
NUMBERS = (
    "0", "1", "2", "3", "7", "10", "12", "41", "100", "105", "2008", "2010", "1200", "1,200",
    "12,345", "1,200,300", "3.14", "3.140", "3.1400", "3.145", "0.12", "12%", "0.5%", ".5",
    "-5", "-5.2", "1e6", "1E-3", "1.5e3", "$5", "$1,200.50", "7.00", "7.", "50/50", "2,5",
    "1_000",
)
FRAMES = (
    "{}", "{}.", " {} ", "{}!", "**{}**", "The answer is {}.", "the answer is {}",
    "Answer: {}", "It is {}.", "It's {}, I think.", "{}, {}", "{}\n{}", "{} or {}",
    "{} and {}", "({})", "({}).", "{}: because it is bright", "{}) yes", "[{}]", "'{}'",
    "\"{}\"", "so {}", "x = {}", "Thus the final result is {}", "It could be {} or {}.", "{}?",
    "{} {} {} {} {} {}", "<think>{} maybe</think>{}", "{}</think>{}", "<think>{}",
    "<analysis>{}</analysis> {}", "The correct option is {}. Not {}.",
    "{}. Because {} is wrong", "{}; {}", "", "答案是{}", "정답은 {}", "選 {}", "选{}",
    "I choose {}", "A dog {} on the {}", "{},", "{}:",
)
# fmt: on


def draw(benchmark: str, count: int = COUNT) -> list[dict]:
    """Pairs {"reply", "answers" or "answer", "options", "verbatim"} of a benchmark's kind."""
    dice = random.Random(benchmark)
    return [_pair(benchmark, dice) for _ in range(count)]


def _pair(benchmark: str, dice: random.Random) -> dict:
    if benchmark in ("ai2d", "mmmu", "mmstar", "mmbench", "video-mme"):
        letters = LETTERS if benchmark != "mmbench" else LETTERS[: dice.choice((2, 3, 4, 4))]
        options = {letter: _text(dice) for letter in letters}
        said = [
            *letters,
            *letters.lower(),
            *options.values(),
            *(f"{k}. {v}" for k, v in options.items()),
        ]
        return {"reply": _reply(dice, said), "options": options}
    if benchmark == "pope":
        return {"reply": _reply(dice, ["yes", "no", "Yes", "No", "YES", "yes it is"]),
                "answer": dice.choice(("yes", "no", "Yes", "No "))}  # fmt: skip
    kind = dice.choice((NOUNS, NUMBERS))
    first, second = _text(dice, kind), _text(dice, kind)
    said = [first, first, second, _text(dice), first.lower(), first + " ", first.replace(",", "")]
    reply = _reply(dice, said)
    if benchmark in ("gqa", "chartqa"):
        return {"reply": reply, "answer": first}
    if benchmark in ("vqav2", "textvqa"):
        agreed = dice.choice((10, 10, 9, 5, 3, 2, 1))
        return {"reply": reply, "answers": [first] * agreed + [second] * (10 - agreed)}
    answers = [first, second][: dice.choice((1, 1, 2))]
    return {"reply": reply, "answers": answers, "verbatim": dice.random() < 0.3}


def _text(dice: random.Random, kind: tuple | list | None = None) -> str:
    return dice.choice(kind or dice.choice((NOUNS, NUMBERS)))


def _reply(dice: random.Random, said: list[str]) -> str:
    frame = dice.choice(FRAMES) if dice.random() < 0.7 else "{}"
    return frame.format(*(dice.choice(said) for _ in range(frame.count("{}"))))


def record() -> dict[str, list[float]]:
    """Benchmark -> of each drawn pair lmms-eval's score, or where there are options the number of
    the one that it reads, -1 for none, -2 where it draws one."""
    return {name: [_outcome(name, pair) for pair in draw(name)] for name in BENCHMARKS}


def _outcome(benchmark: str, pair: dict) -> float:
    if "options" not in pair:
        score = round(_theirs(benchmark, pair), 6)
        return int(score) if score == int(score) else score
    scores = [_theirs(benchmark, {**pair, "answer": letter}) for letter in pair["options"]]
    return -2 if min(scores) < 0 else scores.index(1) if 1 in scores else -1


def _theirs(benchmark: str, pair: dict) -> float:
    from lmms_eval.api.metrics import anls, exact_match_hf_evaluate
    from lmms_eval.api.reasoning import strip_reasoning_tags
    from lmms_eval.tasks.ai2d.utils import MultiChoiceRegexFilter
    from lmms_eval.tasks.chartqa.utils import chartqa_process_results
    from lmms_eval.tasks.mmmu.utils import evaluate_mmmu, mmmu_process_results
    from lmms_eval.tasks.mmstar.utils import mmstar_process_results
    from lmms_eval.tasks.ocrbench.utils import ocrbench_process_results
    from lmms_eval.tasks.pope.utils import pope_process_results
    from lmms_eval.tasks.textvqa.utils import textvqa_process_results
    from lmms_eval.tasks.videomme.utils import videomme_process_results
    from lmms_eval.tasks.vqav2.utils import vqav2_process_results_val

    reply = pair["reply"]
    if benchmark == "ai2d":
        (reply,) = MultiChoiceRegexFilter(regex_pattern=r"([A-Z])\.").apply([[reply]], [None])
    # The default of the command line's --reasoning_tags, then ConfigurableTask.process_results.
    reply = strip_reasoning_tags(
        reply, [["<think>", "</think>"], ["<analysis>", "</analysis>"]]
    ).strip()
    answers = list(pair.get("answers", []))
    if benchmark in ("gqa", "ai2d"):
        found = exact_match_hf_evaluate(
            [reply], [pair["answer"]], ignore_case=True, ignore_punctuation=True
        )
        return float(found["exact_match"])
    if benchmark == "docvqa":
        return float(anls(references=answers, predictions=[reply])["anls"])
    if benchmark == "vqav2":
        doc = {
            "question_id": 0,
            "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(answers)],
        }
        return float(vqav2_process_results_val(doc, [reply])["exact_match"])
    if benchmark == "textvqa":
        return float(
            textvqa_process_results({"question_id": 0, "answers": answers}, [reply])["exact_match"]
        )
    if benchmark == "chartqa":
        return chartqa_process_results({"type": "human_test", "answer": pair["answer"]}, [reply])[
            "relaxed_overall"
        ]
    if benchmark == "ocrbench":
        doc = {
            "answer": answers,
            "dataset": "HME100k" if pair["verbatim"] else "",
            "question_type": "",
        }
        return float(ocrbench_process_results(doc, [reply])["ocrbench_accuracy"]["score"])
    if benchmark == "pope":
        doc = {"answer": pair["answer"], "question_id": 0}
        return pope_process_results(doc, [reply])["pope_accuracy"]["score"]
    if benchmark == "mmbench":
        return _mmbench(reply, pair)
    unread = (
        "category",
        "l2_category",
        "domain",
        "sub_category",
        "task_type",
        "duration",
        "videoID",
    )
    doc = {**dict.fromkeys(unread, ""), "index": 0, "question_id": 0, "id": "validation_Art_1"}
    doc["answer"] = pair.get("answer")
    if benchmark == "mmstar":
        return mmstar_process_results(doc, [reply])["average"]["score"]
    if benchmark == "video-mme":
        return videomme_process_results(doc, [reply])["videomme_perception_score"]["score"]
    if benchmark == "mmmu":
        return _mmmu_choice(reply, pair)
    # As published: a list of answers is its spelling.
    doc |= {"question_type": "open", "answer": str(answers) if len(answers) > 1 else answers[0]}
    parsed = mmmu_process_results(doc, [reply])["mmmu_acc"]
    return float(evaluate_mmmu([parsed])[1]["acc"])


def _mmmu_choice(reply: str, pair: dict) -> float:
    """Whether right; -1 where a letter is drawn, which shows in draws that differ."""
    from lmms_eval.tasks.mmmu.utils import parse_multi_choice_response

    drawn = set()
    for seed in range(12):
        random.seed(seed)
        drawn.add(parse_multi_choice_response(reply, list(pair["options"]), dict(pair["options"])))
    return -1.0 if len(drawn) > 1 else float(drawn.pop() == pair["answer"])


def _mmbench(reply: str, pair: dict) -> float:
    import pandas as pd
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    row = {"index": 0, "prediction": reply, **{c: pair["options"].get(c, "nan") for c in LETTERS}}
    evaluator = MMBench_Evaluator()
    return float(
        evaluator.eval_sub_data(pd.DataFrame([row]), {0: pair["answer"]}, static_only=True)
    )


if __name__ == "__main__":
    import types
    from importlib.metadata import version

    import lmms_eval

    assert version("lmms-eval") == VERSION, version("lmms-eval")
    # The package of all tasks imports what runs models; each task's scoring does not need it.
    tasks = types.ModuleType("lmms_eval.tasks")
    tasks.__path__ = [str(Path(lmms_eval.__file__).parent / "tasks")]
    sys.modules["lmms_eval.tasks"] = tasks
    # So does the registry (torch), of which the metrics want nothing but the decorators.
    registry: Any = types.ModuleType("lmms_eval.api.registry")
    registry.register_metric = registry.register_aggregation = lambda *a, **k: lambda f: f
    registry.register_filter = registry.register_metric
    sys.modules["lmms_eval.api.registry"] = registry
    Path(sys.argv[1]).write_text(
        json.dumps({"version": VERSION, **record()}, separators=(",", ":")), encoding="utf-8"
    )
