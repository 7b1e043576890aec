# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Read the tensors of a file that also holds objects of other libraries, such as PyTorch Lightning's, without code."""

import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch


# All that the tensors of a state dictionary need. `torch.load` itself resolves their storages.
REBUILD = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}


class ForeignObject:
    """The empty place of an object of another class: it accepts its contents and drops them."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> "ForeignObject":
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass


class TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return REBUILD.get((module, name), ForeignObject)


def load_tensors(path: Path) -> Any:
    """Load a file of `torch.save`. Every object but tensors and plain containers becomes a [`ForeignObject`]."""
    pickle_module: Any = SimpleNamespace(Unpickler=TensorUnpickler, __name__=__name__)
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=pickle_module)
