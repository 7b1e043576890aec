# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The pictures of examples/cutouts.py: their objects are where the masks say, and the same seed repeats them."""

import csv

import cutouts
import numpy as np
import pytest
from masked_images import write_cutouts
from PIL import Image

from hf_frozen_llm.analysis import find_masked_images


@pytest.fixture
def folders(tmp_path):
    for name in ("animals", "food"):
        write_cutouts(tmp_path / "stamps" / name / "nested", 3)
    # No cut-outs: without transparency, and without an object.
    Image.new("RGB", (9, 9)).save(tmp_path / "stamps" / "food" / "photo.png")
    Image.new("RGBA", (9, 9)).save(tmp_path / "stamps" / "food" / "empty.png")
    (tmp_path / "backgrounds").mkdir()
    for number, size in enumerate([(60, 40), (20, 50)]):
        Image.new("RGB", size, (200, 30, 30)).save(tmp_path / "backgrounds" / f"{number}.jpg")
    return tmp_path


def run(folders, monkeypatch, *flags, output="made"):
    arguments = [folders / "stamps", folders / "backgrounds", folders / output, *flags]
    monkeypatch.setattr("sys.argv", ["examples/cutouts.py", *map(str, arguments)])
    cutouts.main()
    return folders / output


def test_masks_are_exact(folders, monkeypatch, capsys):
    made = run(folders, monkeypatch, "--count", 10, "--size", 48)
    assert capsys.readouterr().out.startswith("10 pictures of 6 cut-outs: ")
    images = find_masked_images(made)
    assert [image.name for image in images] == [
        f"{('animals', 'food')[n % 2]}/{n:05}" for n in (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
    ]
    places = set()
    for image in images:
        picture, mask = image.read()
        assert picture.size == (48, 48)
        rows, columns = np.nonzero(mask)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        # The disc is a little smaller than its picture, and 1.5 times as high as wide.
        assert 0.3 * 48 < height < 0.76 * 48 and width / height == pytest.approx(2 / 3, abs=0.12)
        places.add((rows.min(), columns.min()))
        is_green = np.asarray(picture)[..., 1] > 115
        assert (is_green == (mask == 1)).mean() > 0.97  # except for the edge
    assert len(places) > 5
    rows = list(csv.DictReader((made / "sources.csv").open()))
    assert len(rows) == 10 and {row["background"] for row in rows} == {"0.jpg", "1.jpg"}


def test_repeated_by_its_seed(folders, monkeypatch):
    first = run(folders, monkeypatch, "--count", 3, "--size", 16, output="first")
    longer = run(folders, monkeypatch, "--count", 4, "--size", 16, output="longer")
    other = run(folders, monkeypatch, "--count", 3, "--size", 16, "--seed", 1, output="other")
    names = [file.relative_to(first) for file in sorted(first.rglob("*.png"))]
    assert len(names) == 6
    assert all((first / name).read_bytes() == (longer / name).read_bytes() for name in names)
    assert any((first / name).read_bytes() != (other / name).read_bytes() for name in names)


def test_bad_folders(folders, monkeypatch):
    with pytest.raises(SystemExit, match=r"has no sub-folder people; it has animals, food"):
        run(folders, monkeypatch, "--classes", "people")
    (folders / "made").mkdir()
    with pytest.raises(SystemExit, match="made exists already"):
        run(folders, monkeypatch)
    (folders / "stamps" / "animals" / "broken.png").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"broken.png is no picture"):
        run(folders, monkeypatch, output="second")
    (folders / "backgrounds" / "0.jpg").unlink()
    (folders / "backgrounds" / "1.jpg").unlink()
    with pytest.raises(SystemExit, match="holds no background pictures"):
        run(folders, monkeypatch, "--classes", "food", output="third")
    (folders / "plain").mkdir()
    with pytest.raises(cutouts.CutoutError, match="has no sub-folders with PNG files"):
        cutouts.find_cutouts(folders / "plain")
