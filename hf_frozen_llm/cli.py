# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The command `hf-frozen-llm`."""

import gc
from collections.abc import Sequence

import typer


app = typer.Typer(
    name="hf-frozen-llm",
    help="Vision models with frozen layers of language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# What follows the argument is handed on as it is.
KEYS = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.callback()
def commands() -> None:
    """Vision models with frozen layers of language models."""


@app.command(context_settings=KEYS, options_metavar="[--KEY VALUE]...")
def train(
    context: typer.Context,
    recipe: str = typer.Argument(help="YAML file, or the name of a recipe of this package."),
) -> None:
    """
    Train the model of a RECIPE.

    Every key of the recipe can be given as a flag, too: --learning_rate 1e-3, --llm_block.layer_index 30,
    --host.hidden_size 192, --llm_block null (the plain host), --resume true (go on from the last checkpoint). Keys are
    the fields of transformers.TrainingArguments and of hf_frozen_llm.training.arguments.
    """
    from hf_frozen_llm.training.train import train

    train(recipe, context.args)
    end_distributed()


@app.command(context_settings=KEYS, options_metavar="[--KEY VALUE]...")
def evaluate(
    context: typer.Context,
    model: str = typer.Argument(help="Folder or Hub id of the model."),
) -> None:
    """
    Evaluate a saved MODEL on labelled images.

    --dataset_name and --split say on which, --recipe takes the data settings of a recipe; without any of them the
    model is evaluated on what it was trained for. Results are printed, and written to eval_results.json beside the
    model (--output_file).
    """
    from hf_frozen_llm.training.evaluate import evaluate

    evaluate(model, context.args)
    end_distributed()


@app.command(context_settings=KEYS, options_metavar="[INPUT]... [--output FILE.jsonl] [--KEY VALUE]...")
def predict(
    context: typer.Context,
    model: str = typer.Argument(help="Folder or Hub id of the model."),
    output: str | None = typer.Option(None, "--output", "--output_file", help="JSON lines instead of a table."),
) -> None:
    """
    Predict with a saved MODEL on files, or on a split without labels.

    Each INPUT is a file, a folder or a pattern; without any, --dataset_name and --split say what to predict on. Other
    keys are those of `evaluate`, such as --per_device_eval_batch_size and --use_cpu. Inputs that cannot be read are
    named, the others are predicted; the exit code is then 1.
    """
    from hf_frozen_llm.commands.predict import predict, print_predictions

    count = next((i for i, word in enumerate(context.args) if word.startswith("--")), len(context.args))
    predictions = predict(model, context.args[:count], context.args[count:], output)
    print_predictions(predictions, output)
    end_distributed()
    if predictions.failures:
        raise typer.Exit(1)


@app.command(context_settings=KEYS, options_metavar="[--check_rows N] [--output_file PNG] [--KEY VALUE]...")
def check(
    context: typer.Context,
    recipe: str = typer.Argument(help="YAML file, or the name of a recipe of this package."),
    check_rows: int = typer.Option(64, "--check_rows", help="Rows of each split that are read."),
    output_file: str | None = typer.Option(None, "--output_file", help="By default check.png in output_dir."),
) -> None:
    """
    Check a RECIPE before a long run: disk, model, data, augmentation, two steps.

    Takes the keys of `train`. Draws augmented examples into a PNG file, and leaves nothing else behind. The exit code
    is 1 if there are errors, 0 if there are warnings alone.
    """
    from hf_frozen_llm.commands.check import check

    report = check(recipe, context.args, check_rows, output_file)
    end_distributed()
    if report.errors:
        raise typer.Exit(1)


@app.command(context_settings=KEYS, options_metavar="[--over FIELD=a,b,c]... [--variants FILE] [--KEY VALUE]...")
def ablate(
    context: typer.Context,
    recipe: str = typer.Argument(help="YAML file, or the name of a recipe of this package."),
    over: list[str] = typer.Option([], help="FIELD=a,b,c: a variant for each value."),  # noqa: B008
    variants: str | None = typer.Option(None, help="YAML file of named variants, such as controls.yaml."),
    seeds: int = typer.Option(1, help="Seeds of each variant."),
    output_dir: str = typer.Option("runs/ablation", "--output_dir", help="Where everything is written."),
    dry_run: bool = typer.Option(False, "--dry_run", help="Check and print the commands of the runs alone."),
) -> None:
    """
    Train variants of a RECIPE, several seeds of each, and compare them.

    Writes ablation.csv, ablation.md and ablation.png. The same command goes on with what an earlier one began. Every
    key of the recipe can be given for all runs, as for `train`.
    """
    from hf_frozen_llm.ablation import ablate

    if not ablate(recipe, over, variants, seeds, output_dir, context.args, dry_run):
        raise typer.Exit(1)


@app.command()
def layer(
    llm: str = typer.Argument(help="Hub id, folder or .gguf file of the language model."),
    layer: list[int] = typer.Option([], help="A layer, negative from the end; several times for several."),  # noqa: B008
    revision: str | None = typer.Option(None, help="Branch, tag or commit on the Hub."),
    output: str | None = typer.Option(None, help="New folder for the layers; without it they are described."),
) -> None:
    """
    Print what a language model offers, or write layers of it to a small folder.

    The folder can be given wherever the language model can. Of a Hub repository, only the bytes of the layers are
    downloaded.
    """
    from hf_frozen_llm.layer import describe_llm, extract_layers
    from hf_frozen_llm.training.results import print_facts

    if output is not None:
        extract_layers(llm, layer or [-1], output, revision)
    print_facts(describe_llm(llm if output is None else output, (layer or [-1])[0], revision))


@app.command()
def info(model: str = typer.Argument(help="Folder or Hub id of the model.")) -> None:
    """Print what is in a checkpoint: host, LLM, layer, licence, parameters, FLOPs."""
    from hf_frozen_llm.info import describe_checkpoint
    from hf_frozen_llm.training.results import print_facts

    print_facts(describe_checkpoint(model))


@app.command()
def convert(
    checkpoint: str = typer.Argument(help="The .pth file."),
    task: str = typer.Option(help="image-classification, video-classification or point-cloud-classification."),
    output: str = typer.Option(help="Folder for the model; it must not exist or be empty."),
    num_attention_heads: int | None = typer.Option(None, help="Of the host."),
    llm_num_attention_heads: int | None = typer.Option(None, help="Of the LLM layer."),
    layer_index: int | None = typer.Option(None, help="Of the LLM layer; by default the released code's."),
    llm_name_or_path: str | None = typer.Option(None, help="Where the LLM layer came from."),
    num_frames: int | None = typer.Option(None, help="Of a clip."),
    image_size: int | None = typer.Option(None, help="Of a frame."),
    num_groups: int | None = typer.Option(None, help="Of a cloud of points."),
    group_size: int | None = typer.Option(None, help="Points of a group."),
    num_labels: int | None = typer.Option(None, help="Of the new classifier of a pre-trained host."),
    ema: bool = typer.Option(False, "--ema", help="Take the averaged weights."),
) -> None:
    """
    Convert a CHECKPOINT of the paper's released code to a model of this package.

    Sizes are read from the tensors; what they do not show is asked for. Every tensor is printed with what it becomes.
    """
    from hf_frozen_llm.conversion import convert_to_folder

    given = {
        "num_attention_heads": num_attention_heads,
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
    """Leaves torchrun's process group: threads of one that is left open can abort a process that ends."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        gc.collect()  # wrapped models are cycles, and keep the group alive
        distributed.barrier()
        distributed.destroy_process_group()


def main(argv: Sequence[str] | None = None) -> None:
    """
    Runs the command line.

    Args:
        argv (`Sequence[str]`, *optional*):
            The arguments. By default those of the process; given ones make errors reach the caller as exceptions.
    """
    if argv is None:
        app()
    else:
        app(list(argv), standalone_mode=False)
