# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Scenes of ScanNet as ScanQA prepares them or LEO distributes them, and their labels as SQA3D's code makes them.

Sources: github.com/ATR-DBI/ScanQA for the files, github.com/SilongYong/SQA3D (`ScanQA/lib/sepdataset.py`) for the
labels and the augmentation.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hf_frozen_llm.modeling.processing_sqa3d_with_llm_block import SQA3DProcessor
from hf_frozen_llm.tasks.situated_question_answering.leo_scenes import CLOUDS, read_cloud, read_matrices


MAX_OBJECTS = 128
OTHERS = 17
# ScanNet's 18 classes by their NYU40 number; all other objects are OTHERS.
CLASSES = {3: 0, 4: 1, 5: 2, 6: 3, 7: 4, 8: 5, 9: 6, 10: 7, 11: 8, 12: 9, 14: 10, 16: 11, 24: 12, 28: 13}
CLASSES |= {33: 14, 34: 15, 36: 16}
OBJECTS = {number: CLASSES.get(number, OTHERS) for number in range(3, 41) if number != 22}  # 22 is the ceiling
FILES = {"points": "aligned_vert", "semantic": "sem_label", "instances": "ins_label", "boxes": "aligned_bbox"}


@dataclass
class Scene:
    """
    A scene along the axes of its room.

    Args:
        points (`numpy.ndarray` of shape `(points, 9)`): x, y, z, red, green, blue from 0 to 255, and, but for LEO's
            scenes, normals.
        semantic (`numpy.ndarray` of shape `(points,)`): the NYU40 number of each point's object; 0 = not annotated.
        instances (`numpy.ndarray` of shape `(points,)`): the number of each point's object.
        boxes (`numpy.ndarray` of shape `(objects, 8)`): centre, size, NYU40 number and number of each object.
        center (`numpy.ndarray` of shape `(3,)`): the middle of the scene before alignment, from which poses count.
        alignment (`numpy.ndarray` of shape `(4, 4)`): from coordinates of the scan to those along the axes.
    """

    points: np.ndarray
    semantic: np.ndarray
    instances: np.ndarray
    boxes: np.ndarray
    center: np.ndarray
    alignment: np.ndarray


def find_scenes(folder: Path) -> set[str]:
    """Return the ids of the scenes in a folder of ScanQA's preparation, or of LEO's distribution."""
    data, clouds = folder / "scannet_data", folder / CLOUDS
    if data.is_dir():
        return {file.name.removesuffix("_aligned_vert.npy") for file in data.glob("*_aligned_vert.npy")}
    if clouds.is_dir():
        return {file.stem for file in clouds.glob("*.pth")}
    raise FileNotFoundError(
        f"scene_folder is {str(folder)!r}, which has neither a folder scannet_data nor {CLOUDS}. It is the folder "
        "`data/scannet` of ScanQA, whose scripts make scannet_data/<scene>_aligned_vert.npy and so on from ScanNet's "
        f"scans, or the folder of LEO that has {CLOUDS / '<scene>.pth'}."
    )


def read_alignments(folder: Path, scene_ids: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the axis alignments of those scenes that have one: in a text file of the scan, or in LEO's file."""
    if not (folder / "scannet_data").is_dir():
        matrices = read_matrices(folder)
        return {scene: matrices[scene] for scene in scene_ids if scene in matrices}
    found = {scene: read_alignment(folder, scene) for scene in scene_ids}
    return {scene: matrix for scene, matrix in found.items() if matrix is not None}


def read_alignment(folder: Path, scene_id: str) -> np.ndarray | None:
    """Return the axis alignment in a scan's text file; `None` if it has none."""
    file = folder / "scans" / scene_id / f"{scene_id}.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    for line in lines:
        name, _, values = line.partition("=")
        if name.strip() == "axisAlignment":
            numbers = values.split()
            if len(numbers) != 16:
                raise ValueError(f"{file}: axisAlignment has {len(numbers)} numbers, not the 16 of a matrix.")
            return np.array(numbers, dtype=np.float64).reshape(4, 4)
    return None


def read_scene(folder: Path, scene_id: str) -> Scene:
    """Read a scene."""
    if not (folder / "scannet_data").is_dir():
        return read_leo_scene(folder, scene_id)
    arrays = {}
    for name, suffix in (*FILES.items(), ("scan", "vert")):
        file = folder / "scannet_data" / f"{scene_id}_{suffix}.npy"
        try:
            arrays[name] = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
    lengths = {name: len(arrays[name]) for name in ("points", "semantic", "instances", "scan")}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{folder / 'scannet_data' / scene_id}_*.npy have different numbers of points: {lengths}.")
    scan = arrays.pop("scan")[:, :3]
    if len(scan) == 0:
        raise ValueError(f"{folder / 'scannet_data' / scene_id}_vert.npy is empty: the scene has no points.")
    alignment = read_alignment(folder, scene_id)
    return Scene(
        **arrays,
        center=(scan.max(axis=0) + scan.min(axis=0)) / 2,
        alignment=np.eye(4) if alignment is None else alignment,
    )


def read_leo_scene(folder: Path, scene_id: str) -> Scene:
    """Read a scene of LEO's distribution. As in LEO's code, poses count from the middle of the aligned scene."""
    arrays = read_cloud(folder, scene_id)
    if len(arrays["points"]) == 0:
        raise ValueError(f"{folder / CLOUDS / scene_id}.pth is empty: the scene has no points.")
    xyz, alignment = arrays["points"][:, :3], np.eye(4)
    alignment[:3, :3] = read_matrices(folder).get(scene_id, np.eye(3))
    center = alignment[:3, :3].T @ ((xyz.max(axis=0) + xyz.min(axis=0)) / 2)
    return Scene(**arrays, center=center, alignment=alignment)


@dataclass
class Sample:
    """
    The sampled points of a scene with their features, its objects, and the agent.

    Args:
        points (`numpy.ndarray` of shape `(points, 3 + features)`): the model's input.
        semantic (`numpy.ndarray` of shape `(points,)`): as in [`Scene`], of the sampled points.
        instances (`numpy.ndarray` of shape `(points,)`): likewise.
        centers (`numpy.ndarray` of shape `(128, 3)`): the centres of objects, and rows of padding, which are moved
            with the objects.
        sizes (`numpy.ndarray` of shape `(objects, 3)`): the sizes of objects.
        classes (`numpy.ndarray` of shape `(objects,)`): their classes.
        position (`numpy.ndarray` of shape `(3,)`): where the agent is.
        rotation (`numpy.ndarray` of shape `(3, 3)`): from the agent's axes to the scene's; it faces its own -x.
    """

    points: np.ndarray
    semantic: np.ndarray
    instances: np.ndarray
    centers: np.ndarray
    sizes: np.ndarray
    classes: np.ndarray
    position: np.ndarray
    rotation: np.ndarray


def sample_scene(
    scene: Scene, processor: SQA3DProcessor, choices: np.ndarray, location: str, num_normalizations: int = 1
) -> Sample:
    """Return the sample of the points with the numbers `choices`; its agent is in the middle of the scene."""
    points = processor.prepare_points(scene.points, location, num_normalizations)[choices]
    boxes = scene.boxes[:MAX_OBJECTS]
    numbers = boxes[:, 6].astype(int)
    if unknown := sorted(set(numbers.tolist()) - set(OBJECTS)):
        raise ValueError(f"{location}: a box has the NYU40 number {unknown[0]}, which is no object's.")
    centers = np.zeros((MAX_OBJECTS, 3))
    centers[: len(boxes)] = boxes[:, :3]
    return Sample(
        points=points,
        semantic=scene.semantic[choices],
        instances=scene.instances[choices],
        centers=centers,
        sizes=boxes[:, 3:6].copy(),
        classes=np.array([OBJECTS[number] for number in numbers], dtype=np.int64),
        position=np.zeros(3),
        rotation=np.eye(3),
    )


def without_points(sample: Sample) -> Sample:
    """Return the sample with its agent and objects alone."""
    return replace(sample, points=sample.points[:0], semantic=sample.semantic[:0], instances=sample.instances[:0])


def place_agent(sample: Sample, scene: Scene, pose: np.ndarray) -> Sample:
    """Return the sample with an agent at a published pose: position from the scene's middle, quaternion x, y, z, w."""
    position = scene.alignment @ np.append(pose[:3] + scene.center, 1)
    return replace(sample, position=position[:3], rotation=scene.alignment[:3, :3] @ to_matrix(pose[3:]))


def to_matrix(quaternion: np.ndarray) -> np.ndarray:
    """Return the rotation matrix of a quaternion x, y, z, w."""
    x, y, z, w = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def to_quaternion(matrix: np.ndarray) -> np.ndarray:
    """Return the quaternion x, y, z, w of a rotation matrix; its largest component is positive."""
    diagonal = np.append(np.diagonal(matrix), np.trace(matrix))
    largest = int(diagonal.argmax())
    differences = np.array(
        [matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1], 0.0]
    )
    if largest == 3:
        quaternion = np.append(differences[:3], 1 + diagonal[3])
    else:
        quaternion = np.append(matrix[largest] + matrix[:, largest], differences[largest])
        quaternion[largest] = 1 - diagonal[3] + 2 * diagonal[largest]
    return quaternion / np.linalg.norm(quaternion)


def flip(sample: Sample, axis: int) -> Sample:
    """Mirror a sample: x becomes -x (`axis=0`), or y becomes -y (`axis=1`)."""
    signs = np.ones(3)
    signs[axis] = -1
    points = sample.points.copy()
    points[:, axis] *= -1
    # The agent's own y is mirrored too, so that its axes stay right-handed and it still faces its own -x.
    rotation = sample.rotation * signs[:, None] * np.array([1, -1, 1])
    return replace(
        sample,
        points=points,
        centers=sample.centers * signs,
        position=sample.position * signs,
        rotation=rotation,
    )


def axis_rotation(axis: int, angle: float) -> np.ndarray:
    """Return the rotation matrix of an angle in radians about x, y or z."""
    matrix, (one, other) = np.eye(3), [(1, 2), (2, 0), (0, 1)][axis]
    matrix[one, one] = matrix[other, other] = np.cos(angle)
    matrix[one, other], matrix[other, one] = -np.sin(angle), np.sin(angle)
    return matrix


def turn(sample: Sample, axis: int, angle: float) -> Sample:
    """
    Rotate a sample. Boxes stay along the axes: their sizes become as in the published code, whose helper turns half of
    the sides that the rotation changes as if they were x and y.
    """
    matrix = axis_rotation(axis, angle)
    points, sizes = sample.points.copy(), sample.sizes.copy()
    points[:, :3] = points[:, :3] @ matrix.T
    changed = [index for index in range(3) if index != axis]
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    corners = sizes[:, None, changed] / 2 * signs @ matrix[:2, :2].T
    sizes[:, changed] = 2 * corners.max(axis=1)
    return replace(
        sample,
        points=points,
        centers=sample.centers @ matrix.T,
        sizes=sizes,
        position=matrix @ sample.position,
        rotation=matrix @ sample.rotation,
    )


def move(sample: Sample, offset: np.ndarray) -> Sample:
    """Translate a sample."""
    points = sample.points.copy()
    points[:, :3] += offset
    return replace(sample, points=points, centers=sample.centers + offset, position=sample.position + offset)


def vote_labels(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Return the way from each point to the middle of its object's points, three times, and which points have one."""
    xyz = sample.points[:, :3]
    votes, mask = np.zeros((len(xyz), 3), np.float32), np.zeros(len(xyz), np.int64)
    for number in np.unique(sample.instances):
        (rows,) = np.nonzero(sample.instances == number)
        # As published, the first point tells whether this is an object; points without annotation have a number, too.
        if int(sample.semantic[rows[0]]) in OBJECTS:
            of_object = xyz[rows]
            votes[rows] = (of_object.min(axis=0) + of_object.max(axis=0)) / 2 - of_object
            mask[rows] = 1
    return np.tile(votes, 3), mask


def make_labels(sample: Sample, mean_sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Return the labels of the detector."""
    count = len(sample.classes)
    classes, residuals = np.zeros(MAX_OBJECTS, np.int64), np.zeros((MAX_OBJECTS, 3), np.float32)
    classes[:count] = sample.classes
    residuals[:count] = sample.sizes - mean_sizes[sample.classes]
    votes, vote_mask = vote_labels(sample)
    return {
        "object_centers": sample.centers.astype(np.float32),
        "object_mask": (np.arange(MAX_OBJECTS) < count).astype(np.float32),
        "object_classes": classes,
        "object_size_residuals": residuals,
        "vote_labels": votes,
        "vote_mask": vote_mask,
    }


def pose_of(sample: Sample) -> np.ndarray:
    """Return the agent's position and quaternion x, y, z, w."""
    return np.concatenate([sample.position, to_quaternion(sample.rotation)]).astype(np.float32)
