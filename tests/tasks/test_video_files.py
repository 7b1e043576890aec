# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Frames as a player shows them, of files as cameras and editors write them; lists of videos as people save them."""

import json
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from hf_frozen_llm.tasks.classification import find_class_names
from hf_frozen_llm.tasks.video_classification import VideoClassification, VideoDataArguments
from hf_frozen_llm.tasks.video_classification.data import choose_frames, read_frames


SIZE = (96, 64)


def write(
    path: Path, count: int = 40, codec: str = "mpeg4", pixel_ratio=None, cover=False, options=None, **muxer
) -> Path:
    """Write frames, each lighter than the one before, with a white corner on the top left."""
    with av.open(str(path), "w", options=muxer) as container:
        if cover:
            picture = container.add_stream("png", width=32, height=32, pix_fmt="rgb24")
            picture.disposition = Disposition.attached_pic
        stream = container.add_stream(codec, rate=30, options=options or {})
        (stream.width, stream.height), stream.pix_fmt, stream.gop_size = SIZE, "yuv420p", 10
        stream.bit_rate = 10_000_000
        if pixel_ratio is not None:
            stream.codec_context.sample_aspect_ratio = pixel_ratio
        if cover:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
        for number in range(count):
            pixels = np.full((SIZE[1], SIZE[0], 3), 16 + 5 * number, np.uint8)
            pixels[:16, :24] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    return path


def read(path: Path, num_frames: int = 4, **options):
    """Return the frames that an evaluation reads, and their numbers when they were written."""
    args = VideoDataArguments("x", **options)
    seen = []

    def choose(total: int) -> np.ndarray:
        seen.append(total)
        return choose_frames(args, total, num_frames)

    frames = read_frames({"path": str(path), "bytes": None}, choose)
    frames = [frames[number] for number in sorted(frames)]
    greys = [np.median(np.asarray(frame)) for frame in frames]
    return frames, [round((grey - 16) / 5) for grey in greys], seen


def patch(path: Path, box: bytes, offset: int, values: bytes) -> None:
    content = bytearray(path.read_bytes())
    start = content.index(box) + offset
    content[start : start + len(values)] = values
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("matrix", "size", "corner"),
    [
        ((1, 0, 0, 1), (96, 64), "top left"),
        ((0, 1, -1, 0), (64, 96), "top right"),  # upright videos of phones
        ((-1, 0, 0, -1), (96, 64), "bottom right"),
        ((0, -1, 1, 0), (64, 96), "bottom left"),
    ],
)
def test_frames_are_turned(tmp_path, matrix, size, corner):
    a, b, c, d = (value << 16 for value in matrix)
    path = write(tmp_path / "video.mp4", 10)
    patch(path, b"tkhd", 44, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))
    frame = read(path)[0][0]
    pixels = np.asarray(frame.convert("L"))
    rows, columns = {"top": slice(0, 8), "bottom": slice(-8, None)}, {"left": slice(0, 8), "right": slice(-8, None)}
    light = [f"{y} {x}" for y in rows for x in columns if pixels[rows[y], columns[x]].mean() > 200]
    assert frame.size == size and light == [corner]


@pytest.mark.parametrize("ratio", [Fraction(2, 1), Fraction(2, 3), Fraction(1, 1)])
@pytest.mark.parametrize("is_turned", [False, True])
def test_pixels_become_square(tmp_path, ratio, is_turned):
    path = write(tmp_path / "video.mp4", 10, pixel_ratio=ratio)
    if is_turned:
        patch(path, b"tkhd", 44, struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30))
    size = (int(96 * ratio), 64)
    assert {frame.size for frame in read(path)[0]} == {size[::-1] if is_turned else size}


def trim(source: Path, path: Path, keyframe: int, first: int) -> Path:
    """Copy the packets from a keyframe on; an edit list hides the frames before `first`."""
    options = {"avoid_negative_ts": "disabled"}
    with av.open(str(source)) as container, av.open(str(path), "w", options=options) as copy:
        stream = container.streams.video[0]
        target = copy.add_stream_from_template(stream)
        step = int(1 / (30 * stream.time_base))
        begin = False
        for packet in container.demux(stream):
            begin = begin or (packet.pts is not None and packet.is_keyframe and packet.pts >= keyframe * step)
            if begin and packet.size > 0:
                packet.pts -= first * step
                packet.dts -= first * step
                packet.stream = target
                copy.mux(packet)
    return path


@pytest.mark.parametrize("sampling", ["uniform", "dense"])
def test_trimmed_without_encoding(tmp_path, sampling):
    path = trim(write(tmp_path / "whole.mp4"), tmp_path / "cut.mp4", keyframe=10, first=16)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 30
    options = {"sampling": sampling, "frame_stride": 2}
    _, numbers, seen = read(path, **options)
    assert set(seen) == {24}
    assert numbers == [16 + index for index in choose_frames(VideoDataArguments("x", **options), 24, 4)]


def test_an_edit_list_that_ends_early(tmp_path):
    path = write(tmp_path / "video.mp4")
    patch(path, b"elst", 12, struct.pack(">I", 600))  # milliseconds
    with av.open(str(path)) as container:
        shown = sum(1 for _ in container.decode(video=0))
        assert container.streams.video[0].frames == 40 and shown < 30
    _, numbers, seen = read(path)
    assert set(seen) <= {shown, shown + 1} and numbers == choose_frames(VideoDataArguments("x"), shown, 4).tolist()


def test_cut_at_an_open_group_of_pictures(tmp_path):
    """The leading frames need the group before, which is not there; no frame of the rest is missing."""
    options = {
        "preset": "ultrafast",
        "x265-params": "open-gop=1:keyint=10:min-keyint=10:bframes=3:scenecut=0:log-level=0",
    }
    source = write(tmp_path / "whole.mp4", codec="libx265", options=options)
    path = trim(source, tmp_path / "cut.mp4", keyframe=5, first=0)
    with av.open(str(path)) as container:
        stated, shown = container.streams.video[0].frames, sum(1 for _ in container.decode(video=0))
    assert 20 <= shown < stated
    _, numbers, seen = read(path)
    assert seen[-1] == shown and len(set(numbers)) == 4 and numbers == sorted(numbers)


@pytest.mark.parametrize("share", [0.5, 0.97])
@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_files_that_are_cut_off(tmp_path, suffix, share):
    path = write(tmp_path / f"video{suffix}", **({"movflags": "faststart"} if suffix == ".mp4" else {}))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    if suffix == ".avi" and share > 0.9:  # without a part of the index, which follows all frames
        assert len(read(path)[1]) == 4
        return
    # the part of a frame at the end of an AVI file is an error of the decoder
    message = r"the file is cut off: \d+ of its 40 frames are there" if suffix == ".mp4" else "cannot be decoded"
    with pytest.raises(ValueError, match=message):
        read(path, num_frames=40)


def test_a_cover_picture_before_the_video(tmp_path):
    path = write(tmp_path / "video.mp4", cover=True)
    content = path.read_bytes()
    start, middle = content.index(b"trak") - 4, content.index(b"udta") - 4
    end = middle + struct.unpack(">I", content[middle : middle + 4])[0]
    path.write_bytes(content[:start] + content[middle:end] + content[start:middle] + content[end:])
    with av.open(str(path)) as container:
        assert container.streams.video[0].disposition == Disposition.attached_pic
    frames, numbers, _ = read(path)
    assert frames[0].size == SIZE and numbers == [5, 15, 25, 35]
    path = write(tmp_path / "only.mp4", 0, cover=True)
    with pytest.raises(ValueError, match="no video stream"):
        read(path)


@pytest.fixture
def lists(tmp_path):
    for name in ("a.mp4", "b.mp4", "ü.mp4", "my clip.mp4", "1.webm"):
        (tmp_path / name).write_bytes(b"x")

    def read_list(content: str | bytes, file: str = "train.csv"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        args = VideoDataArguments(str(tmp_path))
        rows = VideoClassification.read(args, file)
        return [Path(video["path"]).name for video in rows["video"]], list(rows["label"]), find_class_names(args, rows)

    return read_list


@pytest.mark.parametrize(
    "content",
    [
        "a.mp4,0\nb.mp4,2\n",
        "\ufeffa.mp4,0\r\nb.mp4,2\r\n",  # of Excel
        "a.mp4, 0\nb.mp4 , 2 \n",
        "a.mp4;0\nb.mp4;2\n",
        "a.mp4\t0\nb.mp4\t2\n",
        "a.mp4  0\n\nb.mp4 2 \n",
        "./a.mp4 0\nb.mp4 2\n",
    ],
)
def test_lists(lists, content):
    assert lists(content) == (["a.mp4", "b.mp4"], [0, 2], ["0", "1", "2"])


def test_names_with_spaces(lists):
    expected = (["my clip.mp4", "ü.mp4"], ["a dog", "cat"], ["a dog", "cat"])
    assert lists("my clip.mp4,a dog\nü.mp4, cat\n") == expected
    assert lists('"my clip.mp4" "a dog"\nü.mp4 cat\n') == expected


@pytest.mark.parametrize(
    ("content", "file", "classes", "message"),
    [
        ("ü.mp4,0\n".encode("latin-1"), "train.csv", None, r"train\.csv is not in UTF-8 .*Save it in UTF-8"),
        (
            json.dumps([{"id": "1", "template": "a"}]),
            "l/train.json",
            ["a"],
            r"labels\.json does not give",
        ),
        (
            json.dumps([{"id": "1", "template": "a"}]),
            "l/train.json",
            {"a": "b"},
            r"labels\.json does not give",
        ),
        (json.dumps([{"id": "1", "template": None}]), "l/train.json", None, "annotations with `id` and `template`"),
        ("ü".encode("latin-1"), "l/train.json", None, r"train\.json is not in UTF-8"),
    ],
)
def test_lists_that_cannot_be_read(lists, tmp_path, content, file, classes, message):
    if classes is not None:
        (tmp_path / "l").mkdir()
        (tmp_path / "l" / "labels.json").write_text(json.dumps(classes))
    with pytest.raises(ValueError, match=message):
        lists(content, file)
