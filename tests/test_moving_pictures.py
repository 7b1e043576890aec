# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
from moving_pictures import FRAMES, MOTIONS, SIDE, make_frames, make_videos
from PIL import Image
from tiny_runs import write_parquet

from hf_frozen_llm.tasks.video_classification.data import read_frames


def shape_of(frame, background):
    """Return centre (x, y), area and second moments of the foreground."""
    y, x = np.nonzero(np.abs(np.asarray(frame).astype(int) - background).sum(-1) > 60)
    return x.mean(), y.mean(), len(x), np.polyfit(x, y, 1)[0]


@pytest.mark.parametrize("motion", MOTIONS)
def test_motions_are_what_they_are_called(motion):
    bar = np.zeros((32, 32, 4), np.uint8)
    bar[14:18] = (255, 255, 255, 255)  # a horizontal bar
    for seed in range(4):
        frames = make_frames(Image.fromarray(bar), motion, np.random.default_rng(seed))
        assert len(frames) == FRAMES and frames[0].size == (SIDE, SIDE)
        background = np.asarray(frames[0])[0, 0].astype(int)
        if np.abs(background - 255).sum() < 150:
            continue
        first, last = (shape_of(frames[i], background) for i in (0, -1))
        moved_x, moved_y, grown = last[0] - first[0], last[1] - first[1], last[2] / first[2]
        turned = np.degrees(np.arctan(first[3]) - np.arctan(last[3]))  # y points down: positive is to the left
        if motion in ("left", "right"):
            assert 15 < moved_x * (1 if motion == "right" else -1) and abs(moved_y) < 3
        elif motion in ("up", "down"):
            assert 15 < moved_y * (1 if motion == "down" else -1) and abs(moved_x) < 3
        elif motion in ("grows", "shrinks"):
            assert (grown > 1.5) if motion == "grows" else (grown < 0.67)
        else:
            assert 30 < turned * (1 if motion == "turns left" else -1) < 120


def test_videos_are_files_of_every_class(tmp_path):
    pictures = write_parquet(tmp_path / "cifar10", {"train": 20, "test": 10}, image="img")
    make_videos(tmp_path / "videos", pictures, {"train": 17, "test": 8})
    files = sorted((tmp_path / "videos").glob("*/*/*.mp4"))
    assert len(files) == 25
    assert {file.parent.name for file in files if file.parent.parent.name == "test"} == set(MOTIONS)
    frames = read_frames({"path": str(files[0]), "bytes": None}, lambda total: np.arange(total))
    assert len(frames) == FRAMES and frames[0].size == (SIDE, SIDE)
    with pytest.raises(FileExistsError, match="exists already"):
        make_videos(tmp_path / "videos", pictures, {"train": 1})
    make_videos(tmp_path / "again", pictures, {"train": 17, "test": 8})
    again = [tmp_path / "again" / file.relative_to(tmp_path / "videos") for file in files]
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
