"""The command line. Nothing heavy is imported before the arguments are known to be right."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional, arg

from chiasm import __version__
from chiasm.core import registry
from chiasm.core.allocator import keep_freed_memory
from chiasm.core.errors import ChiasmError, ConfigError, InterruptedRunError
from chiasm.data import collect_commands
from chiasm.recipes import data_commands
from chiasm.recipes.stability import commands as stability_commands

app = tyro.extras.SubcommandApp()
data = tyro.extras.SubcommandApp()
sweep = tyro.extras.SubcommandApp()
Overrides = dict[str, str]
Device = Annotated[
    str,
    arg(
        metavar="auto|cpu|cuda|cuda:N|mps",
        help="Where to compute; auto is CUDA, else MPS, else the CPU (default: CHIASM_DEVICE, "
        "else auto).",
    ),
]

DESCRIPTION = """Build, train, evaluate and compare vision language models by two routes: MLLM (a
vision encoder, a projector and a language model) and unified (one transformer over text and image
tokens). `chiasm COMMAND --help` describes a command, `chiasm --version` prints the version. Every
command takes `--allow-custom MODULE` (or a .py file): parts of your own that a recipe or a saved
run names module:Class are imported from it."""


@app.command
def demo(
    out: Path = Path("runs/demo"),
    fast: bool = False,
    seed: int = 0,
    device: Device = "",
) -> None:
    """Train both routes on easy-VQA, evaluate them on the same test split, write a report.

    Args:
        out: Folder for the models, summary.json and report.html.
        fast: Tiny settings that only show the path works (under 90 seconds; quality not claimed).
        seed: Seed of everything random.
    """
    _compute_on(device)
    from chiasm.recipes.demo import run

    report = run(out, fast, seed)
    Console().print(f"\nThe report: [bold]{escape(str(report))}[/bold]")


@app.command
def train(
    recipe: Positional[str],
    out: Path | None = None,
    data: str | None = None,
    init: str | None = None,
    resume: Literal["no", "yes", "auto"] = "no",
    show: bool = False,
    check: bool = True,
    device: Device = "",
) -> None:
    """Train a recipe; any field of it can be set: --stages.0.steps 500 --model.hidden_size 384.

    Args:
        recipe: encoder, tokenizer, mllm_smol, unified_nano, unified_interleaved, unified_base,
            llava15_7b, paligemma_3b, nanovlm_222m, smolvlm_256m, chameleon_7b, emu3_8b, a Python
            file with recipe(), or the recipe.json of a run.
        out: Folder of the run (default runs/RECIPE).
        data: "easy-vqa", hf:ORG/NAME, or a file or folder in a known format (see data import),
            after "FORMAT:" where it is not seen by itself; a URL of .tar or .jsonl files; several
            of them with weights, "a.jsonl=2,b=1", or a mixture file (see docs/data.md).
        init: Begin with this model's weights, tokenizer and image processing: a run, a published or
            exported checkpoint, or an adapter of peft (a folder, or OWNER/NAME of the hub). The
            recipe says what is trained and how; --model.X sets X of that model anew.
        resume: Continue from the newest complete checkpoint in the folder (--resume alone); "auto"
            starts, continues or leaves alone what is finished, as a restarted job wants it.
        show: Print the recipe's fields with their values and stop.
        check: Warn where images lose their text or details at the size the model sees, and at the
            end ask 200 held-out questions with their own and with other images: does the model
            use them? (image_use.json)
    """
    from chiasm.core.config import leaves
    from chiasm.recipes.recipe import find, run_folder, with_overrides

    given = {"data": data, "init": init}
    settings = {name: value for name, value in given.items() if value is not None}
    chosen = with_overrides(find(recipe), {**_overrides, **settings})
    if show:
        for name, value in leaves(chosen).items():
            Console().print(f"--{name} [bold]{escape(str(value))}[/bold]", highlight=False)
        return
    folder = out or run_folder(recipe)
    _compute_on(device)
    from chiasm.recipes.run import run

    ledger = run(chosen, folder, resume, check=check)
    Console().print(f"{folder}: {ledger.seconds:.0f} s, {ledger.flops:.3g} FLOPs")


@app.command
def precompute(
    part: Positional[Path],
    out: Positional[Path],
    data: str = "easy-vqa",
    shard: int = 10_000,
    autocast: Literal["auto", "bfloat16", "none"] = "auto",
    array_index: int | None = None,
    array_count: int = 1,
    ray: int = 0,
    workers: int = 1,
    device: Device = "",
) -> None:
    """Encode a data set's training images once: as codes, for train unified_nano
    --model.image_codes OUT, or as features, for CHIASM_CACHE=OUT chiasm train mllm_smol. What is
    complete in OUT already is left alone.

    Args:
        part: Folder of a trained image tokenizer (codes), encoder or MLLM (features).
        out: Folder for the shards.
        data: As of train.
        shard: Samples a shard.
        autocast: Of features, as that of the stage that will use them.
        array_index: Do the shards of one job of an array ($SLURM_ARRAY_TASK_ID), counted from 0.
        array_count: Jobs of that array ($SLURM_ARRAY_TASK_COUNT).
        ray: Processes of Ray Data that share the work instead.
        workers: Processes of this machine that share it.
    """
    _compute_on(device)
    from chiasm.recipes.carry_out import carry_out
    from chiasm.recipes.precompute import PrecomputePlan

    if shard < 1:
        raise ConfigError(f"--shard {shard}: a shard has at least one sample")
    plan = PrecomputePlan(part, data, shard, autocast)
    carry_out(plan, out, array_index, array_count, ray, workers)


@app.command
def plan(
    recipe: Positional[str],
    gpus: str | None = None,
    fit: bool = False,
    mfu: float = 0.4,
    price: float | None = None,
    words: int = 128,
    picture: tuple[int, int] = (640, 480),
    pictures: int = 1,
    plot: bool = False,
    out: Path | None = None,
) -> None:
    """What a recipe will cost, before it runs; any field can be set as in train.

    Args:
        recipe: As of train.
        gpus: How many of which, as 64xH100: hours, cost, memory a GPU, what does not fit.
        fit: Propose sharding and micro-batch that fit, as flags for train.
        mfu: Share of the data sheet's peak that a run reaches.
        price: US dollars an hour and GPU.
        words: Tokens of text a sample, half of them a reply.
        picture: Width and height of the images.
        pictures: Images a sample.
        plot: Draw the learning rate of every stage, in the terminal and as an image.
        out: The image, an SVG (default RECIPE-rates.svg).
    """
    from chiasm.plan.hardware import parse
    from chiasm.recipes.outline import Assumed
    from chiasm.recipes.planning import report
    from chiasm.recipes.rates import plan_command
    from chiasm.recipes.recipe import find, with_overrides

    chosen = with_overrides(find(recipe), _overrides)
    plan_command(chosen, plot, out or Path(f"{Path(recipe).stem}-rates.svg"))
    cluster = parse(gpus) if gpus else None
    report(chosen, cluster, Assumed(words, picture, pictures), mfu, price, fit)


@app.command
def eval(
    run: Positional[Path],
    task: str = "easy-vqa",
    limit: int = 2000,
    seed: int = 0,
    ablate: tuple[Literal["blind", "shuffled", "resolution"], ...] = (),
    batch: int = 0,
    max_tokens: int = 32,
    precision: Literal["auto", "bfloat16", "none"] = "none",
    out: Path | None = None,
    export: Path | None = None,
    metric: str = "",
    columns: str = "",
    prompt: str = "",
    images: Path | None = None,
    data: Path | None = None,
    split: str = "",
    download: bool = False,
    compat: Literal["lmms-eval"] | None = None,
    by_likelihood: bool = False,
    labels: Path | None = None,
    prompts: tuple[str, ...] = (),
    count: int = 4,
    judge: Path | None = None,
    turns: Literal["all", "last"] = "all",
    history: Literal["gold", "own"] = "gold",
    check: bool = True,
    device: Device = "",
) -> None:
    """Ask a model every question of a test set; its score with an interval, parse failures.

    Args:
        run: Folder of a trained model of either route, or of one in a published layout, or
            OWNER/NAME of the Hugging Face hub; or a contrastive encoder, ours or one of
            transformers (CLIP, SigLIP), for zero-shot classification and retrieval.
        task: A benchmark (vqav2, gqa, textvqa, docvqa, chartqa, ai2d, mmmu, mmstar, mmbench, pope,
            ocrbench, screenspot, coco-captions, flickr30k, imagenet, video-mme, geneval),
            "easy-vqa", hf:ORG/NAME, or a file or folder in any format that train reads: its test
            half, or all of a file that the model was not trained on.
        limit: At most this many questions, whole images drawn by the seed; 0 for all.
        seed: Seed of that draw.
        ablate: Ask once more with less to see: blind (no image), shuffled (the image of
            another question), resolution (images at half, a quarter, an eighth of their size).
        batch: Questions handed over at once; 0 for as many as fit. Replies do not depend on it.
        max_tokens: Longest reply.
        precision: bfloat16 is faster on some machines; the share of replies that then depend on
            the batch is told.
        out: File for the predictions (default RUN/predictions-TASK.jsonl), with the result beside
            it as .json. Replies that are there already are not asked for again.
        export: The table as Markdown (.md) or everything as JSON (.json).
        metric: exact, vqa, anls, relaxed, choice, contains, yes-no, caption, transcript, click,
            box, perplexity; drawing, of captions; reconstruction, by an image tokenizer; by default
            the task's own.
        columns: Of records, where they are not called as usual: "question=q answer=gold".
        prompt: A line after each question, such as "Answer with a single word."; with {question} in
            it, it replaces the question's text. Without it nothing is added.
        images: The folder that image paths are relative to (default: the file's own); / allows
            absolute paths.
        data: Folder of the benchmark's published files (default data/TASK).
        split: Split of the benchmark (default the one that has answers).
        download: Fetch the benchmark from the Hugging Face hub into that folder first.
        compat: Score as lmms-eval 0.7.3 does, defects included, to compare with its numbers; the
            prompts stay ours.
        by_likelihood: Choose the likeliest of a question's options, or of --labels, instead of
            generating.
        labels: File with one label or class name a line (default classes.txt beside the data, else
            the test set's answers).
        prompts: For zero-shot, texts with {} for the class's name (default CLIP's ensemble of 7).
        count: Images a prompt, for tasks that are drawn.
        judge: A contrastive encoder that gives drawn images a CLIPScore, and a Fréchet distance
            from real ones.
        turns: all: every assistant turn of a conversation is a question; last: its last one only.
        history: Between the questions of a conversation stand its own answers (gold) or the model's
            replies (own).
        check: Ask up to 200 of the questions also with another image, and say whether the model
            uses the image.
    """
    _compute_on(device)
    from chiasm.eval.zero_shot import PROMPTS
    from chiasm.recipes.asked import Asked
    from chiasm.recipes.evaluate import How, evaluate_command

    how = How(ablate, batch, max_tokens, precision, by_likelihood, labels, history, check)
    asked = Asked(
        task, data, split, download, metric, columns, compat, limit, seed, turns, prompt, images
    )
    evaluate_command(
        run,
        asked,
        how,
        out=out,
        export_to=export,
        prompts=prompts or PROMPTS,
        count=count,
        judge=judge,
    )


@app.command
def compare(
    runs: Positional[tuple[Path, ...]],
    task: str = "easy-vqa",
    limit: int = 2000,
    seed: int = 0,
    out: Path = Path("comparison.html"),
    export: Path | None = None,
    batch: int = 0,
    max_tokens: int = 32,
    metric: str = "",
    columns: str = "",
    data: Path | None = None,
    split: str = "",
    turns: Literal["all", "last"] = "all",
    history: Literal["gold", "own"] = "gold",
    device: Device = "",
) -> None:
    """Models on the same questions: paired tests, kinds of questions, cost, where they disagree.

    Args:
        runs: Folders of trained models, or files of predictions that eval left.
        task: As of eval, like limit, seed, batch, max_tokens, metric, columns, data, split, turns
            and history; what a folder was asked before is not asked again.
        out: The report, one HTML file.
        export: The models as a table in Markdown (.md), or everything as JSON (.json).
    """
    _compute_on(device)
    from chiasm.recipes.asked import Asked
    from chiasm.recipes.compare import compare_command
    from chiasm.recipes.evaluate import How

    asked = Asked(task, data, split, False, metric, columns, None, limit, seed, turns)
    how = How(batch=batch, max_tokens=max_tokens, history=history)
    compare_command(runs, asked, how, out=out, export_to=export)


@app.command
def duel(
    budget: float,
    data: str = "easy-vqa",
    points: int = 3,
    seeds: int = 3,
    arms: tuple[str, ...] = ("mllm-scratch", "unified", "mllm"),
    questions: int = 1000,
    max_tokens: int = 16,
    metric: str = "",
    out: Path = Path("runs/duel"),
    keep: bool = False,
    plan: bool = False,
    device: Device = "",
) -> None:
    """Train both routes within the same FLOPs; which wins at which budget, or cannot be told.

    Args:
        budget: The largest, in training FLOPs, parts such as encoder and tokenizer included.
        data: As of train; its test half is asked.
        points: So many budgets, each half of the one above.
        seeds: Runs of every arm at every budget.
        arms: mllm-scratch (language model from random weights), unified, mllm (pretrained).
        questions: Asked of every model, at most.
        max_tokens: Longest reply.
        metric: As of eval.
        out: Folder of the report and the raw results; a duel stopped there goes on.
        keep: Keep the weights of every run.
        plan: Say what would be trained and how long it would take, and stop.
    """
    _compute_on(device)
    from chiasm.recipes.duel import DuelSettings, choose_arms
    from chiasm.recipes.duel import duel as fight

    settings = DuelSettings(data, budget, points, seeds, questions, max_tokens, metric, keep)
    fight(settings, out, choose_arms(arms), only_plan=plan)


@app.command
def chat(
    run: Positional[Path],
    image: Positional[Path | None] = None,
    question: Positional[str | None] = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_tokens: int = 64,
    device: Device = "",
) -> None:
    """Ask about an image; without a question, an interactive session.

    Args:
        run: Folder of a trained model of either route, or of one in a published layout, or
            OWNER/NAME of the Hugging Face hub.
        image: An image.
        question: What to ask about it.
        temperature: 0 is greedy.
        top_k: Choose among the k likeliest tokens only (0: all).
        top_p: Choose among the likeliest tokens that make up this probability.
        max_tokens: Longest reply.
    """
    _compute_on(device)
    from chiasm.core.protocols import Sampling
    from chiasm.recipes.talk import ask, session

    sampling = Sampling(temperature, top_k, top_p, max_tokens=max_tokens)
    if question is None:
        session(run, image, sampling)
    else:
        ask(run, image, question, sampling)


@app.command
def merge(
    run: Positional[Path],
    out: Positional[Path],
    device: Device = "",
) -> None:
    """Fold adapters that were saved alone into the language model, as a run of its own.

    Args:
        run: Folder of an MLLM trained with --model.lora.merged false.
        out: Folder for the merged model.
    """
    _compute_on(device)
    from chiasm.hub.load import published_base
    from chiasm.hub.mllm import merge as merge_run

    merge_run(run, out, published_base)
    Console().print(f"{out}: adapters merged; {out / 'language'} is a checkpoint of transformers")


@app.command
def export(
    run: Positional[Path],
    out: Positional[Path],
    to: str = "hf",
    device: Device = "",
) -> None:
    """Write a model of either route as a published checkpoint, read it back and compare.

    Args:
        run: Folder of a trained model, or of a published checkpoint.
        out: Folder for the checkpoint; new or empty.
        to: "hf" for transformers and what reads its layouts (vLLM); "gguf" for llama.cpp; or one
            layout: llava, llava-next, paligemma, idefics3, smolvlm, chameleon, emu3, or
            module:Class of your own.
    """
    _compute_on(device)
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
    edit: Path | None = None,
    mask: Path | None = None,
    vary: float = 0.0,
    grid: tuple[int, int] | None = None,
    steps: int = 12,
    device: Device = "",
) -> None:
    """Draw an image from text with a unified model, or change one (--edit).

    Args:
        run: Folder of a trained unified model.
        text: What to draw.
        out: The image; with a count above 1, a row of images.
        count: How many.
        best_of: Draw anew, at most so often, until the model itself would describe the image so,
            and show the one that comes nearest; 1 shows the first.
        temperature: 0 is greedy: the same image every time.
        top_k: Choose among the k likeliest codes only (0: all).
        top_p: Choose among the likeliest codes that make up this probability.
        guidance: Scale of classifier-free guidance; 1 is none.
        seed: Another seed, another image.
        edit: An image to change. Alone it is shown to the model beside the text, which says how
            ("make it blue"); with --mask or --vary the text says what is to be seen.
        mask: An image that is white where --edit is to be drawn anew; the rest keeps its codes.
        vary: Draw this share of --edit anew, at random places.
        grid: Rows and columns of codes, for models that draw several sizes.
        steps: Passes an image, for models that draw by masked diffusion.
    """
    _compute_on(device)
    from chiasm.core.protocols import Sampling
    from chiasm.recipes.talk import Change, draw_images

    if count < 1 or best_of < 1:
        raise ConfigError(f"--count {count} --best-of {best_of}: both must be at least 1")
    if (mask or vary) and not edit:
        raise ConfigError("--mask and --vary change an image: give it with --edit")
    if (mask and vary) or not 0 <= vary <= 1 or steps < 1:
        raise ConfigError(
            f"--vary {vary} --steps {steps}: give --mask or a --vary from 0 to 1, and --steps of "
            "at least 1"
        )
    sampling = Sampling(
        temperature, top_k, top_p, guidance=guidance, seed=seed, grid=grid, image_steps=steps
    )
    change = Change(edit, mask, vary) if edit else None
    draw_images(run, text, out, count, best_of, sampling, change)


@app.command
def serve(
    runs: Positional[tuple[Path, ...]],
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str = "",
    slots: int = 16,
    waiting: int = 64,
    drain: int = 30,
    fetch: tuple[str, ...] = (),
    weights: Literal["fp32", "bf16", "int8", "int4", "auto"] | None = None,
    device: Device = "",
) -> None:
    """An OpenAI-compatible API and a page over trained models; ends with SIGTERM or Ctrl-C.

    Args:
        runs: Folders of models of either route, ours or in a published layout, and contrastive
            encoders, or OWNER/NAME of the Hugging Face hub; each is asked for by its folder's name,
            or NAME.
        host: Address to listen on; 0.0.0.0 lets other machines in.
        port: Port.
        key: What clients must send (default: CHIASM_API_KEY, else a fresh one, printed).
        slots: Replies of one model that are computed together; a guided drawing takes two.
        waiting: Requests of one model that may wait beside them; more are told to come back.
        drain: Seconds that requests under way have to end after SIGTERM.
        fetch: Names of hosts that images may be fetched from; by default they must come with the
            request.
        weights: What models are held in (default: bf16 on a GPU that has it, else fp32). On a CPU
            "fp32" answers as `chiasm eval` does; the others hold language models, are faster and
            less exact (docs/serve.md); "auto" is the fastest here of the first three.
    """
    _compute_on(device)
    from chiasm.recipes.serve_command import serve_runs

    serve_runs(runs, host, port, key, slots, waiting, drain, fetch, weights)


for maker in collect_commands.COMMANDS:
    data.command(maker)
for name, command in data_commands.COMMANDS.items():
    data.command(name=name)(command)
app.command(data, name="data", help="Make, import, inspect and filter data sets.")
for name, command in stability_commands.COMMANDS.items():
    sweep.command(name=name)(command)
app.command(sweep, name="sweep", help="Which settings keep training stable, on small models.")

_overrides: Overrides = {}


def _compute_on(device: str) -> None:
    from chiasm.core.device import compute_on  # it imports torch

    compute_on(device)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: one line and exit code 2 for every error a user can mend."""
    arguments = sys.argv[1:] if arguments is None else arguments
    keep_freed_memory()
    try:
        _overrides.clear()
        arguments = allow_own_code(arguments)
        if arguments[:1] in (["train"], ["plan"]):
            arguments, dotted = split_overrides(arguments)
            _overrides.update(dotted)
        if arguments[:1] == ["--version"]:
            print(f"chiasm {__version__}")
            return
        app.cli(prog="chiasm", args=arguments, description=DESCRIPTION)
        sys.stdout.flush()
    except InterruptedRunError as error:
        Console(stderr=True).print(escape(str(error)), soft_wrap=True)
        sys.exit(error.code)
    except ChiasmError as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Who read our output has seen enough (| head); what is left in the buffer goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def allow_own_code(arguments: list[str]) -> list[str]:
    """The arguments without --allow-custom NAME, of any command: imports these modules of the
    user's own. Names `module:Class` among the others may be imported when they are used."""
    kept, allowed = [], []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name != "--allow-custom":
            kept.append(argument)
            continue
        value = value if equals else next(rest, "")
        if not value:
            raise ConfigError("--allow-custom: write a module, or a file that ends in .py")
        allowed += value.split(",")
    registry.allow_custom(*allowed)
    registry.allow_named(kept)
    return kept


def split_overrides(arguments: list[str]) -> tuple[list[str], Overrides]:
    """Arguments of `train` and `plan` that are fields of the recipe (--model.hidden_size 384,
    --seed=1) apart from the command's own."""
    own = {"--out", "--data", "--init", "--resume", "--device", "--help", "-h"}
    own |= {"--gpus", "--mfu", "--price", "--words", "--picture", "--pictures"}
    own |= {f"--{no}{name}" for name in ("show", "plot", "fit") for no in ("", "no-")}
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
