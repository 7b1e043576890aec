# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The keys of recipes, listed by group for `--help`, from the docstrings of their classes."""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterable
from typing import Any

from transformers import TrainingArguments

from hf_frozen_llm import LLMBlockConfig
from hf_frozen_llm.data.arguments import DataArguments
from hf_frozen_llm.modeling.configuration_llm_block import own_fields
from hf_frozen_llm.tasks import TASKS
from hf_frozen_llm.training.arguments import EvaluationArguments, ModelArguments, RunArguments
from hf_frozen_llm.training.evaluate import evaluation_keys
from hf_frozen_llm.training.run import EVALUATION_TRAINER_KEYS


WIDTH = 100


def describe_training_keys() -> str:
    """Return the keys of `train` and `ablate`, by group."""
    shared = field_names(DataArguments)
    groups = [
        list_keys("Model", ModelArguments),
        list_keys("Run", RunArguments),
        list_keys("Data of every task", DataArguments),
        *(list_keys(f"Data of {name}", task.arguments, skip=shared) for name, task in TASKS.items()),
        list_keys("Group llm_block: the block (`--llm_block null` is the plain host)", LLMBlockConfig, "llm_block."),
        textwrap.fill(
            "Group host: host.name_or_path and host.revision of a published host to start from, and the fields of "
            "the host's configuration, such as host.hidden_size. host.trust_remote_code allows code in the host's "
            "repository to be executed, which never happens without it.",
            WIDTH,
        ),
        textwrap.fill(
            "Group lora: the fields of peft.LoraConfig, such as lora.r, lora.lora_alpha and lora.target_modules, for "
            "LoRA on the LLM layer.",
            WIDTH,
        ),
        list_keys("Training, by transformers.TrainingArguments", TrainingArguments),
    ]
    return "\n\n".join(groups)


def describe_evaluation_keys() -> str:
    """Return the keys of `evaluate` and `predict`, by group."""
    training = field_names(DataArguments).difference(*(evaluation_keys(task) for task in TASKS.values()))
    groups = [
        list_keys("What to evaluate", EvaluationArguments),
        list_keys("Data of every task", DataArguments, skip=training),
        *(
            list_keys(f"Data of {name}", task.arguments, keep=task.arguments.evaluation_keys)
            for name, task in TASKS.items()
        ),
        list_keys("How to run, by transformers.TrainingArguments", TrainingArguments, keep=EVALUATION_TRAINER_KEYS),
        textwrap.fill(
            "llm_block.llm_name_or_path and llm_block.llm_revision give the new location of a light model's language "
            "model.",
            WIDTH,
        ),
    ]
    return "\n\n".join(groups)


def field_names(cls: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def list_keys(
    title: str, cls: Any, prefix: str = "", skip: Iterable[str] = (), keep: Iterable[str] | None = None
) -> str:
    """Return a line or two for each field of a class: its name, default and the first sentence about it."""
    described = parse_docstring(cls)
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    names = own_fields(cls) if cls is LLMBlockConfig else defaults
    wanted = [name for name in names if name not in set(skip) and (keep is None or name in set(keep))]
    lines = [textwrap.fill(f"{title}:", WIDTH)]
    for name in wanted:
        default = defaults[name]
        text = described.get(name, "")
        is_said = default in (None, "", dataclasses.MISSING) or isinstance(default, type)
        line = f"--{prefix}{name}" + ("" if is_said else f" [{getattr(default, 'value', default)}]")
        indent = " " * 6
        lines.append(textwrap.fill(f"{line}  {text}", WIDTH, initial_indent="  ", subsequent_indent=indent))
    return "\n".join(lines)


def parse_docstring(cls: Any) -> dict[str, str]:
    """Return the first sentence about each argument in a docstring of transformers' form."""
    described: dict[str, str] = {}
    for parent in reversed(cls.__mro__):
        text = inspect.cleandoc(parent.__doc__ or "")
        for match in re.finditer(r"^ +(\w+) \(.*\):\s*(.*(?:\n(?! *\w+ \(`).+)*)", text, re.MULTILINE):
            sentence = " ".join(match[2].split())
            described[match[1]] = re.split(r"(?<=[a-z)\]`])[.:] ", sentence)[0].rstrip(".:") + "."
    return described
