# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Ask more questions in the style of SHAPES, whose small training split has only ten.

The folder of SHAPES (github.com/jacobandreas/nmn2) is read; the new folder gets its splits `val` and `test` unchanged,
and the splits `train.new` and `test.new`. Each of their images has nine cells, each that of an image of `train.small`
(for `test.new`, of `val`) drawn at random; their questions follow the grammar of SHAPES, and none is a question of
`val` or `test`. A program answers them; it must give all published answers as well. So `test` asks unknown questions,
and `test.new` questions like those of the training about new images.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np


SIDE, CELL = 3, 10  # cells of an image along each side, pixels of a cell
COLORS = ("blue", "green", "red")  # the channels
OBJECTS = ("circle", "square", "triangle", *(f"{color} shape" for color in COLORS))
STEPS = {"above": (-1, 0), "below": (1, 0), "left of": (0, -1), "right of": (0, 1)}
SHARES = (0.5, 0.35, 0.15)  # of questions with no, one and two relations

Thing = tuple[str, str]  # a color and a kind


def read_split(folder: Path, split: str) -> tuple[np.ndarray, list[str], list[bool]]:
    """Return the images, questions and answers of a published split."""
    images = np.load(folder / f"{split}.input.npy", allow_pickle=False)
    questions, answers = (
        (folder / f"{split}.{suffix}").read_text(encoding="utf-8").splitlines()
        for suffix in ("query_str.txt", "output")
    )
    return images, questions, [answer == "true" for answer in answers]


def find_things(image: np.ndarray) -> dict[tuple[int, int], Thing]:
    """Return what each cell of an image holds, without the empty cells."""
    things = {}
    for row in range(SIDE):
        for column in range(SIDE):
            cell = image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
            mask: np.ndarray = np.any(cell, axis=-1)
            if mask.any():
                mask = mask[mask.any(axis=1)][:, mask.any(axis=0)]
                widths = mask.sum(axis=1)
                # The largest squares lack their corners.
                is_square = mask.all() or (mask.size == 100 and mask.sum() == 96)
                kind = "square" if is_square else "triangle" if widths[-1] >= 2 * widths[0] else "circle"
                things[row, column] = (COLORS[int(cell.sum(axis=(0, 1)).argmax())], kind)
    return things


def parse(question: str) -> tuple[str, list[str], str]:
    """Return both objects of a question and the relations between them."""
    text, relations = question.removeprefix("is a "), []
    first = next(name for name in OBJECTS if text.startswith(name))
    text = text.removeprefix(first).strip()
    while relation := next((name for name in STEPS if text.startswith(name)), None):
        relations.append(relation)
        text = text.removeprefix(relation).strip()
    return first, relations, f"{text} shape" if text in COLORS else text.removeprefix("a ")


def answer(question: str, things: dict[tuple[int, int], Thing]) -> bool:
    """Return whether a first object stands in a cell that the relations reach from a second one."""
    first, relations, second = parse(question)

    def find(name: str) -> set[tuple[int, int]]:
        return {place for place, (color, kind) in things.items() if name in (kind, f"{color} shape")}

    reached = find(second)
    for relation in reversed(relations):
        down, right = STEPS[relation]
        moved = {(row + down, column + right) for row, column in reached}
        reached = {(row, column) for row, column in moved if 0 <= row < SIDE and 0 <= column < SIDE}
    return bool(reached & find(first))


def list_questions(excluded: set[str]) -> list[list[str]]:
    """Return the questions with no, one and two relations, without the excluded ones."""
    ends = [f"a {name}" for name in OBJECTS]
    by_relations = [
        [f"is a {first} {end}" for first in OBJECTS for end in (*ends, *COLORS)],
        [f"is a {first} {name} {end}" for first in OBJECTS for name in STEPS for end in ends],
        [f"is a {first} {a} {b} {end}" for first in OBJECTS for a in STEPS for b in STEPS for end in ends],
    ]
    return [[question for question in questions if question not in excluded] for questions in by_relations]


def mix_cells(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an image of cells at the same places of nine images."""
    cells = images.reshape(len(images), SIDE, CELL, SIDE, CELL, 3)
    mixed = np.empty(cells.shape[1:], images.dtype)
    for row in range(SIDE):
        for column in range(SIDE):
            mixed[row, :, column] = cells[rng.integers(len(images)), row, :, column]
    return mixed.reshape(images.shape[1:])


def ask(
    images: np.ndarray, by_relations: list[list[str]], number: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[str], list[str]]:
    """Return new images, a question about each, and the answers."""
    new_images = np.stack([mix_cells(images, rng) for _ in range(number)])
    drawn = [by_relations[relations] for relations in rng.choice(len(SHARES), size=number, p=SHARES)]
    questions = [of_form[rng.integers(len(of_form))] for of_form in drawn]
    answers = [str(answer(question, find_things(image))).lower() for image, question in zip(new_images, questions)]
    return new_images, questions, answers


def make_questions(folder: Path, output: Path, number: int, num_tests: int, seed: int) -> int:
    """Write the new folder; return how many published answers the program gave."""
    published = {split: read_split(folder, split) for split in ("train.small", "val", "test")}
    count = 0
    for split, (images, questions, answers) in published.items():
        for row, (image, question, known) in enumerate(zip(images, questions, answers, strict=True)):
            if answer(question, find_things(image)) != known:
                raise ValueError(f"{folder} [{split}], row {row}: {question!r} is not answered as published.")
            count += 1
    by_relations = list_questions({*published["val"][1], *published["test"][1]})
    rng = np.random.default_rng(seed)
    train = ask(published["train.small"][0], by_relations, number, rng)
    test = ask(published["val"][0], by_relations, num_tests, rng)
    output.mkdir(parents=True)
    for split, (images, questions, new_answers) in {"train.new": train, "test.new": test}.items():
        np.save(output / f"{split}.input.npy", images)
        for suffix, lines in (("query_str.txt", questions), ("output", new_answers)):
            (output / f"{split}.{suffix}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for split in ("val", "test"):
        for suffix in ("input.npy", "query_str.txt", "output"):
            shutil.copyfile(folder / f"{split}.{suffix}", output / f"{split}.{suffix}")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(prog="python examples/shapes_questions.py", description=__doc__)
    parser.add_argument("shapes", type=Path, help="the folder of SHAPES")
    parser.add_argument("output", type=Path, help="a new folder")
    parser.add_argument(
        "--number", type=int, default=20_000, help="of training questions, each about its own image (20000)"
    )
    parser.add_argument("--num_tests", type=int, default=2_000, help="of questions of test.new (2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the images and questions (0)")
    args = parser.parse_args()
    if not (args.shapes / "train.small.input.npy").is_file():
        sys.exit(f"shapes_questions: {args.shapes} holds no train.small.input.npy; give the folder of SHAPES.")
    if args.output.exists():
        sys.exit(f"shapes_questions: {args.output} exists already; give a new folder.")
    count = make_questions(args.shapes, args.output, args.number, args.num_tests, args.seed)
    total = args.number + args.num_tests
    print(f"{total:,} new questions: {args.output}. The program gives all {count:,} published answers.")


if __name__ == "__main__":
    main()
