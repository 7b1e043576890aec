# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Recipes: flat YAML files whose keys are dataclass fields, and the command-line flags that override them."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml
from peft import LoraConfig
from transformers import TrainingArguments
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

import hf_frozen_llm.recipes
from hf_frozen_llm import LLMBlockConfig
from hf_frozen_llm.modeling.configuration_llm_block import own_fields
from hf_frozen_llm.modeling.vision_host import load_host_config, vision_config_of
from hf_frozen_llm.tasks import TASKS
from hf_frozen_llm.training.arguments import ModelArguments, RunArguments
from hf_frozen_llm.training.casting import RecipeLoader, cast, construct


logger = logging.get_logger(__name__)

GROUPS = ("llm_block", "host", "lora")
# Folders that hold other settings than recipes.
NO_RECIPES = ("accelerate", "variants")


@dataclass
class Recipe:
    """
    The settings of one run, cast to the types of their fields.

    Args:
        values (`dict[str, Any]`):
            The flat keys that were given.
        llm_block (`dict[str, Any]`, *optional*):
            Fields of [`LLMBlockConfig`]; `None` is the plain host.
        host (`dict[str, Any]`):
            Fields of the host's configuration, and `name_or_path` and `revision` of a published host to start from. If
            the host may be any vision encoder, `model_type` says which, or `name_or_path` does; only with
            `trust_remote_code` is code of its repository executed.
        lora (`dict[str, Any]`, *optional*):
            Fields of `peft.LoraConfig`, such as `r`: the LLM layers are trained by LoRA, and saved with it merged.
    """

    values: dict[str, Any]
    llm_block: dict[str, Any] | None
    host: dict[str, Any]
    lora: dict[str, Any] | None = None

    def arguments(self, cls: type, **defaults: Any) -> Any:
        """Build one of the argument dataclasses; `defaults` replace its own where the recipe has no value."""
        names = {field.name for field in dataclasses.fields(cls)}
        given = {key: value for key, value in self.values.items() if key in names}
        return cls(**{**defaults, **given})

    def to_dict(self) -> dict[str, Any]:
        """Return all settings except access tokens, because they are written beside the model."""
        values = {key: value for key, value in self.values.items() if not key.endswith("_token")}
        return {**values, "llm_block": self.llm_block, "host": self.host, "lora": self.lora}


def read_recipe(path: str | Path | None, overrides: Sequence[str] = (), extra: Sequence[type] = ()) -> Recipe:
    """
    Read a recipe and apply command-line overrides.

    Args:
        path (`str` or `Path`, *optional*):
            The YAML file. A path that does not exist is looked up among the recipes of this package.
        overrides (`Sequence[str]`, *optional*):
            Flags such as `["--learning_rate", "1e-3", "--llm_block.layer_index", "30"]`.
        extra (`Sequence[type]`, *optional*):
            Dataclasses whose fields are valid keys too.

    Returns:
        [`Recipe`]: the settings.
    """
    entries = {} if path is None else read_entries(find_recipe(path))
    add_overrides(entries, overrides)
    return cast_entries(entries, extra)


def read_entries(file: Path) -> dict[str, tuple[yaml.Node, str]]:
    """Read the entries of a recipe, and those of its `base`, another recipe, of which it overrides a few keys."""
    entries: dict[str, tuple[yaml.Node, str]] = {}
    add_entries(entries, compose(file.read_text(encoding="utf-8"), str(file)), str(file))
    if "base" not in entries:
        return entries
    node, where = entries.pop("base")
    below: dict[str, tuple[yaml.Node, str]] = {}
    base = find_recipe(str(node.value))
    add_entries(below, compose(base.read_text(encoding="utf-8"), str(base)), str(base))
    if "base" in below:
        raise ValueError(f"{where}: the base {base} has a base itself; name that one.")
    for group in GROUPS:
        if group in entries and construct(entries[group][0]) is None:
            below = {key: entry for key, entry in below.items() if not key.startswith(f"{group}.")}
    return {**below, **entries}


def recipe_from_dict(settings: dict[str, Any], overrides: Sequence[str], source: str, extra: Sequence[type]) -> Recipe:
    """Build a recipe from the settings that [`Recipe.to_dict`] returned."""
    entries: dict[str, tuple[yaml.Node, str]] = {}
    add_entries(entries, compose(yaml.safe_dump(settings), source), source)
    add_overrides(entries, overrides)
    return cast_entries(entries, extra)


def find_recipe(path: str | Path) -> Path:
    file, folder = Path(path).expanduser(), Path(hf_frozen_llm.recipes.__file__).parent
    for candidate in (file, folder / file):
        if candidate.is_file():
            return candidate
    recipes = [recipe for recipe in folder.glob("*/*.yaml") if recipe.parent.name not in NO_RECIPES]
    known = sorted(recipe.relative_to(folder).as_posix() for recipe in recipes)
    nearest = get_close_matches(str(path), known, n=3, cutoff=0)
    raise FileNotFoundError(
        f"There is no recipe {file}. Of the {len(known)} of this package, the nearest are {', '.join(nearest)}; all "
        f"are in {folder}."
    )


def compose(text: str, source: str) -> yaml.Node:
    try:
        return yaml.compose(text, Loader=RecipeLoader) or yaml.MappingNode("tag:yaml.org,2002:map", [])
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not valid YAML: {error}") from error


def add_entries(entries: dict[str, tuple[yaml.Node, str]], root: yaml.Node, source: str) -> None:
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{source} must hold `key: value` lines.")
    for key, node, where in items(root, source, entries):
        if key in GROUPS and isinstance(node, yaml.MappingNode):
            entries[key] = (compose("{}", source), where)
            for name, value, line in items(node, source, entries, prefix=f"{key}."):
                entries[name] = (value, line)
        else:
            entries[key] = (node, where)


def items(node: yaml.MappingNode, source: str, seen: dict, prefix: str = ""):
    for key_node, value_node in node.value:
        key, where = prefix + str(key_node.value), f"{source}, line {key_node.start_mark.line + 1}"
        if key in seen:
            raise ValueError(f"{where}: `{key}` was already set at {seen[key][1]}; remove one of the two.")
        yield key, value_node, where


def add_overrides(entries: dict[str, tuple[yaml.Node, str]], overrides: Sequence[str]) -> None:
    remaining = list(overrides)
    while remaining:
        flag = remaining.pop(0)
        if not flag.startswith("--") or len(flag) == 2:
            raise ValueError(f"Command line: expected `--key value`, got {flag!r}.")
        key, equals, text = flag[2:].partition("=")
        key = key.replace("-", "_")
        if not equals:
            # A flag without a value is true: `--resume`.
            text = remaining.pop(0) if remaining and not remaining[0].startswith("--") else "true"
        where = f"command line, --{key}"
        group = key.partition(".")[0]
        if group in GROUPS:
            if key == group:
                for name in [name for name in entries if name.startswith(f"{group}.")]:
                    del entries[name]
            else:
                entries[group] = (compose("{}", where), where)
        if key == "host.name_or_path" and text not in ("null", ""):
            leave_out_sizes(entries, text)
        entries[key] = (compose(text, where) if text else yaml.ScalarNode("tag:yaml.org,2002:str", ""), where)


def flatten_groups(settings: Mapping[str, Any], groups: Sequence[str] = GROUPS) -> dict[str, Any]:
    """Return the settings of a recipe with one entry for each field of a group, such as `host.hidden_size`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if name in groups and value is not None:
            flat |= {name: "set", **{f"{name}.{field}": item for field, item in value.items()}}
        else:
            flat[name] = value
    return flat


def leave_out_sizes(entries: dict[str, tuple[yaml.Node, str]], host: str) -> None:
    """Leave out a recipe's sizes of a host of its own: a published host, named on the command line, has its own."""
    if "host.name_or_path" in entries:
        return
    hosts = [name for name in entries if name.startswith("host.")]
    of_recipe = [name for name in hosts if "command line" not in entries[name][1]]
    values = {name: construct(entries[name][0]) for name in of_recipe}
    names = [n for n, v in values.items() if n == "host.model_type" or type(v) in (int, list)]
    if names:
        logger.warning(f"The host {host} has its own sizes: {', '.join(names)} of the recipe are left out.")
    for name in names:
        del entries[name]


def cast_entries(entries: dict[str, tuple[yaml.Node, str]], extra: Sequence[type]) -> Recipe:
    valid: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(ModelArguments)}
    valid["task"] = Literal[tuple(TASKS)]
    valid["model_type"] = Literal[tuple(name for task in TASKS.values() for name in task.models)]
    task, model_type = (
        cast(name, valid[name], *entries[name]) if name in entries else getattr(ModelArguments, name)
        for name in ("task", "model_type")
    )
    for cls in (TASKS[task].arguments, RunArguments, TrainingArguments, *extra):
        valid |= {field.name: field.type for field in dataclasses.fields(cls)}
    valid |= {f"llm_block.{name}": type_ for name, type_ in own_fields(LLMBlockConfig).items()}
    valid |= {f"host.{name}": type_ for name, type_ in host_fields(model_type, entries).items()}
    valid |= {f"lora.{name}": type_ for name, type_ in typing.get_type_hints(LoraConfig).items()}

    recipe = Recipe(values={}, llm_block=None, host={})
    for key, (node, where) in entries.items():
        group, _, name = key.partition(".")
        if key in GROUPS:
            value = construct(node)
            if value not in (None, {}):
                raise ValueError(f"{where}: `{key}` must be null or hold `field: value` lines, got {value!r}.")
            if value == {} and key != "host":
                setattr(recipe, key, getattr(recipe, key) or {})
            continue
        if key not in valid:
            for other in TASKS.values():
                if key in {field.name for field in dataclasses.fields(other.arguments)}:
                    raise ValueError(
                        f"{where}: `{key}` is a key of the task {other.name}, and the task here is {task}."
                    )
            nearest = get_close_matches(key, [*valid, *GROUPS], n=1, cutoff=0)[0]
            raise ValueError(f"{where}: unknown key `{key}`; the nearest valid key is `{nearest}`.")
        value = cast(key, valid[key], node, where)
        if group == "llm_block":
            recipe.llm_block = {**(recipe.llm_block or {}), name: value}
        elif group == "host":
            recipe.host[name] = value
        elif group == "lora":
            recipe.lora = {**(recipe.lora or {}), name: value}
        else:
            recipe.values[key] = value
    if recipe.lora is not None:
        block = recipe.llm_block
        if block is None or block.get("kind", "llm") != "llm" or block.get("trainable", False):
            raise ValueError(
                "lora trains LLM layers that are frozen otherwise; it needs an llm_block of the kind 'llm' that is "
                "not trainable. Remove lora (`--lora null`), or change llm_block."
            )
    return recipe


def host_fields(model_type: str, entries: dict[str, tuple[yaml.Node, str]]) -> dict[str, Any]:
    """Return names and types of the keys of the group `host`: fields of the host's configuration, and its name."""
    keys: dict[str, Any] = {"name_or_path": str | None, "revision": str | None}
    config_class: type | None = CONFIG_MAPPING[model_type]
    if model_type == "vision_with_llm_block":
        keys |= {"model_type": str, "trust_remote_code": bool, "drop_path_rate": float}
        config_class = find_host_class(entries)
    if model_type == "meter_with_llm_block":
        keys |= {"text_name_or_path": str | None, "text_revision": str | None, "image_size": int | None}
    fields = {} if config_class is None else own_fields(config_class)
    return {**{name: fields[name] for name in fields if name != "llm_block" and not name.startswith("_")}, **keys}


def find_host_class(entries: dict[str, tuple[yaml.Node, str]]) -> type | None:
    """Return the configuration class of the host; `None` if only `name_or_path` is given."""
    if "host.model_type" in entries:
        host_type = cast("host.model_type", str, *entries["host.model_type"])
        problem = f"{entries['host.model_type'][1]}: `host.model_type` is {host_type!r}"
        if host_type not in CONFIG_MAPPING:
            nearest = get_close_matches(host_type, CONFIG_MAPPING.keys(), n=1, cutoff=0)[0]
            raise ValueError(f"{problem}, which transformers does not know; the nearest it knows is {nearest!r}.")
        config_class = CONFIG_MAPPING[host_type]
        if "vision_config" in config_class.sub_configs:
            raise ValueError(
                f"{problem}, which has more than a vision encoder. Name only that, such as 'clip_vision_model'."
            )
        return config_class
    name_or_path = None
    if "host.name_or_path" in entries:
        name_or_path = cast("host.name_or_path", str | None, *entries["host.name_or_path"])
    if name_or_path is None:
        raise ValueError(
            "model_type is vision_with_llm_block, but `host` does not say which vision encoder. Set host.model_type "
            "(`--host.model_type dinov2`) to build one, or host.name_or_path (`--host.name_or_path "
            "facebook/dinov2-small`) to start from a published one."
        )
    if {key for key in entries if key.startswith("host.")} <= {
        *("host.name_or_path", "host.revision", "host.trust_remote_code")
    }:
        return None  # without fields to check, the host need not be reachable
    revision = cast("host.revision", str | None, *entries["host.revision"]) if "host.revision" in entries else None
    trusted = "host.trust_remote_code" in entries and cast(
        "host.trust_remote_code", bool, *entries["host.trust_remote_code"]
    )
    published = load_host_config(name_or_path, trust_remote_code=trusted, revision=revision)
    return type(vision_config_of(published))
