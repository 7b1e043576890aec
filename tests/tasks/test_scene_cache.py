# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Scenes are read again when what they were read from has changed: here, their maps."""

from pathlib import Path

import datasets
import pytest
from tiny_traffic import write_argoverse1, write_argoverse2, write_log

from hf_frozen_llm.tasks.motion_forecasting.argoverse import find_city_map
from hf_frozen_llm.tasks.motion_forecasting.arguments import MotionDataArguments
from hf_frozen_llm.tasks.motion_forecasting.maps import read_argoverse1_map, read_argoverse2_map
from hf_frozen_llm.tasks.motion_forecasting.readers import read_scenes


WRITERS = {
    "Argoverse 1": lambda folder: write_argoverse1(folder, {"train": 1}),
    "Argoverse 2": lambda folder: write_argoverse2(folder, {"train": 1}),
    "sensor log": write_log,
}


@pytest.mark.parametrize("name", WRITERS)
def test_changed_maps_are_read_again(name, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = WRITERS[name](tmp_path / "data")
    args = MotionDataArguments(dataset_name=path, num_history_steps=20, num_future_steps=30)

    def lanes():
        for cached in (read_argoverse1_map, read_argoverse2_map, find_city_map):
            cached.cache_clear()  # as in a new process
        return read_scenes(args, "train")[0]["lanes"]

    before = lanes()
    assert before and lanes() == before
    (file,) = [*Path(path).rglob("log_map_archive_*.json"), *Path(path).rglob("*_vector_map.xml")]
    old, new = ('x="-90" y="0"', 'x="-95" y="0"') if name == "Argoverse 1" else ('"y": 2,', '"y": 4,')
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    assert lanes() != before
