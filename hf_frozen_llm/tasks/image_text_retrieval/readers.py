# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Images with captions from the files of Flickr30k and COCO, in Karpathy's splits."""

import json
from pathlib import Path
from typing import Any

import datasets

from hf_frozen_llm.data.folders import take_slices
from hf_frozen_llm.data.image_texts import Columns, ImageTextArguments, image_files, name_splits


def is_karpathy(root: Path) -> bool:
    """Return whether a file has the format of `dataset_flickr30k.json` and `dataset_coco.json`."""
    if not root.is_file() or root.suffix.lower() != ".json":
        return False
    with root.open(encoding="utf-8") as stream:
        return '"images"' in stream.read(200)


def read_karpathy(args: ImageTextArguments, root: Path, split: str) -> tuple[datasets.Dataset, Columns]:
    """
    Read splits of Karpathy: `train`, `val`, `test`, of COCO also `restval`, and their sums. The images lie in
    `image_folder`, by default the folder of the file; those of COCO in its folders `train2014` and `val2014`.
    """
    entries = json.loads(root.read_text(encoding="utf-8"))["images"]
    by_split: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        by_split.setdefault(entry["split"], []).append(entry)
    if unknown := [name for name in name_splits(split) if name not in by_split]:
        raise ValueError(
            f"{args.dataset_name} [{split}] could not be loaded: Unknown split {unknown[0]!r}. The file has "
            f"{', '.join(sorted(by_split))}."
        )
    rows = take_slices(split, by_split)
    names = [str(Path(row.get("filepath", ""), row["filename"])) for row in rows]
    images = image_files(args, root.parent, names)
    return images, {"captions": [[sentence["raw"] for sentence in row["sentences"]] for row in rows]}
