"""The command line. Nothing heavy is imported before the arguments are known to be right."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional, arg

from chiasm.core.errors import ChiasmError, ConfigError, InterruptedRunError
from chiasm.data import collect_commands
from chiasm.recipes import data_commands

app = tyro.extras.SubcommandApp()
data = tyro.extras.SubcommandApp()
Overrides = dict[str, str]


@app.command
def demo(out: Path = Path("runs/demo"), fast: bool = False, seed: int = 0) -> None:
    """Train both routes on easy-VQA, evaluate them on the same test split, write a report.

    Args:
        out: Folder for the models, summary.json and report.html.
        fast: Tiny settings that only show the path works (under 90 seconds; quality not claimed).
        seed: Seed of everything random.
    """
    from chiasm.recipes.demo import run

    report = run(out, fast, seed)
    Console().print(f"\nThe report: [bold]{escape(str(report))}[/bold]")


@app.command
def train(
    recipe: Positional[str],
    out: Path | None = None,
    data: str | None = None,
    resume: Literal["no", "yes", "auto"] = "no",
    show: bool = False,
) -> None:
    """Train a recipe; any field of it can be set: --stages.0.steps 500 --model.width 384.

    Args:
        recipe: encoder, tokenizer, mllm_smol, unified_nano, llava15_7b, paligemma_3b, nanovlm_222m,
            smolvlm_256m, or a Python file with recipe().
        out: Folder of the run (default runs/RECIPE).
        data: "easy-vqa", hf:ORG/NAME, or a file or folder in a known format (see data import),
            after "FORMAT:" where it is not seen by itself.
        resume: Continue from the newest complete checkpoint in the folder (--resume alone); "auto"
            starts, continues or leaves alone what is finished, as a restarted job wants it.
        show: Print the recipe's fields with their values and stop.
    """
    from chiasm.core.config import leaves
    from chiasm.recipes.recipe import find, with_overrides

    chosen = with_overrides(find(recipe), _overrides)
    if data is not None:
        chosen = replace(chosen, data=data)
    if show:
        for name, value in leaves(chosen).items():
            Console().print(f"--{name} [bold]{escape(str(value))}[/bold]", highlight=False)
        return
    from chiasm.recipes.run import run

    folder = out or Path("runs") / Path(recipe).stem
    ledger = run(chosen, folder, resume)
    Console().print(f"{folder}: {ledger.seconds:.0f} s, {ledger.flops:.3g} FLOPs")


@app.command
def precompute(
    tokenizer: Positional[Path], out: Positional[Path], data: str = "easy-vqa", shard: int = 10_000
) -> None:
    """Encode a data set's training pictures once; use with train unified_nano --model.tokens OUT.

    Args:
        tokenizer: Folder of a trained image tokenizer.
        out: Folder for the codes.
        data: As of train.
        shard: Pictures a file.
    """
    from chiasm.recipes.tokens import precompute

    precompute(tokenizer, data, out, shard)


@app.command
def plan(recipe: Positional[str], plot: bool = False, out: Path | None = None) -> None:
    """What a recipe will do, before it runs; any field can be set as in train.

    Args:
        recipe: As of train.
        plot: Draw the learning rate of every stage, in the terminal and as a picture.
        out: The picture, an SVG (default RECIPE-rates.svg).
    """
    from chiasm.recipes.rates import plan_command
    from chiasm.recipes.recipe import find, with_overrides

    chosen = with_overrides(find(recipe), _overrides)
    plan_command(chosen, plot, out or Path(f"{Path(recipe).stem}-rates.svg"))


@app.command
def eval(
    run: Positional[Path],
    task: str = "easy-vqa",
    limit: int = 2000,
    seed: int = 0,
    blind: bool = False,
    out: Path | None = None,
    metric: str = "",
    columns: str = "",
    data: Path | None = None,
    split: str = "",
    download: bool = False,
    compat: Literal["lmms-eval"] | None = None,
    by_likelihood: bool = False,
    labels: Path | None = None,
    prompts: tuple[str, ...] = (),
    count: int = 4,
    judge: Path | None = None,
) -> None:
    """Ask a model every question of a test set; its score with an interval, parse failures.

    Args:
        run: Folder of a trained model of either route; or a contrastive encoder, ours or one of
            transformers (CLIP, SigLIP), for zero-shot classification and retrieval.
        task: A benchmark (vqav2, gqa, textvqa, docvqa, chartqa, ai2d, mmmu, mmstar, mmbench, pope,
            ocrbench, screenspot, coco-captions, flickr30k, imagenet, video-mme, geneval),
            "easy-vqa", hf:ORG/NAME, a file or folder in a known format (its test half), or a .tsv,
            .csv, .json or .parquet table.
        limit: At most this many questions, whole pictures drawn by the seed; 0 for all.
        seed: Seed of that draw.
        blind: Give every question the picture of another: what is still right was guessed.
        out: File for the predictions (default RUN/predictions-TASK.jsonl).
        metric: exact, vqa, anls, relaxed, choice, contains, yes-no, caption, transcript, click,
            box, perplexity; by default the task's own.
        columns: Of a table, where they are not called as usual: "question=q answer=gold".
        data: Folder of the benchmark's published files (default data/TASK).
        split: Split of the benchmark (default the one that has answers).
        download: Fetch the benchmark from the Hugging Face hub into that folder first.
        compat: Repeat a harness's habits, defects included, to compare with its numbers.
        by_likelihood: Choose the likeliest of a question's options, or of --labels, instead of
            generating.
        labels: File with one label or class name a line (default classes.txt beside the data, else
            the test set's answers).
        prompts: For zero-shot, texts with {} for the class's name (default CLIP's ensemble of 7).
        count: Pictures a prompt, for tasks that are drawn.
        judge: A contrastive encoder that gives drawn pictures a CLIPScore.
    """
    from chiasm.eval.zero_shot import PROMPTS
    from chiasm.recipes.asked import Asked
    from chiasm.recipes.evaluate import evaluate_command

    asked = Asked(task, data, split, download, metric, columns, compat, limit, seed)
    evaluate_command(
        run,
        asked,
        blind=blind,
        out=out,
        by_likelihood=by_likelihood,
        labels=labels,
        prompts=prompts or PROMPTS,
        count=count,
        judge=judge,
    )


@app.command
def chat(
    run: Positional[Path],
    image: Positional[Path | None] = None,
    question: Positional[str | None] = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_tokens: int = 64,
) -> None:
    """Ask about a picture; without a question, an interactive session.

    Args:
        run: Folder of a trained model of either route.
        image: A picture.
        question: What to ask about it.
        temperature: 0 is greedy.
        top_k: Choose among the k likeliest tokens only (0: all).
        top_p: Choose among the likeliest tokens that make up this probability.
        max_tokens: Longest reply.
    """
    from chiasm.core.protocols import Sampling
    from chiasm.recipes.talk import ask, session

    sampling = Sampling(temperature, top_k, top_p, max_tokens=max_tokens)
    if question is None:
        session(run, image, sampling)
    else:
        ask(run, image, question, sampling)


@app.command
def merge(run: Positional[Path], out: Positional[Path]) -> None:
    """Fold adapters that were saved alone into the language model, as a run of its own.

    Args:
        run: Folder of an MLLM trained with --model.lora.merged false.
        out: Folder for the merged model.
    """
    from chiasm.hub.mllm import merge as merge_run

    merge_run(run, out)
    Console().print(f"{out}: adapters merged; {out / 'language'} is a checkpoint of transformers")


@app.command
def export(run: Positional[Path], out: Positional[Path], to: Literal["hf", "gguf"] = "hf") -> None:
    """Write a model of the MLLM route as a published checkpoint, read it back and compare.

    Args:
        run: Folder of a trained MLLM, or of a published checkpoint.
        out: Folder for the checkpoint; new or empty.
        to: "hf" for transformers and what reads its layouts (vLLM); "gguf" for llama.cpp.
    """
    from chiasm.hub.export import export as write

    Console().print(f"{out}: {write(run, out, to)}", soft_wrap=True, highlight=False)


@app.command
def draw(
    run: Positional[Path],
    text: Positional[str],
    out: Annotated[Path, arg(aliases=["-o"])] = Path("out.png"),
    count: int = 1,
    best_of: int = 4,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 0.95,
    guidance: float = 1.5,
    seed: int = 0,
) -> None:
    """Draw a picture from text with a unified model.

    Args:
        run: Folder of a trained unified model.
        text: What to draw.
        out: The picture; with a count above 1, a row of pictures.
        count: How many.
        best_of: Draw anew, at most so often, until the model itself would describe the picture so,
            and show the one that comes nearest; 1 shows the first.
        temperature: 0 is greedy: the same picture every time.
        top_k: Choose among the k likeliest codes only (0: all).
        top_p: Choose among the likeliest codes that make up this probability.
        guidance: Scale of classifier-free guidance; 1 is none.
        seed: Another seed, another picture.
    """
    from chiasm.core.protocols import Sampling
    from chiasm.recipes.talk import draw_pictures

    if count < 1 or best_of < 1:
        raise ConfigError(f"--count {count} --best-of {best_of}: both must be at least 1")
    sampling = Sampling(temperature, top_k, top_p, guidance=guidance, seed=seed)
    draw_pictures(run, text, out, count, best_of, sampling)


for maker in collect_commands.COMMANDS:
    data.command(maker)
for name, command in data_commands.COMMANDS.items():
    data.command(name=name)(command)
app.command(data, name="data", help="Make, import, inspect and filter data sets.")

_overrides: Overrides = {}


def main(arguments: list[str] | None = None) -> None:
    """Entry point: one line and exit code 2 for every error a user can mend."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        _overrides.clear()
        if arguments[:1] in (["train"], ["plan"]):
            arguments, dotted = split_overrides(arguments)
            _overrides.update(dotted)
        app.cli(prog="chiasm", args=arguments, description=__doc__)
    except InterruptedRunError as error:
        Console(stderr=True).print(escape(str(error)), soft_wrap=True)
        sys.exit(error.code)
    except ChiasmError as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def split_overrides(arguments: list[str]) -> tuple[list[str], Overrides]:
    """Arguments of `train` and `plan` that are fields of the recipe (--model.width 384, --seed=1)
    apart from the command's own."""
    own = {"--out", "--data", "--resume", "--help", "-h"}
    own |= {f"--{no}{name}" for name in ("show", "plot") for no in ("", "no-")}
    kept, dotted = [], {}
    for i, argument in enumerate(arguments):
        if argument == "--resume" and arguments[i + 1 : i + 2] not in (["yes"], ["no"], ["auto"]):
            arguments = [*arguments[:i], "--resume", "yes", *arguments[i + 1 :]]
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not argument.startswith("--") or name in own:
            kept.append(argument)
            continue
        if not equals:
            value = next(rest, None)
            if value is None:
                raise ConfigError(f"{name}: a value is missing; write {name} VALUE")
        dotted[name[2:].replace("-", "_")] = value
    return kept, dotted
