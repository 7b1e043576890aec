# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Make pairs of emoji pictures and texts for `image_text_retrieval/emoji.yaml`: `python examples/emoji_pairs.py emoji`.

The texts are names and keywords of Unicode's emoji, of `emojibase-data` (MIT). The pictures of `train` are Google's
(Noto Emoji, Apache-2.0), those of `test` are Twitter's (Twemoji, CC BY 4.0), of emoji that are in `train`, too.
`test_new` has Twitter's pictures of emoji that are not in `train`. The new folder holds the pictures, 64 x 64 on
white, and a table for each split.
"""

import argparse
import csv
import hashlib
import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import IO

from downloads import DownloadError, download_package
from PIL import Image


# Name, version and sha256 digest of packages of npm, their size and contents.
TEXTS = (
    *("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"),
    "7 MB: names of emoji",
)
PICTURES = {
    "google": (
        *("emoji-datasource-google", "16.0.0", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"),
        "74 MB: Google's emoji",
    ),
    "twitter": (
        *("emoji-datasource-twitter", "16.0.0", "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"),
        "62 MB: Twitter's emoji",
    ),
}
# By split: the vendor of its pictures, and its eighths of the emoji.
SPLITS = {"train": ("google", range(1, 8)), "test": ("twitter", range(1, 2)), "test_new": ("twitter", range(1))}
LICENSES = """\
Texts: emojibase-data, MIT
google: Noto Emoji, Apache-2.0
twitter: Twemoji, CC BY 4.0, https://creativecommons.org/licenses/by/4.0/
"""


def find_eighth(name: str) -> int:
    """Return one of 0 to 7, always the same one for a name."""
    return hashlib.sha256(name.encode()).digest()[0] % 8


def open_member(package: tarfile.TarFile, name: str) -> IO[bytes]:
    try:
        member = package.extractfile(name)
    except KeyError:
        member = None
    if member is None:
        raise DownloadError(f"{Path(str(package.name)).name} does not hold {name}.")
    return member


def read_texts(archive: Path) -> dict[str, tuple[str, str]]:
    """Return for each code of an emoji its name, and its name with keywords: `garlic: flavoring`."""
    with tarfile.open(archive) as package:
        entries = json.load(open_member(package, "package/en/data.json"))
    texts = {}
    for entry in entries:
        name = entry["label"]
        keywords = ", ".join(tag for tag in entry.get("tags", []) if tag not in name.split())
        texts[entry["hexcode"]] = (name, f"{name}: {keywords}" if keywords else name)
    return texts


def write_pictures(archive: Path, vendor: str, codes: set[str], folder: Path) -> dict[str, str]:
    """Write the pictures of a vendor, on white; return the file of each code."""
    files = {}
    (folder / vendor).mkdir()
    with tarfile.open(archive) as package:
        for entry in json.load(open_member(package, "package/emoji.json")):
            code = next((code for code in (entry["unified"], entry["non_qualified"]) if code in codes), None)
            if code is not None and entry[f"has_img_{vendor}"]:
                name = entry["image"]
                picture = Image.open(open_member(package, f"package/img/{vendor}/64/{name}")).convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                Image.alpha_composite(white, picture).convert("RGB").save(folder / vendor / name)
                files[code] = f"{vendor}/{name}"
    return files


def make_pairs(texts: Path, pictures: dict[str, Path], output: Path) -> dict[str, int]:
    """
    Write the folder of pairs, in one step.

    Args:
        texts (`Path`): the archive of `emojibase-data`.
        pictures (`dict[str, Path]`): the archive of each vendor.
        output (`Path`): a new folder.

    Returns:
        `dict[str, int]`: the number of pairs of each split.
    """
    texts_of = read_texts(texts)
    counts = {}
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as made:
        folder = Path(made) / output.name
        folder.mkdir()
        files = {vendor: write_pictures(file, vendor, set(texts_of), folder) for vendor, file in pictures.items()}
        both = sorted(set.intersection(*map(set, files.values())))
        for split, (vendor, eighths) in SPLITS.items():
            rows = [
                (files[vendor][code], text)
                for code in both
                for name, text in [texts_of[code]]
                if find_eighth(name) in eighths
            ]
            with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as stream:
                csv.writer(stream).writerows([("image", "caption"), *rows])
            counts[split] = len(rows)
        (folder / "LICENSES.txt").write_text(LICENSES, encoding="utf-8")
        os.replace(folder, output)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python examples/emoji_pairs.py", description=__doc__)
    parser.add_argument("output", type=Path, help="a new folder")
    parser.add_argument("--archives", type=Path, help="a folder of the three packages, if they are not to be fetched")
    args = parser.parse_args()
    if args.output.exists():
        sys.exit(f"emoji_pairs: {args.output} exists already; give a new folder.")
    try:
        with tempfile.TemporaryDirectory() as fetched:

            def find(name: str, version: str, sha256: str, contents: str) -> Path:
                if args.archives is not None:
                    return args.archives / f"{name}-{version}.tgz"
                return download_package(Path(fetched), name, version, sha256, contents, "--archives FOLDER")

            pictures = {vendor: find(*package) for vendor, package in PICTURES.items()}
            counts = make_pairs(find(*TEXTS), pictures, args.output)
    except DownloadError as error:
        sys.exit(f"emoji_pairs: {error}")
    print(f"{', '.join(f'{count:,} pairs in {split}' for split, count in counts.items())}: {args.output}")


if __name__ == "__main__":
    main()
