"""Every benchmark on tiny files of its published format, which the tests write."""

import base64
import csv
import io
import json
from pathlib import Path

import PIL.Image
import pytest

from chiasm.core.errors import ConfigError, DataError
from chiasm.core.progress import silent
from chiasm.core.protocols import SamplingParams, StreamChunk
from chiasm.core.sample import Image, Video
from chiasm.eval.harness import harness_metric
from chiasm.eval.runner import evaluate
from chiasm.eval.scoring import METRICS, find_metric
from chiasm.eval.task import MeasuredTask
from chiasm.eval.tasks.mmstar import options_in
from chiasm.eval.tasks.registry import NAMES, download, find_benchmark, read_benchmark
from chiasm.eval.tasks.rows import read_rows
from chiasm.eval.tasks.table import read_table


def png(color: str = "red", size: tuple[int, int] = (8, 4)) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def parquet(path: Path, rows: list[dict]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_table(pyarrow.Table.from_pylist(rows), path)


def tsv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def scores(name: str, samples, replies: list[str], compat=None) -> list[float]:
    """What each reply scores by the benchmark's metric; its images must be readable."""
    own = find_benchmark(name).metric
    metric = harness_metric(own, name) if compat else find_metric(own)
    task = MeasuredTask(name, samples, metric)
    for sample in task.samples():
        for image in sample.images:
            image.load()
    return [
        task.score(sample, reply)["correct"]
        for sample, reply in zip(task.samples(), replies, strict=True)
    ]


def test_vqav2(tmp_path):
    ten = [{"answer": a, "answer_id": i} for i, a in enumerate(["two"] * 7 + ["3"] * 3)]
    put(
        tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json",
        {"questions": [{"image_id": 42, "question": "How many?", "question_id": 42000}]},
    )
    put(
        tmp_path / "v2_mscoco_val2014_annotations.json",
        {
            "annotations": [
                {
                    "question_id": 42000,
                    "image_id": 42,
                    "multiple_choice_answer": "two",
                    "answer_type": "number",
                    "answers": ten,
                }
            ]
        },
    )
    put(tmp_path / "val2014/COCO_val2014_000000000042.jpg", png())
    (sample,) = read_benchmark("vqav2", tmp_path)
    assert sample.id == "42000"
    assert sample.meta["category"] == "number"
    assert sample.turns[0].text == ("How many?\nAnswer the question using a single word or phrase.")
    assert scores("vqav2", [sample], ["2."]) == [1.0]
    assert scores("vqav2", [sample], ["three"]) == [pytest.approx(0.9)]


def test_vqav2_of_the_hub(tmp_path):
    row = {
        "question_id": 7,
        "question": "What?",
        "multiple_choice_answer": "dog",
        "answer_type": "other",
        "answers": [{"answer": "dog", "answer_id": i} for i in range(10)],
        "image": {"bytes": png(), "path": "x.jpg"},
    }
    parquet(tmp_path / "data/validation-00000-of-00001.parquet", [row])
    assert scores("vqav2", read_benchmark("vqav2", tmp_path), ["a dog"]) == [1.0]


def test_gqa(tmp_path):
    rows = {
        "201": {
            "imageId": "n1",
            "question": "What?",
            "answer": "pipe",
            "types": {"structural": "query"},
        }
    }
    put(tmp_path / "testdev_balanced_questions.json", rows)
    put(tmp_path / "images/n1.jpg", png())
    samples = read_benchmark("gqa", tmp_path)
    assert samples[0].meta["category"] == "query"
    assert scores("gqa", samples, ["Pipe."]) == [1.0]


def test_gqa_of_the_hub(tmp_path):
    row = {"id": "201", "imageId": "n1", "question": "What?", "answer": "pipe"}
    parquet(tmp_path / "testdev_balanced_instructions/testdev-00000-of-00001.parquet", [row])
    image = {"id": "n1", "image": {"bytes": png(), "path": None}}
    parquet(tmp_path / "testdev_balanced_images/testdev-00000-of-00001.parquet", [image])
    assert scores("gqa", read_benchmark("gqa", tmp_path), ["pipe"]) == [1.0]


def test_textvqa(tmp_path):
    row = {"image_id": "ab", "question_id": 1, "question": "Brand?", "answers": ["nokia"] * 10}
    put(tmp_path / "TextVQA_0.5.1_val.json", {"data": [row]})
    put(tmp_path / "train_images/ab.jpg", png())
    samples = read_benchmark("textvqa", tmp_path)
    assert samples[0].turns[-1].text == "nokia"
    assert scores("textvqa", samples, ["Nokia"]) == [1.0]


def test_docvqa(tmp_path):
    row = {
        "questionId": 3,
        "question": "Date?",
        "image": "documents/a.png",
        "answers": ["12 May", "May 12"],
    }
    put(tmp_path / "spdocvqa/val_v1.0_withQT.json", {"data": [{**row, "question_types": ["form"]}]})
    put(tmp_path / "spdocvqa/documents/a.png", png())
    samples = read_benchmark("docvqa", tmp_path)
    assert samples[0].meta["category"] == "form"
    assert scores("docvqa", samples, ["may 12"]) == [1.0]
    assert scores("docvqa", samples, ["12 Mai"]) == [pytest.approx(5 / 6)]


def test_chartqa(tmp_path):
    put(
        tmp_path / "test/test_human.json", [{"imgname": "1.png", "query": "When?", "label": "2010"}]
    )
    put(
        tmp_path / "test/test_augmented.json",
        [{"imgname": "1.png", "query": "Much?", "label": "40"}],
    )
    put(tmp_path / "test/png/1.png", png())
    samples = read_benchmark("chartqa", tmp_path)
    assert [s.meta["category"] for s in samples] == ["augmented", "human"]
    assert scores("chartqa", samples, ["41%", "2008"]) == [1.0, 0.0]
    assert scores("chartqa", samples, ["41%", "2008"], "lmms-eval") == [0.0, 1.0]


def test_ai2d(tmp_path):
    question = {"questionId": "q1", "answerTexts": ["leaf", "root"], "correctAnswer": 1}
    for name in ("10", "11"):
        questions = {"What is it?": question}
        put(
            tmp_path / f"questions/{name}.png.json",
            {"imageName": f"{name}.png", "questions": questions},
        )
        put(tmp_path / f"images/{name}.png", png())
    put(tmp_path / "ai2d_test_ids.csv", "11\n")
    samples = read_benchmark("ai2d", tmp_path)
    assert len(samples) == 1
    assert "A. leaf\nB. root\n" in samples[0].turns[0].text
    assert scores("ai2d", samples, ["The answer is B"]) == [1.0]


def test_mmmu(tmp_path):
    choice = {
        "id": "validation_Art_1",
        "question": "Is <image 1> or <image 2> older?",
        "options": "['the first', \"it's the second\"]",
        "answer": "B",
        "question_type": "multiple-choice",
        "image_1": {"bytes": png("red"), "path": None},
        "image_2": {"bytes": png("blue"), "path": None},
    }
    free = {
        **choice,
        "id": "validation_Art_2",
        "question": "<image 1> How many?",
        "question_type": "open",
    }
    parquet(
        tmp_path / "Art/validation-00000-of-00001.parquet",
        [choice, {**free, "answer": "['12', 'twelve']"}],
    )
    samples = read_benchmark("mmmu", tmp_path)
    parts = samples[0].turns[0].content
    assert [type(p).__name__ for p in parts] == ["Text", "Image", "Text", "Image", "Text"]
    assert samples[0].images[1].load().getpixel((0, 0)) == (0, 0, 255)
    assert {s.meta["category"] for s in samples} == {"Art"}
    assert scores("mmmu", samples, ["B", "there are 12 of them"]) == [1.0, 1.0]
    assert scores("mmmu", samples, ["unclear", "there are 112"]) == [0.0, 0.0]


def test_mmstar(tmp_path):
    words = "Which?\nOptions: A: a, b, B: two\nlines, C: 3, D: none"
    assert options_in(words) == {"A": "a, b", "B": "two\nlines", "C": "3", "D": "none"}
    row = {"index": 0, "question": words, "answer": "C", "category": "math", "image": png()}
    parquet(tmp_path / "mmstar.parquet", [row])
    assert scores("mmstar", read_benchmark("mmstar", tmp_path), ["C: 3"]) == [1.0]


def test_mmbench(tmp_path):
    row = {
        "index": 5,
        "question": "What?",
        "hint": "nan",
        "A": "dog",
        "B": "cat",
        "C": "",
        "D": "nan",
    }
    row |= {"answer": "B", "category": "identity", "image": base64.b64encode(png()).decode()}
    tsv(
        tmp_path / "MMBench_DEV_EN.tsv",
        [row, {**row, "index": 1000005, "image": "5", "answer": "A"}],
    )
    samples = read_benchmark("mmbench", tmp_path)
    assert samples[0].meta["options"] == {"A": "dog", "B": "cat"}
    assert "nan" not in samples[0].turns[0].text
    assert scores("mmbench", samples, ["B", "B"]) == [1.0, 0.0]


def test_pope(tmp_path):
    for kind in ("random", "popular"):
        rows = [
            {"question_id": i, "image": "a.jpg", "text": "Is there a dog?", "label": label}
            for i, label in enumerate(["yes", "no"])
        ]
        put(tmp_path / f"coco_pope_{kind}.json", "\n".join(map(json.dumps, rows)))
    put(tmp_path / "val2014/a.jpg", png())
    samples = read_benchmark("pope", tmp_path)
    assert [s.meta["category"] for s in samples] == ["popular"] * 2 + ["random"] * 2
    assert scores("pope", samples, ["Yes.", "yes", "No", "No, none"]) == [1, 0, 0, 1]
    task = MeasuredTask("pope", samples, find_metric("yes-no"))
    found = task.summary([(sample, "Yes") for sample in task.samples()])
    assert found == {"precision": 0.5, "recall": 1, "f1": pytest.approx(2 / 3), "yes_ratio": 1}


def test_ocrbench(tmp_path):
    common = {"question": "Text?", "type": "Regular", "image_path": "a.jpg"}
    rows = [
        {**common, "dataset_name": "IIIT5K", "id": 1, "answers": ["Stop"]},
        {**common, "dataset_name": "HME100k", "id": 2, "answers": "X ^ 2"},
    ]
    put(tmp_path / "OCRBench.json", rows)
    put(tmp_path / "OCRBench_Images/a.jpg", png())
    samples = read_benchmark("ocrbench", tmp_path)
    assert scores("ocrbench", samples, ["It says STOP.", "X^2"]) == [1.0, 1.0]
    assert scores("ocrbench", samples, ["It says STOP.", "x^2"]) == [1.0, 0.0]


def test_screenspot(tmp_path):
    row = {
        "img_filename": "a.png",
        "bbox": [2, 1, 4, 2],
        "instruction": "close",
        "data_type": "icon",
    }
    put(tmp_path / "screenspot_web.json", [row])
    put(tmp_path / "screenspot_imgs/a.png", png(size=(8, 4)))
    samples = read_benchmark("screenspot", tmp_path)
    assert samples[0].meta["box"] == [0.25, 0.25, 0.75, 0.75]
    assert samples[0].meta["category"] == "web icon"
    assert scores("screenspot", samples, ["(0.5, 0.5)"]) == [1.0]
    assert scores("screenspot", samples, ["(0.9, 0.5)"]) == [0.0]
    assert scores("screenspot", samples, [samples[0].turns[-1].text]) == [1.0]


@pytest.mark.parametrize("pixels", [False, True])
def test_screenspot_of_the_hub(tmp_path, pixels):
    box = [2.0, 1.0, 6.0, 3.0] if pixels else [0.25, 0.25, 0.75, 0.75]
    row = {"bbox": box, "instruction": "x", "data_type": "text", "data_source": "ios"}
    row["image"] = {"bytes": png(size=(8, 4)), "path": None}
    parquet(tmp_path / "data/test-00000-of-00001.parquet", [row])
    (sample,) = read_benchmark("screenspot", tmp_path)
    assert sample.meta["box"] == [0.25, 0.25, 0.75, 0.75]


@pytest.mark.parametrize("name", ["coco-captions", "flickr30k"])
def test_captions_of_karpathys_split(tmp_path, name):
    row = {"imgid": 1, "filename": "a.jpg", "sentences": [{"raw": "A dog ."}, {"raw": "the dog"}]}
    if name == "coco-captions":
        row["filepath"] = "val2014"
    rows = [{**row, "split": "test"}, {**row, "split": "train", "imgid": 2}]
    put(tmp_path / f"dataset_{name.removesuffix('-captions')}.json", {"images": rows})
    folder = "val2014" if name == "coco-captions" else "flickr30k-images"
    put(tmp_path / folder / "a.jpg", png())
    samples = read_benchmark(name, tmp_path)
    assert len(samples) == 1
    assert samples[0].meta["captions"] == ["A dog .", "the dog"]
    assert scores(name, samples, ["a dog"]) == [1.0]
    task = MeasuredTask(name, samples, find_metric("caption"))
    assert set(task.summary([(task.samples()[0], "a dog")])) == {"cider", "bleu-1", "bleu-4"}


def test_captions_of_coco(tmp_path):
    found = {
        "images": [{"id": 3, "file_name": "3.jpg"}],
        "annotations": [{"image_id": 3, "caption": "a cat"}, {"image_id": 3, "caption": "cat"}],
    }
    put(tmp_path / "annotations/captions_val2017.json", found)
    put(tmp_path / "val2017/3.jpg", png())
    assert scores("coco-captions", read_benchmark("coco-captions", tmp_path), ["a cat"]) == [1.0]


@pytest.mark.parametrize("flat", [False, True])
def test_imagenet(tmp_path, flat):
    put(tmp_path / "LOC_synset_mapping.txt", "n01 tench, Tinca tinca\nn02 goldfish\n")
    if flat:
        put(
            tmp_path / "LOC_val_solution.csv",
            "ImageId,PredictionString\nv1,n01 1 2 3 4\nv2,n02 1 2 3 4\n",
        )
        put(tmp_path / "val/v1.JPEG", png())
        put(tmp_path / "val/v2.JPEG", png())
    else:
        put(tmp_path / "val/n01/v1.JPEG", png())
        put(tmp_path / "val/n02/v2.JPEG", png())
    samples = read_benchmark("imagenet", tmp_path)
    assert [s.meta["label"] for s in samples] == [0, 1]
    assert [s.turns[-1].text for s in samples] == ["tench", "goldfish"]
    assert scores("imagenet", samples, ["tinca tinca", "tench"]) == [1.0, 0.0]


def test_video_mme(tmp_path):
    row = {"videoID": "abc", "question_id": "1-1", "question": "What?", "answer": "C"}
    row |= {"options": ["A. One.", "B. Two.", "C. Three.", "D. Four."], "duration": "short"}
    parquet(tmp_path / "videomme/test-00000-of-00001.parquet", [row])
    samples = read_benchmark("video-mme", tmp_path)
    assert samples[0].turns[0].content[0] == Video(tmp_path / "data/abc.mp4", "Video-MME 1-1")
    assert samples[0].meta["options"]["C"] == "Three."
    assert scores("video-mme", samples, ["C. Three."]) == [1.0]


def test_geneval(tmp_path):
    row = {
        "tag": "colors",
        "include": [{"class": "dog", "count": 1, "color": "red"}],
        "prompt": "a red dog",
    }
    put(tmp_path / "prompts/evaluation_metadata.jsonl", json.dumps(row) + "\n")
    (sample,) = read_benchmark("geneval", tmp_path)
    assert sample.turns[0].text == "a red dog"
    assert sample.meta["include"] == row["include"]
    assert sample.meta["category"] == "colors"


def test_every_benchmark_has_a_metric_and_says_what_it_is_read_from(tmp_path):
    for name in NAMES:
        definition = find_benchmark(name)
        assert definition.metric in METRICS or definition.metric == "drawing"
        with pytest.raises(DataError, match="no such folder; put"):
            read_benchmark(name, tmp_path / "nowhere")
        with pytest.raises(DataError, match=r"read from|as it is published|no question"):
            read_benchmark(name, tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'textvqa'"):
        find_benchmark("text-vqa")
    with pytest.raises(ConfigError, match="not on the hub"):
        download("geneval", tmp_path)


def test_another_format_is_told_in_one_line(tmp_path):
    put(tmp_path / "OCRBench.json", [{"question": "x"}])
    with pytest.raises(DataError, match=r"not ocrbench as it is published \(KeyError"):
        read_benchmark("ocrbench", tmp_path)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "tsv", "csv", "parquet"])
def test_any_table_in_one_line(tmp_path, suffix):
    rows = [
        {"q": "What?", "gold": "red", "pic": "a.png"},
        {"q": "And?", "gold": "blue", "pic": "a.png"},
    ]
    put(tmp_path / "a.png", png())
    file = tmp_path / f"mine.{suffix}"
    if suffix == "jsonl":
        put(file, "\n".join(map(json.dumps, rows)))
    elif suffix == "json":
        put(file, rows)
    elif suffix == "parquet":
        parquet(file, rows)
    else:
        with file.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, rows[0], delimiter="\t" if suffix == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    samples = read_table(file, "question=q answer=gold, image=pic")
    assert [s.turns[-1].text for s in samples] == ["red", "blue"]
    assert samples[0].images[0].load().size == (8, 4)
    task = MeasuredTask("mine", samples, find_metric("exact"))
    assert [task.score(s, "Red.")["correct"] for s in task.samples()] == [1, 0]


def test_tables_with_options_lists_and_base64(tmp_path):
    image = base64.b64encode(png()).decode()
    rows = [
        {"question": "What?", "answer": "cat", "choices": ["dog", "cat"], "image": [image, image]},
        {"question": "And?", "answer": "A", "A": "x", "B": "y"},
        {"question": "Free?", "answer": ["one", "1"]},
    ]
    file = put(tmp_path / "mine.jsonl", "\n".join(map(json.dumps, rows)))
    first, second, third = read_table(file)
    assert first.turns[-1].text == "B"
    assert len(first.images) == 2
    assert first.images[0].load().size == (8, 4)
    assert second.meta["options"] == {"A": "x", "B": "y"}
    assert third.meta["answers"] == ["one", "1"]


def test_mistakes_in_a_table_are_named(tmp_path):
    def table(row: dict, columns: str = ""):
        return read_table(put(tmp_path / "t.jsonl", json.dumps(row)), columns)

    with pytest.raises(ConfigError, match="answer=NAME"):
        table({"question": "x"})
    with pytest.raises(ConfigError, match="no column 'gld'; did you mean 'gold'"):
        table({"question": "x", "gold": "y"}, "answer=gld")
    with pytest.raises(ConfigError, match="WHAT=COLUMN"):
        table({"question": "x", "gold": "y"}, "reply=gold")
    with pytest.raises(ConfigError, match="no record has an answer"):
        table({"question": "x", "answer": ""})
    with pytest.raises(DataError, match=r"t\.jsonl:2: not JSON"):
        list(read_rows(put(tmp_path / "t.jsonl", '{"a": 1}\n{')))
    with pytest.raises(DataError, match="not a table"):
        list(read_rows(put(tmp_path / "t.txt", "x")))
    with pytest.raises(DataError, match="neither a list"):
        list(read_rows(put(tmp_path / "t.json", '{"a": 1}')))
    with pytest.raises(ConfigError, match="unknown metric 'anl'; did you mean 'anls'"):
        find_metric("anl")


def test_long_fields_leave_the_process_as_it_was(tmp_path):
    limit = csv.field_size_limit()
    tsv(tmp_path / "t.tsv", [{"question": "x", "answer": "y", "image": "A" * 200_000}])
    assert len(next(iter(read_rows(tmp_path / "t.tsv")))["image"]) == 200_000
    assert csv.field_size_limit() == limit


def test_the_runner_reports_a_metric_with_its_summary(tmp_path):
    samples = read_table(
        put(
            tmp_path / "t.jsonl",
            "\n".join(
                json.dumps({"question": f"{i}?", "answer": [answer, f"the {answer}"]})
                for i, answer in enumerate(["dog runs", "cat sits", "cow eats grass"])
            ),
        )
    )
    task = MeasuredTask("t", samples, find_metric("caption"))

    def respond(asked, sampling):
        for i, sample in enumerate(asked):
            yield i, StreamChunk(sample.meta["answers"][0], finish="stop")

    result = evaluate(task, respond, SamplingParams(), show=silent)
    assert (result.measure, result.accuracy, result.n) == ("ROUGE-L", 1.0, 3)
    assert result.metrics["cider"] > 1
    assert result.to_dict()["metrics"]["bleu-1"] == 1.0


@pytest.mark.parametrize(
    ("metric", "meta", "reply", "correct"),
    [
        ("box", {"reference": "", "box": [0, 0, 1, 1]}, "[0, 0, 0.5, 1]", 1.0),
        ("box", {"reference": "", "box": [0, 0, 1, 1]}, "[0, 0, 0.4, 1]", 0.0),
        ("box", {"reference": "", "box": [0, 0, 1, 1]}, "no box", 0.0),
        ("click", {"reference": "", "box": [0, 0, 0.5, 1], "units": 1000}, "(400, 400)", 1.0),
        ("click", {"box": [0, 0, 0.5, 1], "units": "pixels", "size": [8, 4]}, "6 2", 0.0),
        ("transcript", {"reference": "abcd"}, "abxd", 0.75),
        ("relaxed", {"reference": "2010"}, "2008", 0.0),
        ("exact", {"reference": "a", "answers": ["a cat", "two"]}, "2", 1.0),
    ],
)  # fmt: skip
def test_metrics_by_name(metric, meta, reply, correct):
    assert find_metric(metric).score(meta, reply)["correct"] == pytest.approx(correct)


def test_images_of_a_benchmark_are_not_opened_while_it_is_read(tmp_path):
    row = {"image_id": "missing", "question_id": 1, "question": "?", "answers": ["x"] * 10}
    put(tmp_path / "TextVQA_0.5.1_val.json", {"data": [row]})
    (sample,) = read_benchmark("textvqa", tmp_path)
    assert isinstance(sample.images[0], Image)
    with pytest.raises(DataError, match=r"missing\.jpg: no such image"):
        sample.images[0].load()
