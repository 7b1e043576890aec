# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Cast values of YAML files and flags to the types of their fields."""

import enum
import re
import types
import typing
from typing import Any, Literal

import yaml


class RecipeLoader(yaml.SafeLoader):
    """Read numbers as YAML 1.2 does: by default PyYAML reads `1e-3` as a string."""


RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def construct(node: yaml.Node) -> Any:
    loader = RecipeLoader("")
    return loader.construct_document(node)


def cast(key: str, annotation: Any, node: yaml.Node, where: str) -> Any:
    """Cast a YAML node to the annotation of the field `key`, or refuse it."""
    value = construct(node)
    choices = flatten(annotation)
    if value is None and types.NoneType in choices:
        return None
    if any(isinstance(choice, type) and issubclass(choice, enum.Enum) for choice in choices):
        choices = [choice for choice in choices if choice is not str]
    for choice in choices:
        try:
            return cast_to(choice, node, value)
        except (OverflowError, TypeError, ValueError):
            continue
    allowed = " or ".join(describe_type(choice) for choice in choices)
    got = node.value if isinstance(node, yaml.ScalarNode) else value
    raise ValueError(f"{where}: `{key}` must be {allowed}, got {got!r}.")


def flatten(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [choice for part in typing.get_args(annotation) for choice in flatten(part)]
    return [annotation]


def cast_to(choice: Any, node: yaml.Node, value: Any) -> Any:
    origin = typing.get_origin(choice) or choice
    is_scalar = isinstance(node, yaml.ScalarNode)
    if origin is Any:
        return value
    if origin is Literal:
        if is_scalar and node.value in typing.get_args(choice):
            return node.value
    elif origin in (list, tuple):
        if isinstance(node, yaml.SequenceNode):
            part = (typing.get_args(choice) or (Any,))[0]
            return [cast_to(part, item, construct(item)) for item in node.value]
    elif origin is dict:
        if isinstance(node, yaml.MappingNode):
            item = (typing.get_args(choice) or (Any, Any))[1]
            return {str(key.value): cast_to(item, part, construct(part)) for key, part in node.value}
    elif not is_scalar or value is None:
        pass
    elif origin is bool:
        if isinstance(value, bool):
            return value
    elif origin is int:
        if not isinstance(value, bool) and float(value) == int(float(value)):
            return int(value if isinstance(value, int) else float(value))
    elif origin is float:
        if not isinstance(value, bool):
            return float(value)
    elif origin is str:
        # The text itself, because YAML reads `no` as false and `010` as 8.
        return node.value
    elif isinstance(origin, type) and issubclass(origin, enum.Enum):
        return origin(node.value).value
    raise ValueError


def describe_type(choice: Any) -> str:
    if typing.get_origin(choice) is Literal:
        return " or ".join(repr(value) for value in typing.get_args(choice))
    if isinstance(choice, type) and issubclass(choice, enum.Enum):
        return " or ".join(repr(member.value) for member in choice)
    return "null" if choice is types.NoneType else getattr(choice, "__name__", str(choice))
