"""The server's greedy answers are those that chiasm eval gave of the same images."""

import json
import os
from pathlib import Path

import pytest
import torch
from serve_toys import Background, drawing_toy, image_part, pixels, reading_toy

from chiasm.core.batch import pack
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data import easy_vqa
from chiasm.hub import mllm, unified
from chiasm.mllm.config import MLLMConfig, MLPConfig
from chiasm.recipes.eval_task import Asked
from chiasm.recipes.evaluate import How, ask_model
from chiasm.recipes.serve_command import served

DEMO = Path(os.environ.get("CHIASM_DEMO", Path(__file__).parents[2] / "runs/demo"))
COLOURS = {"red": (255, 0, 0), "circle": (0, 0, 255), "what colour": (0, 255, 0)}


def pairs(folder):
    """Two questions about each of six images: to learn from, and as a file to be asked from."""
    samples, lines = [], []
    for number, (word, colour) in enumerate([*COLOURS.items()] * 2):
        file = folder / f"{number}.png"
        image = pixels(number, (8, 8))
        image.paste(colour, (0, 0, 8, 8 - number))
        image.save(file)
        asked = ("what is it?", word), ("red?", str(word == "red").lower())
        turns = [user(Image(file), asked[0][0]), assistant(asked[0][1])]
        turns += [user(asked[1][0]), assistant(asked[1][1])]
        samples.append(Sample(tuple(turns), str(number), independent=True))
        for words, reply in asked:
            parts = [{"type": "image"}, {"type": "text", "text": words}]
            said = [("user", parts), ("assistant", [{"type": "text", "text": reply}])]
            messages = [{"role": role, "content": content} for role, content in said]
            lines.append(json.dumps({"images": [file.name], "messages": messages}))
    file = folder / "test.jsonl"
    file.write_text("\n".join(lines))
    return samples, file


def taught(respond, samples, steps=100):
    """Train until it answers; the loss at the end."""
    model = respond.model.train()
    batch = pack([[respond.processor.encode(sample)] for sample in samples])
    # The encoders stay as they are: an AdamW step is only on what gets a gradient.
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = model.loss(batch)
        (loss.sum / loss.count).backward()
        optimiser.step()
    model.eval()
    return (loss.sum / loss.count).item()


@pytest.fixture(scope="module", params=["draws", "reads"])
def run(request, tmp_path_factory):
    """(folder of a trained toy, its test set)"""
    folder = tmp_path_factory.mktemp(request.param)
    samples, file = pairs(folder)
    if request.param == "draws":
        respond = drawing_toy()
        loss = taught(respond, samples)
        unified.save(folder / "run", respond.model, respond.processor)
    else:
        respond = reading_toy(folder / "llama")
        loss = taught(respond, samples)
        config = MLLMConfig(
            language_model=str(folder / "llama"), projector=MLPConfig(merge=2), lora=None
        )
        mllm.save(folder / "run", respond.model, respond.processor, config)
    assert loss < 0.3
    return folder / "run", file


def evaluated(run, task, file):
    """What chiasm eval wrote: rows with image, question and reply."""
    ask_model(run, Asked(task), Asked(task).question_task(), How(), file)
    return [json.loads(line) for line in file.read_text().splitlines()]


def asked_of_the_server(run, rows):
    def ask(row):
        image = image_part(Image(Path(row["image"])).load())
        parts = [image, {"type": "text", "text": row["question"]}]
        wanted = {"messages": [{"role": "user", "content": parts}], "max_tokens": 32}
        return client.chat.completions.create(model="it", **wanted).choices[0].message.content

    with Background({"it": served(run)}) as running:
        client = running.client()
        return [ask(row) for row in rows]


def test_of_models_trained_here(run, tmp_path):
    folder, task = run
    rows = evaluated(folder, str(task), tmp_path / "predictions.jsonl")
    assert len(rows) == 12
    assert sum(row["correct"] for row in rows) >= 10  # it has learnt to look
    assert len({row["reply"] for row in rows}) > 2
    assert asked_of_the_server(folder, rows) == [row["reply"] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("route", ["mllm", "unified"])
def test_of_the_demo_s_models(route):
    if not (DEMO / route / "model.json").exists():
        pytest.skip("needs 'make demo', or CHIASM_DEMO")
    easy_vqa.load("test")
    rows = [json.loads(line) for line in (DEMO / route / "predictions.jsonl").open()][:100]
    assert asked_of_the_server(DEMO / route, rows) == [row["reply"] for row in rows]
