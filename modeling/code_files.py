# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The code of a model beside its weights, with which it loads where this package is not installed."""

import os
import shutil
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files


def copy_code(auto_map: dict[str, str], folder: str | os.PathLike) -> None:
    """
    Copy the modules that an `auto_map` names, and those that they import, into a folder.

    Args:
        auto_map (`dict[str, str]`): by Auto class: `module.Class`. Modules that are not beside this one are left out.
        folder (`str` or `os.PathLike`): an existing folder.
    """
    for module in {reference.partition(".")[0] for reference in auto_map.values()}:
        file = Path(__file__).with_name(f"{module}.py")
        if file.is_file():
            for source in {str(file), *get_relative_import_files(str(file))}:
                shutil.copyfile(source, Path(folder, Path(source).name))


class SavedWithCode:
    """Mixin of processors: one that was loaded with its code is saved with it."""

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Save as in transformers; a processor that was loaded with its code is saved with it."""
        if auto_map := getattr(self, "auto_map", None):
            os.makedirs(save_directory, exist_ok=True)
            copy_code(auto_map, save_directory)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)  # type: ignore[misc]


__all__ = ["SavedWithCode", "copy_code"]
