# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import sys
import zipfile

import furniture_points
import numpy as np
import pytest

from hf_frozen_llm.tasks.point_cloud_classification import PointCloudClassification, PointDataArguments


TRIANGLE = "mtllib missing.mtl\nv 0 0 0\nv 100 0 0\nv 0 {} 0\nusemtl wood\nf 1 2 3\n"


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Bedside table", "table_desk"),
        ("Sofa bed", "sofa"),
        ("Day bed", "bed"),
        ("Glass door cabinet", "storage"),
        ("Shower door", "door_window"),
        ("Track lights", "lamp"),
        ("Winchester armchair", "sofa"),
        ("Christmas tree", "plant"),
        ("Child chair", "chair"),
        ("Children game", None),
        ("Snowman", None),
    ],
)
def test_classes_by_name(name, label):
    assert furniture_points.find_class(name) == label


def test_file(tmp_path, monkeypatch, capsys):
    pytest.importorskip("trimesh")
    names = ["Armchair", "Bed", "Baby bottle", "Oven", "Truck", "Bed"]
    for library, first in (("B", 0), ("A", 3)):
        with zipfile.ZipFile(tmp_path / f"{library}.sh3f", "w") as archive:
            entries = []
            for number, name in enumerate(names[first : first + 3], start=1):
                entries += [f"name#{number}={name}", f"model#{number}=/models/{number}.obj"]
                archive.writestr(f"models/{number}.obj", TRIANGLE.format(10 * number))
            archive.writestr(furniture_points.CATALOG, "\r\n".join(["name=Bleu é", *entries]).encode("latin-1"))
    monkeypatch.setattr(furniture_points, "LIBRARIES", ("B", "A"))
    output = tmp_path / "furniture.npz"
    command = ["furniture_points.py", "--libraries", str(tmp_path), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    furniture_points.main()
    assert "1 + 4 point clouds of 13 classes" in capsys.readouterr().out
    with np.load(output) as content:
        assert content["name"].tolist() == ["Armchair", "Bed", "Baby bottle", "Oven", "Bed"]
        assert content["classes"][content["label"]].tolist() == ["sofa", "bed", "person", "appliance", "bed"]
        assert content["split"].tolist() == ["test", "test", "train", "test", "test"]
        assert content["points"].shape == (5, 1024, 3) and content["points"].dtype == np.float16
        assert 15 < content["points"][1, :, 1].max() <= 20
    rows = PointCloudClassification.read(PointDataArguments(str(output)), "test")
    assert len(rows) == 4
    with pytest.raises(SystemExit, match="exists already"):
        furniture_points.main()
    (tmp_path / "A.sh3f").unlink()
    with pytest.raises(SystemExit, match=r"there is no .*A\.sh3f\. Install Debian's sweethome3d-furniture"):
        furniture_points.main()
