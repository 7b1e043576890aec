# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Make rooms of real furniture models with questions of SQA3D's six types, in the files of SQA3D and of ScanQA: run
`python examples/furniture_rooms.py furniture_points.npz rooms`.

`furniture_points.npz` is made by `python examples/furniture_points.py`. Training rooms have its training models, all
others its test models. An agent stands in the middle of a room and faces an object, or it has its back to one object
and faces another, so that the scene and the situation tell its pose. Of the questions that can be asked of it, those
whose answers are the rarest so far are kept, so that the questions alone tell little. Most are about things, and one
about sides: a model whose visual tokens have no positions, as SQA3D's, cannot know what is on the left.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


# By class of furniture_points.npz: the name in questions, the NYU40 number, and the longest side in metres.
KINDS = {
    "bed": ("bed", 4, 2.0),
    "chair": ("chair", 5, 1.0),
    "sofa": ("sofa", 6, 1.8),
    "table_desk": ("table", 7, 1.3),
    "storage": ("cabinet", 3, 1.4),
    "lamp": ("lamp", 35, 1.3),
    "person": ("person", 31, 1.7),
    "plant": ("plant", 40, 1.1),
}
PLURALS = {"person": "persons"}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
COLORS = {
    "red": (200, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 70, 200),
    "yellow": (220, 200, 50),
    "white": (235, 235, 235),
    "black": (30, 30, 30),
}
# The sides in the order of their angles, which count from the agent's front, to the left.
SIDES = {"front": "in front of me", "left": "on my left", "behind": "behind me", "right": "on my right"}
TYPES = ("what", "is", "how", "can", "which", "others")  # SQA3D's
MARGIN = 12  # degrees from the border of two sides, within which nothing is asked about an object
ROOM, HEIGHT = (4.5, 6.5), 2.4
POINTS_OF_OBJECT, POINTS_OF_ROOM = 384, 150


@dataclass
class Furniture:
    """An object in a room: its `name`, `number` of NYU40, `color`, and `points`, z up."""

    name: str
    number: int
    color: str
    points: np.ndarray

    @property
    def place(self) -> np.ndarray:
        return (self.points[:, :2].min(axis=0) + self.points[:, :2].max(axis=0)) / 2

    @property
    def radius(self) -> float:
        return float(np.linalg.norm(np.ptp(self.points[:, :2], axis=0)) / 2)


@dataclass
class Agent:
    """Where an agent is, in the plane, the angle in which it looks, the text that says so, and what the text names."""

    place: np.ndarray
    angle: float
    situation: str
    front: Furniture
    back: Furniture | None = None


def load_models(file: Path, split: str) -> dict[str, np.ndarray]:
    """Return the models of each kind, `(models, points, 3)`, z up, with a longest side of 1, standing on the floor."""
    with np.load(file) as content:
        arrays = {name: content[name] for name in ("points", "label", "split", "classes")}
    models = {}
    for label, name in enumerate(arrays["classes"]):
        if str(name) in KINDS:
            points = arrays["points"][(arrays["label"] == label) & (arrays["split"] == split)].astype(np.float64)
            points = np.stack([points[..., 0], -points[..., 2], points[..., 1]], axis=-1)  # y was up
            low, high = points.min(axis=1, keepdims=True), points.max(axis=1, keepdims=True)
            middle = np.concatenate([(low + high)[..., :2] / 2, low[..., 2:]], axis=-1)
            models[str(name)] = (points - middle) / (high - low).max(axis=-1, keepdims=True)
    return models


def furnish(models: dict[str, np.ndarray], half: np.ndarray, rng: np.random.Generator) -> list[Furniture]:
    """Return objects that do not overlap, and leave the middle of the room free."""
    objects: list[Furniture] = []
    wanted = int(rng.integers(3, 7))
    for _ in range(200):
        if len(objects) == wanted:
            break
        kind = str(rng.choice(list(models)))
        name, number, size = KINDS[kind]
        shape = models[kind][rng.integers(len(models[kind]))] * size * rng.uniform(0.9, 1.1)
        turn = rng.uniform(0, 2 * np.pi)
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        shape = shape[rng.choice(len(shape), POINTS_OF_OBJECT, replace=False)]
        points = np.concatenate([shape[:, :2] @ matrix.T, shape[:, 2:]], axis=1)
        reach = half - np.abs(points[:, :2]).max(axis=0)
        if (reach <= 0).any():
            continue
        points[:, :2] += rng.uniform(-reach, reach)
        found = Furniture(name, number, str(rng.choice(list(COLORS))), points)
        is_free = all(np.linalg.norm(found.place - o.place) > found.radius + o.radius for o in objects)
        if is_free and np.linalg.norm(found.place) > found.radius + 0.4:
            objects.append(found)
    return objects


def place_agents(objects: list[Furniture]) -> list[Agent]:
    """Return the agents that a text can place: they face, or have their back to, the only objects of their kinds."""
    counts = Counter(o.name for o in objects)
    unique = [o for o in objects if counts[o.name] == 1]

    def look(place: np.ndarray, at: Furniture) -> float:
        return float(np.arctan2(*(at.place - place)[::-1]))

    middle = np.zeros(2)
    agents = [
        Agent(middle, look(middle, o), f"I am standing in the middle of the room facing the {o.name}.", o)
        for o in unique
    ]
    for back in unique:
        for front in unique:
            way = front.place - back.place
            if back is front or np.linalg.norm(way) < back.radius + front.radius + 0.8:
                continue
            place = back.place + way / np.linalg.norm(way) * (back.radius + 0.3)
            if all(np.linalg.norm(place - o.place) > o.radius + 0.1 for o in objects):
                text = f"I am standing with my back to the {back.name} facing the {front.name}."
                agents.append(Agent(place, look(place, front), text, front, back))
    return agents


def find_side(agent: Agent, place: np.ndarray) -> tuple[str, bool]:
    """Return the side of a place, and whether it is far enough from the border of two sides."""
    angle = np.degrees(np.arctan2(*(place - agent.place)[::-1]) - agent.angle) % 360
    side = list(SIDES)[int((angle + 45) % 360 // 90)]
    return side, abs((angle + 45) % 90 - 45) < 45 - MARGIN


def ask_of_sides(agent: Agent, objects: list[Furniture]) -> list[tuple[str, str, str]]:
    """Return the type, the text and the only true answer of questions about what is where, seen by the agent."""
    seen = {id(o): find_side(agent, o.place) for o in objects}
    if not all(is_clear for _, is_clear in seen.values()):
        return []
    on = {side: [o for o in objects if seen[id(o)][0] == side] for side in SIDES}
    counts = Counter(o.name for o in objects)
    asked = []
    for side, where in SIDES.items():
        asked.append(("how", f"How many things are {where}?", NUMBERS[min(len(on[side]), 6)]))
        if len(on[side]) == 1:
            (only,) = on[side]
            asked.append(("what", f"What is {where}?", only.name))
            asked.append(("what", f"What color is the thing {where}?", only.color))
            if side in ("left", "right"):
                asked.append(("others", f"If I turn {side}, what will I see?", only.name))
        for name, *_ in KINDS.values():
            is_there = "yes" if any(o.name == name for o in on[side]) else "no"
            asked.append(("others", f"Are there any {PLURALS.get(name, name + 's')} {where}?", is_there))
            if counts[name] == 1:
                asked.append(("is", f"Is the {name} {where}?", is_there))
    for found in (o for o in objects if counts[o.name] == 1):
        side = seen[id(found)][0]
        if side in ("front", "behind"):
            can = "yes" if side == "front" else "no"
            asked.append(("can", f"Can I see the {found.name} without turning around?", can))
        if side != "front":
            turn = "around" if side == "behind" else side
            asked.append(("which", f"Which way should I turn to face the {found.name}?", turn))
    return asked


def ask_of_things(agent: Agent, objects: list[Furniture]) -> list[tuple[str, str, str]]:
    """Return such questions about kinds, numbers and colours, for which only things that a text names are found."""
    counts = Counter(o.name for o in objects)
    looks = {(o.name, o.color) for o in objects}
    asked = [("which", "Which color is the thing I am facing?", agent.front.color)]
    if agent.back is not None:
        asked.append(("which", "Which color is the thing at my back?", agent.back.color))
    for name, *_ in KINDS.values():
        things = PLURALS.get(name, name + "s")
        asked.append(("how", f"How many {things} are in the room?", NUMBERS[min(counts[name], 6)]))
        asked.append(("others", f"Are there any {things} in the room?", "yes" if counts[name] else "no"))
        for color in COLORS:
            is_so = "yes" if (name, color) in looks else "no"
            asked.append(("can", f"Can I find a {color} {name} in the room?", is_so))
            if counts[name] == 1:
                asked.append(("is", f"Is the {name} {color}?", is_so))
    asked += [("what", f"What color is the {o.name}?", o.color) for o in objects if counts[o.name] == 1]
    return asked


def choose_questions(
    asked: list[tuple[str, str, str]],
    types: tuple[str, ...],
    count: int,
    used: dict[str, Counter[str]],
    rng: np.random.Generator,
) -> list[tuple[str, str]]:
    """
    Return `count` questions of each of these types, of those whose answers are the rarest so far: in this type, then
    to this text. `used` counts the answers of each type and text.
    """

    def share(text: str, answer: str) -> float:
        return used[text][answer] / max(1, used[text].total())

    chosen = []
    for kind in types:
        of_kind = [(text, answer) for name, text, answer in asked if name == kind]
        for _ in range(min(count, len(of_kind))):
            rarest = min(used[kind][answer] for _, answer in of_kind)
            best = [(text, answer) for text, answer in of_kind if used[kind][answer] == rarest]
            least = min(share(*question) for question in best)
            best = [question for question in best if share(*question) == least]
            text, answer = best[rng.integers(len(best))]
            for counts in (used[kind], used[text]):
                counts[answer] += 1
            of_kind.remove((text, answer))
            chosen.append((text, answer))
    return chosen


def make_points(objects: list[Furniture], half: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the points of a room along its axes, `(points, 9)`, and the number of NYU40 and of the object of each."""
    count = POINTS_OF_ROOM // 3
    floor, walls = np.zeros((count, 3)), np.zeros((2 * count, 3))
    floor[:, :2] = rng.uniform(-half, half, (count, 2))
    walls[:, :2] = rng.uniform(-half, half, (2 * count, 2))
    axis = rng.integers(0, 2, 2 * count)
    walls[np.arange(2 * count), axis] = rng.choice([-1, 1], 2 * count) * half[axis]
    walls[:, 2] = rng.uniform(0, HEIGHT, 2 * count)
    parts = [(floor, (120, 90, 60), 2, 0), (walls, (205, 200, 190), 1, 0)]
    parts += [(o.points, COLORS[o.color], o.number, index + 1) for index, o in enumerate(objects)]
    points, semantic, instances = [], [], []
    for xyz, color, number, instance in parts:
        colors = np.clip(np.array(color) + rng.normal(0, 12, (len(xyz), 3)), 0, 255).round()
        points.append(np.concatenate([xyz, colors, np.zeros((len(xyz), 3))], axis=1))
        semantic.append(np.full(len(xyz), number, np.uint32))
        instances.append(np.full(len(xyz), instance, np.uint32))
    return {
        "aligned_vert": np.concatenate(points).astype(np.float32),
        "sem_label": np.concatenate(semantic),
        "ins_label": np.concatenate(instances),
    }


def find_boxes(points: np.ndarray, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Return the box of each object: centre, size, NYU40 number, and number from 0."""
    rows = []
    for instance in range(1, int(arrays["ins_label"].max()) + 1):
        mask = arrays["ins_label"] == instance
        low, high = points[mask, :3].min(axis=0), points[mask, :3].max(axis=0)
        rows.append([*(low + high) / 2, *(high - low), arrays["sem_label"][mask][0], instance - 1])
    return np.array(rows, dtype=np.float64)


def write_room(folder: Path, scene_id: str, arrays: dict[str, np.ndarray], alignment: np.ndarray) -> np.ndarray:
    """Write the files of a room; return the middle of its scan, from which poses count."""
    aligned = arrays["aligned_vert"]
    scan = aligned.copy()
    scan[:, :3] = (aligned[:, :3] - alignment[:3, 3]) @ alignment[:3, :3]
    boxes = {"aligned_bbox": find_boxes(aligned, arrays), "bbox": find_boxes(scan, arrays)}
    for name, array in {**arrays, "vert": scan, **boxes}.items():
        np.save(folder / "scannet_data" / f"{scene_id}_{name}.npy", array)
    text = folder / "scans" / scene_id / f"{scene_id}.txt"
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_text(f"axisAlignment = {' '.join(f'{value:.6f}' for value in alignment.flat)}\n")
    return (scan[:, :3].min(axis=0) + scan[:, :3].max(axis=0)) / 2


def to_pose(agent: Agent, middle: np.ndarray, alignment: np.ndarray) -> dict[str, dict[str, float]]:
    """Return position and rotation in the scan. The agent faces its own -x."""
    place = alignment[:3, :3].T @ (np.append(agent.place, 0) - alignment[:3, 3]) - middle
    turn = agent.angle + np.pi - np.arctan2(alignment[1, 0], alignment[0, 0])
    rotation = {"_x": 0.0, "_y": 0.0, "_z": float(np.sin(turn / 2)), "_w": float(np.cos(turn / 2))}
    return {"position": {"x": float(place[0]), "y": float(place[1]), "z": 0.0}, "rotation": rotation}


def make_split(
    models: dict[str, np.ndarray],
    folder: Path,
    scene_ids: list[str],
    num_questions: int,
    first_id: int,
    rng: np.random.Generator,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Write the rooms of a split; return its questions and annotations."""
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    used_of_sides: dict[str, Counter[str]] = defaultdict(Counter)
    used_of_things: dict[str, Counter[str]] = defaultdict(Counter)
    for scene_id in scene_ids:
        posed: list[tuple[Agent, list[tuple[str, str, str]]]] = []  # with the questions about sides
        while not posed:
            half = rng.uniform(*ROOM, 2) / 2
            objects = furnish(models, half, rng)
            agents = place_agents(objects)
            posed = [(agent, asked) for agent in agents if (asked := ask_of_sides(agent, objects))]
        turn, shift = rng.uniform(-np.pi, np.pi), rng.uniform(-1, 1, 2)
        alignment = np.eye(4)
        alignment[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        alignment[:2, 3] = shift
        middle = write_room(folder, scene_id, make_points(objects, half, rng), alignment.round(6))
        for index in rng.permutation(len(posed))[:3]:
            agent, asked = posed[index]
            pose = to_pose(agent, middle, alignment)
            chosen = choose_questions(asked, (str(rng.choice(TYPES)),), 1, used_of_sides, rng)
            chosen += choose_questions(ask_of_things(agent, objects), TYPES, num_questions, used_of_things, rng)
            for text, answer in chosen:
                common = {"scene_id": scene_id, "question_id": first_id + len(questions)}
                texts = {"situation": agent.situation, "alternative_situation": [], "question": text}
                questions.append({**common, **texts})
                answers = [{"answer": answer, "answer_confidence": "yes", "answer_id": 1}]
                kinds = {"question_type": "N/A", "answer_type": "other"}
                annotations.append({**common, **kinds, "answers": answers, **pose})
    return questions, annotations


def make_rooms(file: Path, output: Path, rooms: dict[str, int], num_questions: int, seed: int) -> dict[str, int]:
    """Write rooms and `num_questions` of each type for an agent; return the number of questions of each split."""
    root, scannet = output / "sqa_task" / "balanced", output / "scannet"
    for folder in (root, scannet / "scannet_data"):
        folder.mkdir(parents=True)
    counts, first_room, all_answers = {}, 0, set()
    for number, (split, count) in enumerate(rooms.items()):
        models = load_models(file, "train" if split == "train" else "test")
        scene_ids = [f"room{first_room + index:04}_00" for index in range(count)]
        rng = np.random.default_rng((seed, number))
        questions, annotations = make_split(models, scannet, scene_ids, num_questions, (number + 1) * 1_000_000, rng)
        info = {"info": {"description": "Rooms of furniture models of Sweet Home 3D"}, "data_type": "furniture_rooms"}
        contents = {"questions": ("questions", questions), "sqa_annotations": ("annotations", annotations)}
        for name, (key, entries) in contents.items():
            text = json.dumps({**info, key: entries}, indent=1)
            (root / f"v1_balanced_{name}_{split}_scannetv2.json").write_text(text, encoding="utf-8")
        counts[split], first_room = len(questions), first_room + count
        all_answers |= {answer["answer"] for entry in annotations for answer in entry["answers"]}
    numbered = {answer: index for index, answer in enumerate(sorted(all_answers))}
    reverse = {str(index): answer for answer, index in numbered.items()}
    (output / "sqa_task" / "answer_dict.json").write_text(json.dumps([numbered, reverse]), encoding="utf-8")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python examples/furniture_rooms.py", description=__doc__)
    parser.add_argument("furniture", type=Path, help="furniture_points.npz")
    parser.add_argument("output", type=Path, help="a new folder")
    parser.add_argument("--rooms", type=int, nargs=3, default=(800, 50, 100), help="of train, val and test")
    of_questions = "of each type about things, for an agent, beside one about sides (3)"
    parser.add_argument("--questions", type=int, default=3, help=of_questions)
    parser.add_argument("--seed", type=int, default=0, help="of the rooms and questions (0)")
    args = parser.parse_args()
    if not args.furniture.is_file():
        sys.exit(f"furniture_rooms: there is no {args.furniture}. `python examples/furniture_points.py` makes it.")
    if args.output.exists():
        sys.exit(f"furniture_rooms: {args.output} exists already; give a new folder.")
    rooms = dict(zip(("train", "val", "test"), args.rooms))
    counts = make_rooms(args.furniture, args.output, rooms, args.questions, args.seed)
    print(f"{', '.join(f'{count:,} questions in {split}' for split, count in counts.items())}: {args.output}")


if __name__ == "__main__":
    main()
