# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""A tiny data set, a tiny LLM and tiny sizes, for tests that train."""

import json
from pathlib import Path

import av
import datasets
import h5py
import numpy as np
from llm_files import write_llm
from PIL import Image
from tiny_llms import tiny_config, tiny_llm


CLASSES = ["ant", "bee", "cat", "dog", "elk", "fox"]

# Settings and sizes at which a recipe's run takes seconds on one core: for a ViT, and for other hosts.
TINY_RUN = [
    *("--per_device_train_batch_size", "8"),
    *("--per_device_eval_batch_size", "16"),
    *("--dataloader_num_workers", "0"),
    *("--dataloader_persistent_workers", "false"),
    *("--use_cpu", "true"),
    *("--bf16", "false"),
    *("--disable_tqdm", "true"),
]
TINY = [
    *("--host.hidden_size", "16"),
    *("--host.num_hidden_layers", "2"),
    *("--host.num_attention_heads", "2"),
    *("--host.intermediate_size", "32"),
    *("--host.image_size", "16"),
    *("--host.patch_size", "8"),
    *TINY_RUN,
]
TINY_DINOV2 = [
    *("--model_type", "vision_with_llm_block"),
    *("--host.model_type", "dinov2"),
    *("--host.hidden_size", "16"),
    *("--host.num_hidden_layers", "2"),
    *("--host.num_attention_heads", "2"),
    *("--host.mlp_ratio", "2"),
    *("--host.image_size", "16"),
    *("--host.patch_size", "8"),
    *TINY_RUN,
]
TINY_SWIN = [
    *("--model_type", "vision_with_llm_block"),
    *("--host.model_type", "swin"),
    *("--host.embed_dim", "8"),
    *("--host.depths", "[1, 1]"),
    *("--host.num_heads", "[2, 2]"),
    *("--host.window_size", "2"),
    *("--host.image_size", "16"),
    *("--host.patch_size", "4"),
    *TINY_RUN,
]

TINY_VIDEOMAE = [
    *("--host.hidden_size", "16"),
    *("--host.num_hidden_layers", "2"),
    *("--host.num_attention_heads", "2"),
    *("--host.intermediate_size", "32"),
    *("--host.image_size", "16"),
    *("--host.patch_size", "8"),
    *("--host.num_frames", "4"),
    *TINY_RUN,
]
TINY_POINT_BERT = [
    *("--host.hidden_size", "16"),
    *("--host.num_hidden_layers", "2"),
    *("--host.num_attention_heads", "2"),
    *("--host.intermediate_size", "32"),
    *("--host.num_groups", "4"),
    *("--host.group_size", "4"),
    *("--host.encoder_channels", "[4, 8, 8]"),
    *("--host.encoder_hidden_size", "8"),
    *("--host.position_hidden_size", "4"),
    *("--host.classifier_hidden_size", "8"),
    *("--num_points", "32"),
    *TINY_RUN,
]


def class_fields(label2id: dict[str, int]) -> dict:
    """Return the fields of a configuration that name its classes."""
    return {"label2id": label2id, "id2label": {index: name for name, index in label2id.items()}}


def make_images(count: int, seed: int = 0) -> tuple[list[Image.Image], list[int]]:
    """Return noise images, brighter from class to class."""
    rng = np.random.default_rng(seed)
    labels = [index % len(CLASSES) for index in range(count)]
    pixels = [rng.integers(0, 100, (20, 24, 3)) + 25 * label for label in labels]
    return [Image.fromarray(array.astype(np.uint8)) for array in pixels], labels


def make_split(count: int, seed: int = 0, image: str = "image", label: str = "label") -> datasets.Dataset:
    images, labels = make_images(count, seed)
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=CLASSES)})
    return datasets.Dataset.from_dict({image: images, label: labels}, features=features)


def write_parquet(folder: Path, sizes: dict[str, int] | None = None, **columns: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate((sizes or {"train": 60, "test": 30}).items()):
        make_split(count, seed, **columns).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def write_image_folder(folder: Path, sizes: dict[str, int] | None = None) -> str:
    for seed, (split, count) in enumerate((sizes or {"train": 18, "test": 12}).items()):
        for index, (image, label) in enumerate(zip(*make_images(count, seed))):
            (folder / split / CLASSES[label]).mkdir(parents=True, exist_ok=True)
            image.save(folder / split / CLASSES[label] / f"{index}.png")
    return str(folder)


def write_llama(folder: Path) -> str:
    write_llm(tiny_llm(tiny_config("llama")), folder)
    return str(folder)


def make_frames(count: int, seed: int = 0, size: tuple[int, int] = (40, 24)) -> list[Image.Image]:
    """Return noise frames; the red of frame `n` is about `n`."""
    rng = np.random.default_rng(seed)
    frames = []
    for number in range(count):
        pixels = rng.integers(0, 80, (size[1], size[0], 3), np.uint8)
        pixels[..., 0] = number
        frames.append(Image.fromarray(pixels))
    return frames


def write_video(path: Path, frames: list[Image.Image], **options) -> Path:
    """Write a lossless video, so that a frame shows its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream("ffv1", rate=12)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return path


def write_video_folder(folder: Path, sizes: dict[str, int] | None = None) -> str:
    """`<split>/<class>/<number>.mkv`."""
    for split, count in (sizes or {"train": 18, "test": 12}).items():
        for number in range(count):
            label = CLASSES[number % len(CLASSES)]
            write_video(folder / split / label / f"{number}.mkv", make_frames(8 + number % 5, number))
    return str(folder)


def write_something_something(folder: Path, sizes: dict[str, int]) -> str:
    """Write annotations and videos in Something-Something V2's format; `sizes` by the path of the annotations."""
    names = [f"Moving {name} [something]" for name in CLASSES]
    for split, count in sizes.items():
        rows = []
        for number in range(count):
            video = f"{Path(split).stem}{number}"
            write_video(
                folder / "20bn-something-something-v2" / f"{video}.webm", make_frames(8, number), format="matroska"
            )
            rows.append({"id": video, "template": names[number % len(names)], "placeholders": ["a thing"]})
        (folder / split).parent.mkdir(parents=True, exist_ok=True)
        (folder / split).write_text(json.dumps(rows))
        labels = {name.replace("[", "").replace("]", ""): str(number) for number, name in enumerate(names)}
        (folder / split).with_name("labels.json").write_text(json.dumps(labels))
    return str(folder)


def make_clouds(count: int, num_points: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return ellipsoids, longer from class to class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(CLASSES)
    clouds = rng.normal(size=(count, num_points, 3))
    clouds /= np.linalg.norm(clouds, axis=-1, keepdims=True)
    clouds[..., 0] *= 1 + labels[:, None]
    return clouds.astype(np.float32), labels


def write_npz(path: Path, sizes: dict[str, int], **changes) -> str:
    clouds, labels = make_clouds(sum(sizes.values()))
    splits = np.repeat(list(sizes), list(sizes.values()))
    np.savez(path, **{"points": clouds, "label": labels, "split": splits, "classes": np.array(CLASSES), **changes})
    return str(path)


def write_h5(folder: Path, sizes: dict[str, int], names: bool = True) -> str:
    """Write the files of `sizes` in the format of ModelNet40 and ScanObjectNN."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate(sizes.items()):
        clouds, labels = make_clouds(count, seed=seed)
        with h5py.File(folder / name, "w") as file:
            file["data"], file["label"] = clouds, labels[:, None].astype(np.uint8)
    if names:
        (folder / "shape_names.txt").write_text("\n".join(CLASSES))
    return str(folder)


def write_modelnet40(folder: Path, sizes: dict[str, int]) -> str:
    """Write `modelnet40_normal_resampled`: a text file per point cloud, with normals; `sizes` by the list's name."""
    for seed, (split, count) in enumerate(sizes.items()):
        names = []
        for number, (cloud, label) in enumerate(zip(*make_clouds(count, seed=seed))):
            # Classes have underscores, too.
            name = f"{CLASSES[label]}_thing_{seed}{number:03}"
            (folder / f"{CLASSES[label]}_thing").mkdir(parents=True, exist_ok=True)
            np.savetxt(folder / f"{CLASSES[label]}_thing" / f"{name}.txt", np.hstack([cloud, cloud]), "%f", ",")
            names.append(name)
        (folder / split).write_text("\n".join(names))
    return str(folder)


TINY_ENCODER = "hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32"
TINY_VISION = f"{{{TINY_ENCODER}, image_size: 30, patch_size: 10}}"
TINY_TEXT = (
    f"{{{TINY_ENCODER}, vocab_size: 300, max_position_embeddings: 56, type_vocab_size: 1, pad_token_id: 1, "
    "bos_token_id: 0, eos_token_id: 2}"
)
TINY_METER = [
    *("--host.hidden_size", "16"),
    *("--host.num_hidden_layers", "1"),
    *("--host.num_attention_heads", "2"),
    *("--host.intermediate_size", "32"),
    *("--host.vision_config", TINY_VISION),
    *("--host.text_config", TINY_TEXT),
    *TINY_RUN,
]
COLORS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "white": (255, 255, 255)}


def write_color_images(folder: Path, copies: int = 1) -> list[tuple[str, str]]:
    """Write images of one color each; return the names of their files, and the colors."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [(f"{color}{copy}.png", color) for color in COLORS for copy in range(copies)]
    for number, (file, color) in enumerate(images):
        Image.new("RGB", (32 + number, 40), COLORS[color]).save(folder / file)
    return images


def write_table(file: Path, rows: list[dict]) -> str:
    """Write rows as CSV or JSON lines."""
    if file.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    else:
        lines = [json.dumps(row) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(file)


def write_vqa(folder: Path, splits: dict[str, int]) -> str:
    """Write questions about images of one color in the files of VQAv2."""
    for split, count in splits.items():
        images = split.replace("-dev", "")
        (folder / images).mkdir(parents=True, exist_ok=True)
        questions, annotations, colors = [], [], list(COLORS)
        for number in range(count):
            color = colors[number % len(colors)]
            Image.new("RGB", (32, 40), COLORS[color]).save(folder / images / f"COCO_{images}_{number:012}.jpg")
            known = {"image_id": number, "question_id": 10 * number}
            questions.append({**known, "question": "What color is it?"})
            given = [color] * 7 + ["Red.", "dark", "dark"]
            annotations.append(
                {
                    **known,
                    "answers": [{"answer": answer, "answer_id": i} for i, answer in enumerate(given)],
                    "multiple_choice_answer": color,
                    "question_type": "what color",
                    "answer_type": "other",
                }
            )
        (folder / f"v2_OpenEnded_mscoco_{split}_questions.json").write_text(json.dumps({"questions": questions}))
        (folder / f"v2_mscoco_{split}_annotations.json").write_text(json.dumps({"annotations": annotations}))
    return str(folder)


def write_karpathy(folder: Path, splits: dict[str, int]) -> str:
    """Write images of one color with two captions each in the format of Karpathy's splits."""
    images = write_color_images(folder / "images", copies=max(splits.values()) // len(COLORS) + 1)
    entries = [
        {
            "filename": file,
            "filepath": "images",
            "split": split,
            "sentences": [{"raw": f"a {color} picture {number}"}, {"raw": f"{number} is {color}"}],
        }
        for split, count in splits.items()
        for number, (file, color) in enumerate(images[:count])
    ]
    (folder / "dataset_coco.json").write_text(json.dumps({"images": entries, "dataset": "coco"}))
    return str(folder / "dataset_coco.json")


def write_shapes(folder: Path, splits: dict[str, int]) -> str:
    """Write images of one color with a question each in the files of SHAPES."""
    folder.mkdir(parents=True)
    for split, count in splits.items():
        colors = [list(COLORS)[number % 3] for number in range(count)]
        pixels = np.array([COLORS[color][::-1] for color in colors], np.uint8)[:, None, None]
        np.save(folder / f"{split}.input.npy", np.broadcast_to(pixels, (count, 30, 30, 3)))
        (folder / f"{split}.query_str.txt").write_text("is a red shape red\n" * count)
        (folder / f"{split}.output").write_text("".join(f"{str(c == 'red').lower()}\n" for c in colors))
    return str(folder)
