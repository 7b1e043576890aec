# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The class names that parquet files store."""

import datasets
import pytest

from hf_frozen_llm.data.arguments import DataArguments
from hf_frozen_llm.data.datasets import load_rows


def write(path, names, labels):
    features = datasets.Features({"label": datasets.ClassLabel(names=names)})
    datasets.Dataset.from_dict({"label": labels}, features=features).to_parquet(path)


def labels_of(folder, split, streaming=False):
    rows = load_rows(DataArguments(str(folder), streaming=streaming), split)
    return [rows.features["label"].int2str(row["label"]) for row in rows]


@pytest.mark.parametrize("folder", ["data", "data [v1]"])
@pytest.mark.parametrize("streaming", [False, True])
def test_each_split_has_the_names_of_its_files(tmp_path, streaming, folder):
    """Not those of the first file: `datasets` would read the birds of the other split as ants."""
    folder = tmp_path / folder
    folder.mkdir()
    write(folder / "train-00000-of-00002.parquet", ["ant", "bird"], [0, 0, 1])
    write(folder / "train-00001-of-00002.parquet", ["ant", "bird"], [1])
    write(folder / "test-00000-of-00001.parquet", ["bird", "cow", "ant"], [0, 1, 2])
    assert labels_of(folder, "train", streaming) == ["ant", "ant", "bird", "bird"]
    assert labels_of(folder, "test", streaming) == ["bird", "cow", "ant"]
    if not streaming:
        assert labels_of(folder, "test[1:]") == ["cow", "ant"]
        with pytest.raises(ValueError, match=r"differently: {'label': \[.ant., .bird.\]} and"):
            labels_of(folder, "train+test")
    with pytest.raises(ValueError, match="nothing"):
        labels_of(folder, "nothing", streaming)


def test_shards_with_other_names_are_refused(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", ["ant", "bird"], [0])
    write(tmp_path / "train-00001-of-00002.parquet", ["bird", "ant"], [0])
    with pytest.raises(ValueError, match=r"train-00000-of-00002\.parquet and .*00001-of-00002\.parquet number"):
        labels_of(tmp_path, "train")
