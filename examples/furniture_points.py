# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Make `furniture_points.npz` for `point_cloud_classification/tiny.yaml` from the libraries of Sweet Home 3D (CC BY 3.0,
CC0, Free Art): `python examples/furniture_points.py`.

Debian has the libraries in its packages `sweethome3d-furniture` 1.8 and, in non-free, `sweethome3d-furniture-nonfree`
1.6.2. Of their 1,385 models, 784 have a name that tells their class. All models of one name are in the same split.
"""

import argparse
import hashlib
import importlib.util
import io
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np


# The first rule that finds a word in a model's name, in lower case, gives the class.
RULES = (
    ("lamp", "lamp|light|lantern"),
    ("storage", r"bookcase|cabinet|\bchest|cupboard|drawer|dresser|rack|shelf|shelv|sideboard|wardrobe"),
    ("door_window", "door|gate|shutter|window"),
    ("sofa", "armchair|couch|sofa"),
    ("table_desk", "desk|table"),
    ("bed", r"\bbed\b|crib"),
    ("chair", "bench|chair|seat|stool"),
    ("bathroom", "basin|bath|bidet|shower|sink|toilet|urinal"),
    ("appliance", "cooker|dish|dryer|fridge|hob|hood|kettle|microwave|oven|stove|toaster|washing machine"),
    ("electronics", "keyboard|laptop|monitor|phone|printer|radio|screen|speaker|tv"),
    ("person", r"baby|boy|\bchild\b|girl|male|woman"),
    ("plant", "bush|cactus|flower|hedge|plant|tree"),
    ("stairs_rail", "balustrade|fence|handrail|ladder|railing|stair"),
)
CLASSES = sorted(name for name, _ in RULES)
# In the order of the rows.
LIBRARIES = (
    *("BlendSwap-CC-0", "BlendSwap-CC-BY", "KatorLegaz", "Reallusion", "Scopia"),
    *("Contributions", "LucaPresidente", "Trees"),
)
CATALOG = "PluginFurnitureCatalog.properties"
FOLDER = Path("/usr/share/sweethome3d/furniture")
NUM_POINTS = 1024


def find_class(name: str) -> str | None:
    """Return the class of a model by its name, or `None`."""
    return next((label for label, words in RULES if re.search(words, name.lower())), None)


def find_split(name: str) -> str:
    """Return `"test"` for three of ten names, always the same ones."""
    return "test" if int(hashlib.sha256(name.lower().encode()).hexdigest(), 16) % 10 < 3 else "train"


def read_catalog(library: zipfile.ZipFile) -> list[tuple[str, str]]:
    """Return the name and the path of each model of a library."""
    text = library.read(CATALOG).decode("latin-1")  # as Java's properties are
    entries = {
        key: {number: value.strip() for number, value in re.findall(rf"(?m)^{key}#(\d+)=(.*)$", text)}
        for key in ("name", "model")
    }
    return [(name, entries["model"][number].lstrip("/")) for number, name in entries["name"].items()]


def sample_surface(model: bytes) -> np.ndarray:
    """Sample points on the surface of a model in OBJ format."""
    import trimesh

    shape: Any = trimesh.load(io.BytesIO(model), file_type="obj", process=False, skip_materials=True)
    mesh = shape.to_geometry() if isinstance(shape, trimesh.Scene) else shape
    return trimesh.sample.sample_surface(mesh, NUM_POINTS, seed=0)[0]


def make_clouds(libraries: list[Path]) -> dict[str, Any]:
    """Return the arrays of the file: `points`, `label`, `split`, `classes`, and the `name` and `library` of each."""
    rows = []
    for path in libraries:
        with zipfile.ZipFile(path) as library:
            for name, model in read_catalog(library):
                if (label := find_class(name)) is not None:
                    points = sample_surface(library.read(model)).astype(np.float16)
                    rows.append((points, CLASSES.index(label), find_split(name), name, path.name))
    columns = zip(*rows, strict=True)
    arrays = {key: np.array(column) for key, column in zip(("points", "label", "split", "name", "library"), columns)}
    return {**arrays, "classes": np.array(CLASSES)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python examples/furniture_points.py", description=__doc__)
    parser.add_argument("--libraries", type=Path, default=FOLDER, help=f"folder of .sh3f files ({FOLDER})")
    parser.add_argument("--output", type=Path, default=Path("furniture_points.npz"), help="a new file")
    args = parser.parse_args()
    if importlib.util.find_spec("trimesh") is None:
        sys.exit("furniture_points: trimesh is not installed; run `pip install 'hf_frozen_llm[points]'`.")
    libraries = [args.libraries / f"{name}.sh3f" for name in LIBRARIES]
    if missing := [str(path) for path in libraries if not path.is_file()]:
        sys.exit(
            f"furniture_points: there is no {missing[0]}. Install Debian's sweethome3d-furniture and "
            "sweethome3d-furniture-nonfree, or give the folder of their .sh3f files with --libraries."
        )
    if args.output.exists():
        sys.exit(f"furniture_points: {args.output} exists already; give a new file with --output.")
    clouds = make_clouds(libraries)
    np.savez_compressed(args.output, **clouds)
    number = int((clouds["split"] == "train").sum())
    print(f"{number} + {len(clouds['split']) - number} point clouds of {len(CLASSES)} classes in {args.output}")


if __name__ == "__main__":
    main()
