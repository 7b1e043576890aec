# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The command `hf-frozen-llm`."""

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
    from hf_frozen_llm.training.evaluation import evaluate

    evaluate(model, context.args)


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
