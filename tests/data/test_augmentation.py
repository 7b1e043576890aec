# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from hf_frozen_llm.data.augmentation import (
    ENHANCEMENTS,
    FACTORS,
    MOVES,
    change_by_factor,
    draw_box,
    enhance,
    erase_randomly,
    mix,
    move,
    rand_augment,
)


FILL = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)


def make_clips(batch=4, frames=3, side=24):
    """Return still clips: all frames of a clip are equal."""
    pictures = torch.rand(batch, 1, 3, 6, 6)
    pictures = torch.nn.functional.interpolate(pictures.flatten(0, 1), (side, side), mode="bilinear")
    return pictures[:, None].expand(-1, frames, -1, -1, -1).contiguous()


def to_pil(frame):
    return Image.fromarray((255 * frame).round().byte().permute(1, 2, 0).numpy())


@pytest.mark.parametrize("name", [*ENHANCEMENTS, *FACTORS, *MOVES])
def test_frames_of_a_clip_are_changed_alike(name):
    frames = make_clips()[0]
    if name in ENHANCEMENTS:
        changed = enhance(frames, name, 0.7)
    elif name in FACTORS:
        changed = change_by_factor(frames, name, 1.6)
    else:
        changed = move(frames, name, -0.7, FILL)
    assert changed.shape == frames.shape and changed.dtype == frames.dtype
    assert changed.min() >= 0 and changed.max() <= 1
    assert torch.equal(changed, changed[:1].expand_as(changed))
    assert (changed - frames).abs().mean() > 0.005


@pytest.mark.parametrize("name", [*FACTORS, *MOVES])
def test_no_strength_is_no_change(name):
    frames = make_clips()[0]
    changed = move(frames, name, 0.0, FILL) if name in MOVES else change_by_factor(frames, name, 1.0)
    torch.testing.assert_close(changed, frames, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "strength", "expected", "tolerance"),
    [
        ("auto_contrast", 0.5, ImageOps.autocontrast, 1.5),
        ("invert", 0.5, ImageOps.invert, 0.6),
        ("posterize", 0.5, lambda image: ImageOps.posterize(image, 2), 0.6),
        ("solarize", 0.5, lambda image: ImageOps.solarize(image, 128), 0.6),
    ],
)
def test_enhancements_are_those_of_pil(name, strength, expected, tolerance):
    frame = (255 * make_clips()[0, :1]).round() / 255
    ours = 255 * enhance(frame, name, strength)[0]
    theirs = torch.from_numpy(np.array(expected(to_pil(frame[0])))).permute(2, 0, 1)
    assert (ours - theirs).abs().max() <= tolerance


@pytest.mark.parametrize(
    ("name", "expected"),
    [("saturation", ImageEnhance.Color), ("contrast", ImageEnhance.Contrast), ("brightness", ImageEnhance.Brightness)],
)
@pytest.mark.parametrize("factor", [0.3, 1.7])
def test_factors_are_those_of_pil(name, expected, factor):
    frame = (255 * make_clips()[0, :1]).round() / 255
    ours = 255 * change_by_factor(frame, name, factor)[0]
    theirs = torch.from_numpy(np.array(expected(to_pil(frame[0])).enhance(factor))).permute(2, 0, 1)
    assert (ours - theirs).abs().max() <= 3


def test_moves_go_where_they_should_and_fill():
    frames = torch.zeros(2, 3, 20, 20)
    frames[..., 8:12, 8:12] = 1
    right = move(frames, "translate_x", 0.5, FILL)  # by 0.45 * 0.5 * 20 pixels
    assert (right[..., 10, 14] > 0.9).all()
    torch.testing.assert_close(right[..., 0, 0], FILL.flatten().expand(2, 3))
    down = move(frames, "translate_y", 0.5, FILL)
    assert (down[..., 14, 10] > 0.9).all()
    turned = move(frames, "rotate", 1.0, FILL)
    torch.testing.assert_close(turned[..., 0, 0], FILL.flatten().expand(2, 3), rtol=0, atol=0.02)
    assert (turned[..., 9:11, 9:11] > 0.9).all()


def test_rand_augment_draws_for_each_clip():
    clips = make_clips(batch=16)
    once = rand_augment(clips, 2, 7, FILL, np.random.default_rng(0))
    again = rand_augment(clips, 2, 7, FILL, np.random.default_rng(0))
    assert torch.equal(once, again)
    assert torch.equal(once, once[:, :1].expand_as(once))  # still clips stay still
    unchanged = sum(torch.equal(a, b) for a, b in zip(once, clips))
    assert 1 <= unchanged <= 8  # both operations are left out in one of four clips
    assert torch.equal(rand_augment(clips, 0, 7, FILL, np.random.default_rng(0)), clips)


def test_boxes_have_their_share_and_ratio():
    rng = np.random.default_rng(0)
    for _ in range(100):
        rows, columns = draw_box(60, 100, 0.25, 0.5, rng)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        assert 0 <= rows.start and rows.stop <= 60 and 0 <= columns.start and columns.stop <= 100
        assert height * width == pytest.approx(0.25 * 6000, rel=0.03) and height / width == pytest.approx(
            0.5, rel=0.05
        )
    rows, columns = draw_box(10, 10, 1.0, 9.0, rng)  # taller than the image
    assert rows == slice(0, 10) and columns.stop - columns.start == 3


def test_erasing():
    clips = torch.full((64, 3, 3, 20, 20), 7.0)
    erased = erase_randomly(clips, 0.25, np.random.default_rng(0))
    assert (clips == 7).all()
    is_changed = (erased != 7).all(dim=2)
    assert torch.equal(is_changed, is_changed[:, :1].expand_as(is_changed))
    shares = is_changed[:, 0].float().mean((1, 2))
    assert 8 <= (shares > 0).sum() <= 24
    assert shares[shares > 0].min() >= 0.01 and shares.max() < 0.36
    noise = erased[erased != 7]
    assert noise.mean().abs() < 0.05 and (noise.std() - 1).abs() < 0.05
    assert torch.equal(erase_randomly(clips, 0.25, np.random.default_rng(0)), erased)
    assert torch.equal(erase_randomly(clips, 0.0, np.random.default_rng(0)), clips)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_labels_are_the_shares_of_the_pixels(mixup, cutmix):
    # Clip n shows its number everywhere, so the mean of a mixed clip is the mean of its labels.
    labels = torch.tensor([0, 1, 2, 3, 4, 5])
    clips = labels.double().view(6, 1, 1, 1, 1).expand(6, 2, 3, 10, 14).contiguous()
    kinds = set()
    for seed in range(20):
        mixed, shares = mix(clips, labels, 6, mixup, cutmix, np.random.default_rng(seed))
        torch.testing.assert_close(shares.sum(1), torch.ones(6, dtype=torch.float64))
        torch.testing.assert_close(mixed.mean((1, 2, 3, 4)), shares @ torch.arange(6.0).double())
        kinds.add(bool((mixed == mixed.round()).all()))
    assert kinds == {cutmix > 0} if mixup == 0 or cutmix == 0 else kinds == {True, False}
