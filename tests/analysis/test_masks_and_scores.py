# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Readers of masks, masks of tokens, scores of maps, and curves, on cases whose answers are known."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score, roc_auc_score
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_frozen_llm.analysis import (
    area_under_curve,
    auroc,
    deletion_and_insertion,
    find_masked_images,
    held_out_iou,
    ious,
    mask_of_tokens,
    oracle_iou,
    pointing_game,
)
from hf_frozen_llm.analysis.scores import THRESHOLDS


def write(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    if mode == "P":
        image = image.convert("P")
        image.putdata(np.asarray(pixels).flatten().tolist())
        image.putpalette([7, 200, 0] * 256)  # VOC's numbers are indices of its colours
    image.save(path)
    return path


PICTURE = np.zeros((2, 3, 3))


def test_folders(tmp_path):
    for name, mask in (("b/2", [[0, 255, 0], [0, 0, 3]]), ("a/1", [[1, 0, 0], [0, 0, 0]])):
        write(tmp_path / "images" / f"{name}.jpg", PICTURE)
        write(tmp_path / "masks" / f"{name}.png", mask)
    first, second = find_masked_images(tmp_path)
    assert (first.name, second.name) == ("a/1", "b/2")
    image, mask = second.read()
    assert image.mode == "RGB" and mask.tolist() == [[0, 1, 0], [0, 0, 1]]


def test_voc(tmp_path):
    for name in ("1", "2", "3"):
        write(tmp_path / "JPEGImages" / f"{name}.jpg", PICTURE)
    for name in ("1", "2"):
        write(tmp_path / "SegmentationClass" / f"{name}.png", [[0, 15, 255], [1, 0, 0]], "P")
    assert [found.name for found in find_masked_images(tmp_path)] == ["1", "2"]
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("2\n")
    (found,) = find_masked_images(tmp_path)
    np.testing.assert_array_equal(found.read()[1], [[0, 1, np.nan], [1, 0, 0]])
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("2\n3\n")
    with pytest.raises(ValueError, match="SegmentationClass lacks 1 of 2 masks, such as 3"):
        find_masked_images(tmp_path)


def test_imagenet_s(tmp_path):
    numbers = np.array([[0, 7, 300], [1000, 1000, 0]])
    mask = np.stack([numbers % 256, numbers // 256, 0 * numbers], axis=-1)
    write(tmp_path / "validation" / "n01443537" / "ILSVRC2012_val_1.JPEG", PICTURE)
    write(tmp_path / "validation-segmentation" / "n01443537" / "ILSVRC2012_val_1.png", mask)
    (found,) = find_masked_images(tmp_path)
    np.testing.assert_array_equal(found.read()[1], [[0, 1, 1], [np.nan, np.nan, 0]])


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        find_masked_images(tmp_path / "none")
    with pytest.raises(ValueError, match=r"has no images with masks. It must hold two folders: JPEGImages and Segm"):
        find_masked_images(tmp_path)
    (tmp_path / "masks").mkdir()
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match="images holds no images"):
        find_masked_images(tmp_path)
    write(tmp_path / "images" / "1.png", PICTURE)
    write(tmp_path / "masks" / "one.png", PICTURE[..., 0])
    with pytest.raises(
        ValueError, match=r"images lacks 1 of 2 images, such as one. An image and its mask have the sa"
    ):
        find_masked_images(tmp_path)
    (tmp_path / "masks" / "one.png").unlink()
    with pytest.raises(ValueError, match="masks lacks 1 of 1 masks, such as 1"):
        find_masked_images(tmp_path)
    write(tmp_path / "masks" / "1.png", np.zeros((2, 2)))
    (found,) = find_masked_images(tmp_path)
    with pytest.raises(ValueError, match=r"1.png has 2 x 2 pixels, and its image .* has 3 x 2. Give masks of the im"):
        found.read()
    (tmp_path / "masks" / "1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1.png cannot be read"):
        found.read()


def test_mask_of_tokens():
    processor = ViTImageProcessorPil(size={"height": 4, "width": 4})
    mask = np.array([[1, 1, 0, 0], [0, 0, 0, 1], [np.nan] * 4, [np.nan, 1, np.nan, np.nan]])
    # Half of the first patch, a quarter of the second; of the known pixels of the third, all.
    np.testing.assert_array_equal(mask_of_tokens(mask, processor, (2, 2)), [[1, 0], [np.nan, np.nan]])
    np.testing.assert_array_equal(mask_of_tokens(mask, processor, (4, 4)), mask)
    # As the image: the shorter side is resized, and the middle is kept.
    cropping = ViTImageProcessorPil(
        size={"shortest_edge": 4}, do_center_crop=True, crop_size={"height": 4, "width": 4}
    )
    wide = np.zeros((2, 4))
    wide[:, 2:] = 1
    np.testing.assert_array_equal(mask_of_tokens(wide, cropping, (1, 2)), [[0, 1]])
    with pytest.raises(ValueError, match="4 x 4 pixels are not 3 x 3 whole patches"):
        mask_of_tokens(mask, processor, (3, 3))


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    maps, masks = rng.random((5, 20)).round(1), (rng.random((5, 20)) > 0.6).astype(float)
    masks[1:, :3] = np.nan
    return maps, masks


def test_iou_is_sklearns(maps):
    found = ious(*maps)
    assert found.shape == (5, 9)
    for i, (values, mask) in enumerate(zip(*maps)):
        known = ~np.isnan(mask)
        for t, threshold in enumerate(THRESHOLDS):
            expected = jaccard_score(mask[known] == 1, values[known] > threshold, zero_division=0)
            assert found[i, t] == pytest.approx(expected)
    assert oracle_iou(found).tolist() == [max(row) for row in found.tolist()]


def test_thresholds_come_from_the_other_half():
    """Each image has its own best threshold; the half of an image does not know it."""
    perfect = np.tile(np.array([0.2, 0.9, 0.2]), (6, 1))
    assert held_out_iou(perfect).tolist() == [0.9] * 6 == oracle_iou(perfect).tolist()
    rng = np.random.default_rng(0)
    order = np.random.default_rng(0).permutation(6)
    scores = rng.random((6, 3))
    found = held_out_iou(scores)
    for half, other in ((order[:3], order[3:]), (order[3:], order[:3])):
        best = scores[other].mean(0).argmax()
        assert found[half].tolist() == scores[half, best].tolist()
    with pytest.raises(ValueError, match="2 images or more"):
        held_out_iou(scores[:1])


def test_pointing_game():
    masks = np.array([[1, 0, 0], [1, 0, np.nan], [0, 1, 0], [1, 0, 0]])
    maps = np.array([[0.9, 1, 0], [0.5, 0.2, 1], [0.1, 1, 0.2], [0.5, 0.5, 0.5]])
    assert pointing_game(maps, masks).tolist() == [0, 1, 1, pytest.approx(1 / 3)]


def test_auroc_is_sklearns(maps):
    found = auroc(*maps)
    for values, mask, score in zip(*maps, found):
        known = ~np.isnan(mask)
        assert score == pytest.approx(roc_auc_score(mask[known], values[known]))
    assert np.isnan(auroc(maps[0], np.ones((5, 20)))).all()


def test_deletion_and_insertion():
    """A model of which one patch of four decides the class: its logit is 9 where that patch is there."""
    pixel_values = torch.ones(2, 3, 4, 6)

    def predict(pixels):
        is_there = (pixels[:, 0, 0, -1] != 0).float()
        return torch.stack([9 * is_there, torch.zeros(len(pixels))], dim=1)

    # The patch ranks first in the first map, last in the second.
    maps = torch.tensor([[[0.1, 1.0], [0.2, 0.3]], [[0.3, 0.1], [0.9, 0.4]]])
    deletion, insertion = deletion_and_insertion(predict, pixel_values, maps, steps=4)
    high = torch.tensor([9.0, 0]).softmax(0)[0].item()
    assert deletion.tolist() == [pytest.approx([high, *[0.5] * 4]), pytest.approx([*[high] * 4, 0.5])]
    assert insertion.tolist() == [pytest.approx([0.5, *[high] * 4]), pytest.approx([*[0.5] * 4, high])]
    assert area_under_curve(torch.tensor([[1.0, 0, 0], [1, 1, 1]])).tolist() == [0.25, 1]
