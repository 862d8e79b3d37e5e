"""The label linter: every token shown once, learnt ones told apart, barren samples refused."""

import io

import pytest
from rich.console import Console

from chiasm import cli
from chiasm.core.batch import IGNORE
from chiasm.core.errors import DataError
from chiasm.core.sample import Message, Sample, Text, assistant, user
from chiasm.data.formats.messages import write_messages
from chiasm.data.labels import check, lint, spans
from chiasm.data.processor import Processor
from chiasm.data.template import RoleTemplate
from chiasm.data.text import train_bpe


class NoImages:
    vocabulary = None
    codes_per_image = 0

    def encode(self, images):
        return []


@pytest.fixture
def processor():
    return Processor(
        RoleTemplate(train_bpe(["what colour is it? red circle yes"], 300)), NoImages()
    )


DIALOGUE = Sample(
    (
        Message("system", (Text("be brief"),)),
        user("what colour?"),
        assistant("red"),
        user("sure?"),
        assistant("yes"),
    ),
    "good",
)
BRANCHES = Sample(
    (user("what?"), assistant("red"), user("is it?"), assistant("yes")), "two", independent=True
)
EMPTY = Sample((user("what?"), assistant("")), "empty")
SILENT = Sample((user("what?"),), "silent")


def printed(samples, processor, colour=False, show=5):
    out = io.StringIO()
    system = "standard" if colour else None
    console = Console(file=out, force_terminal=colour, color_system=system, width=200)
    try:
        lint(samples, processor, console, show)
    except DataError as error:
        return out.getvalue(), str(error)
    return out.getvalue(), ""


def test_every_token_is_in_one_span_and_the_replies_are_the_learnt_ones(processor):
    for sample in (DIALOGUE, BRANCHES):
        encoded = processor.encode(sample)
        found = spans(encoded, processor)
        assert sum(span.tokens for span in found) == len(encoded)
        learnt = [span for span in found if span.kind == "learnt"]
        assert [span.text for span in learnt] == ["red</s>", "yes</s>"]
        assert sum(span.tokens for span in learnt) == (encoded.labels != IGNORE).sum()
        assert "".join(s.text for s in found) == processor.template.tokenizer.decode(
            encoded.input_ids.tolist(), skip_special_tokens=False
        )


def test_learnt_words_are_coloured_or_in_brackets(processor):
    plain, error = printed([DIALOGUE], processor)
    assert error == ""
    assert "⟦red</s>⟧" in plain
    assert "⟦yes</s>⟧" in plain
    assert "⟦sure" not in plain
    assert "1 samples" in plain
    coloured, _ = printed([DIALOGUE], processor, colour=True)
    assert "\x1b[1;32mred</s>" in coloured
    assert "⟦" not in coloured


def test_samples_that_teach_nothing_are_listed_and_refused(processor):
    text, error = printed([DIALOGUE, EMPTY, SILENT, BRANCHES], processor, show=1)
    assert "2 of 4 samples teach nothing" in error
    assert "sample 'empty': its replies are empty" in text
    assert "sample 'silent': no assistant words to learn from" in text
    assert "— sample 'good'" in text
    assert "— sample 'two'" not in text  # --show 1
    problems = {s.id: p for s, _, p in check([DIALOGUE, EMPTY, SILENT, BRANCHES], processor)}
    assert [name for name, problem in problems.items() if problem] == ["empty", "silent"]


def test_on_the_command_line(tmp_path, capsys):
    write_messages([DIALOGUE, BRANCHES] * 6, tmp_path / "good" / "train.jsonl")
    (tmp_path / "good" / "test.jsonl").write_text((tmp_path / "good" / "train.jsonl").read_text())
    command = ["data", "inspect", str(tmp_path / "good"), "--labels", "--model", "unified_nano"]
    cli.main(command)
    out = capsys.readouterr().out
    assert "⟦red</s>⟧" in out
    assert "12 samples" in out
    write_messages([DIALOGUE, EMPTY], tmp_path / "bad" / "train.jsonl")
    (tmp_path / "bad" / "test.jsonl").write_text((tmp_path / "good" / "train.jsonl").read_text())
    with pytest.raises(SystemExit) as caught:
        cli.main(["data", "inspect", str(tmp_path / "bad"), *command[3:]])
    assert caught.value.code == 2
    assert "1 of 2 samples teach nothing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*command[:4], "--model", "encoder"])
    assert "learns from images alone" in capsys.readouterr().err
