# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The command `hf-frozen-llm`."""

import gc
import sys
from collections.abc import Sequence
from pathlib import Path

import typer
from typer.core import TyperCommand


app = typer.Typer(
    name="hf-frozen-llm",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# Everything after the argument is passed on unchanged.
KEYS = {"allow_extra_args": True, "ignore_unknown_options": True, "max_content_width": 100}


class TrainingCommand(TyperCommand):
    """A command whose help lists the keys of a recipe."""

    def format_epilog(self, ctx, formatter) -> None:
        from hf_frozen_llm.training.keys import describe_training_keys

        formatter.write(f"\nKEYS\n\n{describe_training_keys()}\n")


class EvaluationCommand(TyperCommand):
    """A command whose help lists the keys that apply to a saved model."""

    def format_epilog(self, ctx, formatter) -> None:
        from hf_frozen_llm.training.keys import describe_evaluation_keys

        formatter.write(f"\nKEYS\n\n{describe_evaluation_keys()}\n")


@app.callback()
def commands(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    """Vision models with frozen layers of language models."""


@app.command(cls=TrainingCommand, context_settings=KEYS, options_metavar="[--KEY VALUE]...")
def train(
    context: typer.Context,
    recipe: str = typer.Argument(help="YAML file, or the name of a recipe of this package."),
) -> None:
    """
    Train the model of a RECIPE.

    Every key of the recipe can be given as a flag, too: --learning_rate 1e-3 (or --learning-rate 1e-3),
    --llm_block.layer_index 30, --host.hidden_size 192, --llm_block null (the plain host), --resume true (resume
    from the last checkpoint).
    """
    from hf_frozen_llm.commands.train import train

    train(recipe, key_flags(context))
    end_distributed()


@app.command(
    cls=EvaluationCommand,
    context_settings=KEYS,
    options_metavar="[MODEL]... [--suite NAME,NAME,... [--suite_folder ROOT] [--output NAME]] [--KEY VALUE]...",
)
def evaluate(
    context: typer.Context,
    model: str = typer.Argument(help="Folder or Hub id of the model; with --suite, several before all keys."),
    suite: str | None = typer.Option(
        None,
        "--suite",
        help="Robustness of image classifiers: clean, corruptions, fgsm, pgd, imagenet, imagenet-v2, imagenet-real, "
        "imagenet-c, imagenet-a, imagenet-r, imagenet-sketch.",
    ),
    suite_folder: str | None = typer.Option(
        None, "--suite-folder", help="Folder of the published test sets, each in a folder of its suite's name."
    ),
    wnids: str | None = typer.Option(
        None, "--wnids", help="File with the WordNet id of each label of the models, a line each."
    ),
    output: str | None = typer.Option(None, "--output", help="NAME.csv and NAME.png of --suite.  [robustness]"),
    baseline: str | None = typer.Option(
        None, "--baseline", help="The model to which the mean corruption error of `corruptions` relates."
    ),
    unreadable: str | None = typer.Option(
        None, "--unreadable", help="error, or skip: leave out, list and count images that cannot be decoded.  [error]"
    ),
) -> None:
    """
    Evaluate a saved MODEL on a split of a data set, or several on suites of robustness.

    --dataset_name and --split choose the data, --recipe takes the data settings of a recipe; without any of them the
    model is evaluated on the eval_split of its training. Results are printed, and written to eval_results.json beside
    the model (--output_file). --corruption corrupts images; the results then have a file of their own. With --suite,
    all results are in one table and one figure.
    """
    words = key_flags(context)
    count = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    options = {
        "suite_folder": suite_folder,
        "wnids": wnids,
        "output": output,
        "baseline": baseline,
        "unreadable": unreadable,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if suite is not None:
        from hf_frozen_llm.commands.robustness import evaluate_suites

        suites = [name.strip() for name in suite.split(",") if name.strip()]
        evaluate_suites([model, *words[:count]], suites, words[count:], **given)
    elif given or count:
        raise ValueError(
            f"{' '.join([*(f'--{name}' for name in given), *words[:count]])}: this needs --suite, such as `--suite "
            "clean,corruptions`; without it, one model is evaluated."
        )
    else:
        from hf_frozen_llm.training.evaluate import evaluate

        evaluate(model, words)
    end_distributed()


@app.command(
    cls=EvaluationCommand,
    context_settings=KEYS,
    options_metavar="[INPUT]... [--output FILE.jsonl] [--plot FILE] [--submission FILE] [--KEY VALUE]...",
)
def predict(
    context: typer.Context,
    model: str = typer.Argument(help="Folder or Hub id of the model."),
    output: str | None = typer.Option(None, "--output", "--output-file", help="JSON lines instead of a table."),
    plot: str | None = typer.Option(None, "--plot", help="A picture of the inputs with their predictions."),
    submission: str | None = typer.Option(
        None, "--submission", help="A file for the leaderboard of VQA or Argoverse."
    ),
) -> None:
    """
    Predict with a saved MODEL on files, or on a split without labels.

    Each INPUT is a file, a folder or a pattern, and stands before all keys; without any, --dataset_name and --split
    choose the data. Other keys are those of `evaluate`, such as --per_device_eval_batch_size and --use_cpu. Unreadable
    inputs are listed, and the exit code is then 1; the others are predicted.
    """
    from hf_frozen_llm.commands.predict import predict, print_predictions

    words = key_flags(context)
    count = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    predictions = predict(model, words[:count], words[count:], output, plot, submission)
    print_predictions(predictions, output or submission)
    end_distributed()
    if predictions.failures:
        raise typer.Exit(1)


@app.command(
    cls=TrainingCommand,
    context_settings=KEYS,
    options_metavar="[--check_rows N] [--output_file PNG] [--KEY VALUE]...",
)
def check(
    context: typer.Context,
    recipe: str = typer.Argument(help="YAML file, or the name of a recipe of this package."),
    check_rows: int = typer.Option(64, "--check-rows", help="Rows of each split that are read."),
    output_file: str | None = typer.Option(None, "--output-file", help="By default check.png in output_dir."),
) -> None:
    """
    Check a RECIPE before a long run: disk, model, data, augmentation, two steps.

    Takes the keys of `train`. Draws augmented examples into a PNG file, and leaves nothing else behind. The exit code
    is 1 if there are errors, 0 if there are only warnings.
    """
    from hf_frozen_llm.commands.check import check

    report = check(recipe, key_flags(context), check_rows, output_file)
    end_distributed()
    if report.errors:
        raise typer.Exit(1)


@app.command(
    cls=TrainingCommand,
    context_settings=KEYS,
    options_metavar="[--over FIELD=a,b,c]... [--variants FILE] [--tune FIELD=a,b,c]... [--KEY VALUE]...",
)
def ablate(
    context: typer.Context,
    recipe: str = typer.Argument(help="YAML file, or the name of a recipe of this package."),
    over: list[str] = typer.Option([], help="FIELD=a,b,c: a variant for each value."),  # noqa: B008
    variants: str | None = typer.Option(None, help="YAML file of named variants, such as controls.yaml."),
    seeds: int = typer.Option(1, help="Number of seeds of each variant."),
    output_dir: str = typer.Option("runs/ablation", help="Folder for all results."),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Check and print the commands of the runs without running them."
    ),
    tune: list[str] = typer.Option(  # noqa: B008
        [], help="FIELD=a,b,c: first find the best value of each variant on held-out training data."
    ),
    tune_split: str | None = typer.Option(
        None, help="Split to tune on, such as train[90%:]; by default a random tenth of train_split."
    ),
    tune_seeds: int = typer.Option(1, help="Number of seeds of each tuned value, from 1000 on."),
    reference: str | None = typer.Option(None, help="Variant that the others are compared with, seed by seed."),
    delta: float = typer.Option(1.0, help="Difference for which the number of necessary seeds is computed."),
    max_parallel: int = typer.Option(1, help="Number of runs at a time."),
    figure: str | None = typer.Option(
        None, help="File of the figure, such as a .svg; by default ablation.png in output_dir."
    ),
) -> None:
    """
    Train variants of a RECIPE, several seeds of each, and compare them.

    Writes ablation.csv, ablation.md and ablation.png. The same command resumes an interrupted one. Every key of the
    recipe can be given for all runs, as for `train`. The exit code is 1 if a run fails.
    """
    from hf_frozen_llm.commands.ablate import ablate

    is_complete = ablate(
        recipe,
        over,
        variants,
        seeds,
        output_dir,
        key_flags(context),
        dry_run,
        tune,
        tune_split,
        tune_seeds,
        reference,
        delta,
        max_parallel,
        figure,
    )
    if not is_complete:
        raise typer.Exit(1)


@app.command()
def plot(
    runs: list[str] = typer.Argument(help="Folders of `train` or of `ablate`."),  # noqa: B008
    output: str = typer.Option("curves.png", "--output", "--output-file", help="The figure, such as a .svg."),
    metric: list[str] = typer.Option(  # noqa: B008
        [], help="A metric of the log, such as eval_top1 or update_ratio; repeat it for several panels."
    ),
    by: str = typer.Option("step", help="The horizontal axis: step or epoch."),
) -> None:
    """
    Plot the curves of several RUNS in one figure.

    By default the training loss, the loss of the evaluations and the main metric. A run that is not finished is
    plotted from its last checkpoint; the seeds of a variant of `ablate` have one colour.
    """
    from hf_frozen_llm.commands.plot import plot

    print(plot(runs, output, metric, by))


@app.command()
def analyze(
    models: list[str] = typer.Argument(help="Folders of saved models, of one task."),  # noqa: B008
    data: str | None = typer.Option(
        None,
        help="Folder of images and masks: images/ and masks/, VOC, or ImageNet-S; for models of other inputs the "
        "dataset_name, by default that of the training.",
    ),
    output: str = typer.Option(help="Folder for the table and the figures."),
    split: str | None = typer.Option(None, help="For models of other inputs: the split, by default the eval_split."),
    at: list[str] = typer.Option(  # noqa: B008
        [], help="A tap point, such as attention; repeat it for several. All by default."
    ),
    batch_size: int = typer.Option(32, "--batch-size", help="Images in a forward."),
    max_images: int | None = typer.Option(None, "--max-images", help="Take only as many images, evenly spaced."),
    curve_images: int = typer.Option(
        32, "--curve-images", help="Images for deletion, insertion and gradient coherence; 0 leaves them out."
    ),
    device: str | None = typer.Option(None, help="cpu, or a GPU such as cuda:0; by default a GPU if there is one."),
) -> None:
    """
    Compare what the LLM blocks of MODELS look at with masks of the objects.

    Writes analysis.csv, analysis.md and figures: activation maps over images, scores at every tap point with
    intervals, measures of the tokens, deletion and insertion curves. For models of other inputs (videos, point
    clouds, traffic, questions about images or scenes) only the activation maps, over four inputs or --max-images.
    """
    from hf_frozen_llm.commands.draw_activations import draw_activations, takes_only_images

    if not takes_only_images(models[0]):
        draw_activations(models, output, data, split, at, *([] if max_images is None else [max_images]))
        print(Path(output) / "overlays_magnitude.png")
        return
    if data is None or split is not None:
        raise ValueError("Image models need --data, a folder of images and masks, and take no --split.")
    from hf_frozen_llm.commands.analyze import analyze

    analyze(models, data, output, at, batch_size, max_images, curve_images, device)
    print(Path(output) / "analysis.md")


@app.command()
def suggest(
    host: str = typer.Argument(help="Folder or Hub id of an image model without a block, or of a vision encoder."),
    llm: str = typer.Argument(help="Hub id, folder or .gguf file of the language model."),
    data: str = typer.Option(help="Images with labels, as dataset_name of a recipe: Hub id, folder or parquet file."),
    layers: list[int] = typer.Option(  # noqa: B008
        [], "--layers", "--layer", help="A layer, negative from the end; repeat it for several. Five by default."
    ),
    input_scale: list[str] = typer.Option(  # noqa: B008
        ["1", "balanced"], "--input-scale", help="A number or balanced; repeat it for several."
    ),
    split: str = typer.Option("train", help="The split; not the one that reports results."),
    image_column: str = typer.Option("image", "--image-column", help="Column of the images."),
    label_column: str = typer.Option("label", "--label-column", help="Column of the labels."),
    max_images: int = typer.Option(512, "--max-images", help="Take a random choice of as many images."),
    batch_size: int = typer.Option(32, "--batch-size", help="Images in a forward."),
    seed: int = typer.Option(0, help="Of the choice of images, and of the projection."),
    output: str | None = typer.Option(None, help="A .csv or .json file for the table."),
    sweep: str | None = typer.Option(None, help="ablation.csv of a sweep over these layers, to compare with."),
    device: str | None = typer.Option(None, help="cpu, or a GPU such as cuda:0; by default a GPU if there is one."),
) -> None:
    """
    Suggest which layer of an LLM, and which input scale, to train first behind a trained HOST.

    Nothing is trained: the host's tokens go through each layer, and a linear probe and their similarity to the host's
    tokens (CKA) rank the layers. It is a guess to start with, and no substitute for a sweep.
    """
    from hf_frozen_llm.commands.suggest import suggest

    suggest(
        host,
        llm,
        data,
        layers,
        [scale if scale == "balanced" else to_number("input_scale", scale) for scale in input_scale],
        split,
        image_column,
        label_column,
        max_images,
        batch_size,
        seed,
        output,
        sweep,
        device,
    )


def to_number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{name} is {text!r}; give a number or balanced.") from error


@app.command()
def layer(
    llm: str = typer.Argument(help="Hub id, folder or .gguf file of the language model."),
    layer_index: list[int] = typer.Option(  # noqa: B008
        [], "--layer-index", "--layer", help="Index of a layer, negative from the end; repeat it for several layers."
    ),
    revision: str | None = typer.Option(None, help="Branch, tag or commit on the Hub."),
    output: str | None = typer.Option(
        None, help="New folder for the layers; without it, the model is only described."
    ),
) -> None:
    """
    Describe a language model, or write some of its layers to a small folder.

    The folder can replace the language model's name everywhere. Only the bytes of the layers are
    downloaded from a Hub repository.
    """
    from hf_frozen_llm.commands.layer import describe_llm, extract_layers
    from hf_frozen_llm.training.results import print_facts

    if output is not None:
        extract_layers(llm, layer_index or [-1], output, revision)
    print_facts(describe_llm(llm if output is None else output, layer_index[0] if layer_index else None, revision))


@app.command()
def info(
    model: str = typer.Argument(help="Folder or Hub id of the model."),
    verify: bool = typer.Option(False, "--verify", help="Read the LLM layer and compare it with the one saved."),
) -> None:
    """Describe a checkpoint: host, LLM, layer, licence, parameters, FLOPs."""
    from hf_frozen_llm.commands.info import describe_checkpoint
    from hf_frozen_llm.training.results import print_facts

    print_facts(describe_checkpoint(model, verify))


@app.command()
def card(
    folder: str = typer.Argument(help="Folder of the model."),
    repo: str | None = typer.Option(None, help="Id of the model on the Hub, for commands and links."),
    ablation: str | None = typer.Option(None, help="Folder of `ablate` on the same data, for the comparison."),
    plain_host: str | None = typer.Option(None, help="Folder of a run of the plain host, for the comparison."),
    license: str | None = typer.Option(None, help="Licence of the model; it is never guessed."),
    dataset: str | None = typer.Option(None, help="Hub id of the training data, if the run read a local copy."),
    examples: bool = typer.Option(False, "--examples", help="Draw an example of each label, to be published."),
    html: bool = typer.Option(False, "--html", help="Also write README.html, which looks like the page on the Hub."),
    force: bool = typer.Option(False, "--force", help="Replace a README.md that was written or changed by hand."),
) -> None:
    """
    Write the model card of a saved model, README.md, into its FOLDER.

    All numbers come from the results files in the folder. Facts that are not known are left out.
    """
    from hf_frozen_llm.hub.card import write_card

    written = write_card(
        Path(folder),
        repo,
        Path(ablation) if ablation else None,
        plain_host=Path(plain_host) if plain_host else None,
        license=license,
        dataset=dataset,
        examples=examples,
        force=force,
    )
    if html:
        from hf_frozen_llm.hub.page import write_page

        written = write_page(written)
    print(written)


@app.command()
def push(
    folder: str = typer.Argument(help="Folder of the model."),
    repository: str = typer.Argument(help="owner/name on the Hub; it is created if there is none."),
    light: bool = typer.Option(False, "--light", help="Leave out the LLM layer; loading reads it from the LLM."),
    include_layer: bool = typer.Option(
        False, "--include-layer", help="Include the layer although the LLM's licence is not known to permit it."
    ),
    with_code: bool = typer.Option(False, "--with-code", help="Include the code, to load without this package."),
    private: bool = typer.Option(False, "--private", help="Make a new repository private."),
    create_pr: bool = typer.Option(False, "--create-pr", help="Open a pull request."),
    revision: str | None = typer.Option(None, help="Branch to push to; it is created if there is none."),
    dry_run: bool = typer.Option(False, "--dry-run", help="List files and sizes, and upload nothing."),
    ablation: str | None = typer.Option(None, help="Folder of an `ablate`, for the comparison in the card."),
) -> None:
    """
    Publish the model in FOLDER on the Hub: weights, configuration, processor, card, results, plots, recipe.

    All files are published in one commit. After an interruption, repeat the command: large files that were uploaded
    are not sent again.
    """
    from hf_frozen_llm.hub.push import push
    from hf_frozen_llm.training.results import print_facts

    published = push(
        folder,
        repository,
        light=light,
        include_layer=include_layer,
        with_code=with_code,
        private=private,
        create_pr=create_pr,
        revision=revision,
        dry_run=dry_run,
        ablation=ablation,
    )
    print_facts({name: f"{size:>13,}" for name, size in {**published.files, "all bytes": published.total}.items()})
    print(published.url or "Nothing was uploaded.")


@app.command()
def convert(
    checkpoint: str = typer.Argument(help="The .pth or .ckpt file."),
    task: str = typer.Option(help="Task of the model, as in recipes."),
    output: str = typer.Option(help="Folder for the model; it must not exist or be empty."),
    num_attention_heads: int | None = typer.Option(None, help="Attention heads of the host."),
    vision_num_attention_heads: int | None = typer.Option(None, help="Attention heads of METER's image encoder."),
    text_num_attention_heads: int | None = typer.Option(None, help="Attention heads of METER's text encoder."),
    llm_num_attention_heads: int | None = typer.Option(None, help="Attention heads of the LLM layer."),
    layer_index: int | None = typer.Option(None, help="Index of the LLM layer; by default that of the released code."),
    llm_name_or_path: str | None = typer.Option(None, help="Where the LLM layer came from."),
    num_frames: int | None = typer.Option(None, help="Frames of a clip."),
    image_size: int | None = typer.Option(None, help="Side of a frame in pixels."),
    num_groups: int | None = typer.Option(None, help="Groups of a point cloud."),
    group_size: int | None = typer.Option(None, help="Points of each group."),
    num_labels: int | None = typer.Option(None, help="Classes of the new classifier of a pre-trained host."),
    ema: bool = typer.Option(False, "--ema", help="Take the averaged weights."),
) -> None:
    """
    Convert a CHECKPOINT of the paper's released code, or a published METER, to a model of this package.

    Sizes are read from the tensors; the options give the sizes that the tensors do not show. Every tensor is printed
    with its new name.
    """
    from hf_frozen_llm.conversion import convert_to_folder

    given = {
        "num_attention_heads": num_attention_heads,
        "vision_num_attention_heads": vision_num_attention_heads,
        "text_num_attention_heads": text_num_attention_heads,
        "llm_num_attention_heads": llm_num_attention_heads,
        "layer_index": layer_index,
        "llm_name_or_path": llm_name_or_path,
        "num_frames": num_frames,
        "image_size": image_size,
        "num_groups": num_groups,
        "group_size": group_size,
        "num_labels": num_labels,
    }
    config = {name: value for name, value in given.items() if value is not None}
    print(convert_to_folder(checkpoint, task, output, ema, **config))


def end_distributed() -> None:
    """Leave torchrun's process group: the threads of an open group can abort a process at its end."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        gc.collect()  # wrapped models are reference cycles that keep the group alive
        distributed.barrier()
        distributed.destroy_process_group()


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run the command line.

    Args:
        argv (`Sequence[str]`, *optional*):
            The arguments. By default those of the process: then an error is one line on stderr, and the process ends
            with the code 2 for a mistake of the user and 1 for anything else. Given arguments make errors reach the
            caller as exceptions.
    """
    if argv is not None:
        app(with_hyphens(argv), standalone_mode=False)
        return
    arguments, is_debugging = take_debug_flag(sys.argv[1:])
    try:
        code = app(with_hyphens(arguments or ["--help"]), standalone_mode=False)
    except Exception as error:
        if is_debugging:
            raise
        message, code = describe_error(error)
        print(f"Error: {message}", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def with_hyphens(arguments: Sequence[str]) -> list[str]:
    """Spell flags with hyphens, as typer does: `--learning_rate` and `--learning-rate` are the same."""
    return [spell_flag(argument, "_", "-") for argument in arguments]


def key_flags(context: typer.Context) -> list[str]:
    """Return the flags that are keys of a recipe, spelled as the keys are, with underscores."""
    return [spell_flag(argument, "-", "_") for argument in context.args]


def spell_flag(argument: str, old: str, new: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace(old, new)}{equals}{value}"


def take_debug_flag(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Take out a bare `--debug`; with a value, such as `underflow_overflow`, it is a key of TrainingArguments."""
    kept = [
        argument
        for argument, following in zip(arguments, [*arguments[1:], "--"])
        if not (argument == "--debug" and (following.startswith("--") or argument is arguments[0]))
    ]
    return kept, len(kept) < len(arguments)


def describe_error(error: Exception) -> tuple[str, int]:
    """Return one line about an error, and the exit code."""
    if hasattr(error, "format_message"):  # typer's own, about the command line
        return " ".join(error.format_message().split()), 2
    message = str(error)
    if "Original Traceback" in message:  # of a process that loads data
        message = message.rpartition(f"\n{type(error).__name__}: ")[2]
    message = " ".join(message.split())
    if isinstance(error, (ValueError, OSError, ImportError, FloatingPointError)):
        return message, 1 if hasattr(error, "is_failed_run") else 2
    return f"{type(error).__name__}: {message} (`hf-frozen-llm --debug …` shows the traceback)", 1
