# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The pairs of examples/emoji_pairs.py, out of small archives of the packages' formats, read by the task."""

import hashlib
import io
import json
import sys
import tarfile

import emoji_pairs
import pytest
from downloads import DownloadError
from emoji_pairs import SPLITS, find_eighth, make_pairs
from PIL import Image

from hf_frozen_llm.tasks import TASKS


TASK = TASKS["image-text-retrieval"]
COLORS = {"google": (250, 0, 0), "twitter": (0, 0, 250)}


def write_archive(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def archives(tmp_path):
    """Forty emoji: a half-transparent square, in each vendor's color. The last one is not among Twitter's."""
    entries = [
        {"label": f"thing {n}", "hexcode": f"1F{n:03}", "tags": ["thing", "small", f"no {n}"]} for n in range(40)
    ]
    entries[1] |= {"hexcode": "1F001-FE0F", "tags": []}
    texts = write_archive(tmp_path / "texts.tgz", {"en/data.json": json.dumps(entries).encode()})
    pictures = {}
    for vendor, color in COLORS.items():
        picture, png = Image.new("RGBA", (64, 64), (*color, 0)), io.BytesIO()
        picture.paste((*color, 255), (0, 0, 32, 64))
        picture.save(png, "PNG")
        emoji, files = [], {}
        for number in range(41):  # one more than there are texts
            code, image = f"1F{number:03}-FE0F", f"1f{number:03}-fe0f.png"
            has = {f"has_img_{name}": number != 39 or name == "google" for name in COLORS}
            emoji.append({"unified": code, "non_qualified": code.removesuffix("-FE0F"), "image": image, **has})
            if has[f"has_img_{vendor}"]:
                files[f"img/{vendor}/64/{image}"] = png.getvalue()
        files = {"emoji.json": json.dumps(emoji).encode(), **files}
        pictures[vendor] = write_archive(tmp_path / f"{vendor}.tgz", files)
    return texts, pictures


def test_pairs(archives, tmp_path):
    folder = tmp_path / "made" / "emoji"
    counts = make_pairs(*archives, folder)
    assert counts["train"] + counts["test_new"] == 39 and counts["test"] and counts["test_new"]
    rows = {split: TASK.read(TASK.arguments(dataset_name=str(folder)), split) for split in counts}
    assert {split: len(of_split) for split, of_split in rows.items()} == counts
    texts = {split: {text for (text,) in of_split["captions"]} for split, of_split in rows.items()}
    assert texts["test"] < texts["train"] and not texts["train"] & texts["test_new"]
    assert "thing 1" in texts["train"] | texts["test_new"] and not any("thing 39" in text for text in texts["train"])
    for split, vendor in (("train", "google"), ("test", "twitter"), ("test_new", "twitter")):
        for row in rows[split]:
            name = row["captions"][0].partition(":")[0]
            assert find_eighth(name) in SPLITS[split][1]
            if name != "thing 1":
                assert row["captions"] == [f"{name}: small, no {name.split()[1]}"]
            picture = Image.open(row["image"]["path"])
            assert picture.mode == "RGB" and picture.size == (64, 64)
            assert picture.getpixel((9, 9)) == COLORS[vendor] and picture.getpixel((50, 9)) == (255, 255, 255)
    assert "twitter: Twemoji, CC BY 4.0" in (folder / "LICENSES.txt").read_text()
    assert [path.name for path in folder.parent.iterdir()] == ["emoji"]


def test_a_wrong_archive_leaves_nothing(archives, tmp_path):
    texts, pictures = archives
    wrong = write_archive(tmp_path / "wrong.tgz", {"README.md": b"no pictures"})
    with pytest.raises(DownloadError, match=r"wrong\.tgz does not hold package/emoji\.json"):
        make_pairs(texts, {**pictures, "twitter": wrong}, tmp_path / "made" / "emoji")
    with pytest.raises(DownloadError, match=r"wrong\.tgz does not hold package/en/data\.json"):
        make_pairs(wrong, pictures, tmp_path / "made" / "emoji")
    assert list((tmp_path / "made").glob("*")) == []


def test_the_packages_are_fetched_and_verified(archives, tmp_path, monkeypatch, capsys):
    """A program called npm stands for the registry."""
    texts, pictures = archives
    served = {"emojibase-data-17.0.0.tgz": texts}
    served |= {f"emoji-datasource-{vendor}-16.0.0.tgz": file for vendor, file in pictures.items()}
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(
        f"#!{sys.executable}\nimport shutil, sys\nto = sys.argv[sys.argv.index('--pack-destination') + 1]\n"
        f"files = { {name: str(file) for name, file in served.items()}!r}\n"
        "name = sys.argv[-1].replace('@', '-') + '.tgz'\nshutil.copy(files[name], f'{to}/{name}')\n"
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(npm.parent))
    monkeypatch.setattr(sys, "argv", ["emoji_pairs", str(tmp_path / "emoji")])
    with pytest.raises(SystemExit, match=r"emoji_pairs: emoji-datasource-google-16\.0\.0\.tgz has sha256"):
        emoji_pairs.main()
    digests = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in served.items()}
    replaced = {
        vendor: (name, version, digests[f"{name}-{version}.tgz"], contents)
        for vendor, (name, version, _, contents) in emoji_pairs.PICTURES.items()
    }
    name, version, _, contents = emoji_pairs.TEXTS
    monkeypatch.setattr(emoji_pairs, "PICTURES", replaced)
    monkeypatch.setattr(emoji_pairs, "TEXTS", (name, version, digests[f"{name}-{version}.tgz"], contents))
    emoji_pairs.main()
    assert "pairs in train" in capsys.readouterr().out and (tmp_path / "emoji" / "train.csv").is_file()
    with pytest.raises(SystemExit, match="exists already; give a new folder"):
        emoji_pairs.main()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["emoji_pairs", str(tmp_path / "other")])
    with pytest.raises(SystemExit, match=r"npm, which fetches .* is not on the PATH.* or use --archives FOLDER"):
        emoji_pairs.main()
