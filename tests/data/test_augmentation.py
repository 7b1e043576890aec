# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import json
import math
import re

import numpy as np
import pytest
import torch
from paths import REPO
from PIL import Image, ImageEnhance, ImageOps
from torch.nn import functional as F

from hf_frozen_llm.data.augmentation import (
    ENHANCEMENTS,
    FACTORS,
    MOVES,
    WIDE,
    draw_box,
    draw_cut,
    erase_randomly,
    find_amount,
    jitter_colors,
    mix,
    rand_augment,
    three_augment,
    trivial_augment,
)
from hf_frozen_llm.data.augmentation_arguments import NONE, PRESETS
from hf_frozen_llm.data.image_operations import OPERATIONS, apply_operations
from hf_frozen_llm.tasks.image_classification import ImageDataArguments
from hf_frozen_llm.tasks.video_classification import VideoDataArguments


FILL = torch.tensor([124.0, 116.0, 104.0]).view(3, 1, 1)


def make_clips(batch=4, frames=3, side=24):
    """Return still clips: all frames of a clip are equal."""
    pictures = torch.rand(batch, 1, 3, 6, 6)
    pictures = torch.nn.functional.interpolate(pictures.flatten(0, 1), (side, side), mode="bilinear")
    return (255 * pictures[:, None]).round().expand(-1, frames, -1, -1, -1).contiguous()


def to_pil(frame):
    return Image.fromarray(frame.byte().permute(1, 2, 0).numpy())


def change(clips, name, amount):
    return apply_operations(clips, [name] * len(clips), [amount] * len(clips), FILL)


@pytest.mark.parametrize("name", [*ENHANCEMENTS, *FACTORS, *MOVES])
def test_frames_of_a_clip_are_changed_alike(name):
    clips = make_clips()
    changed = change(clips, name, find_amount(name, 0.7, -1, 24, 24))
    assert changed.shape == clips.shape and changed.dtype == clips.dtype
    assert changed.min() >= 0 and changed.max() <= 255
    assert torch.equal(changed, changed[:, :1].expand_as(changed))
    assert (changed - clips).abs().mean() > 0.005 * 255


@pytest.mark.parametrize("name", [*FACTORS, *MOVES])
def test_no_strength_is_no_change(name):
    clips = make_clips()
    assert torch.equal(change(clips, name, find_amount(name, 0.0, 1, 24, 24)), clips)


# The amounts of timm's rand-m9-mstd0.5-inc1 at strength 9 of 10, for 224 pixels, by hand.
TIMM = {
    "rotate": 27.0,
    "posterize": 4 - int(0.9 * 4),
    "solarize": 256 - int(0.9 * 256),
    "solarize_add": int(0.9 * 110),
    "saturation": 1.81,
    "contrast": 1.81,
    "brightness": 1.81,
    "sharpness": 1.81,
    "shear_x": 0.27,
    "shear_y": 0.27,
    "translate_x": 0.9 * 0.45 * 224,
    "translate_y": 0.9 * 0.45 * 224,
}


@pytest.mark.parametrize("name", TIMM)
def test_amounts_of_rand_augment_are_those_of_timm(name):
    assert find_amount(name, 0.9, 1, 224, 224) == pytest.approx(TIMM[name])
    mirrored = {**dict.fromkeys(FACTORS, 0.19), **{move: -TIMM[move] for move in MOVES}}
    assert find_amount(name, 0.9, -1, 224, 224) == pytest.approx(mirrored.get(name, TIMM[name]))
    assert find_amount("brightness", 1.0, -1, 224, 224) == pytest.approx(0.1)  # timm's least factor
    assert {*TIMM, "auto_contrast", "equalize", "invert"} == {*ENHANCEMENTS, *FACTORS, *MOVES}


@pytest.mark.parametrize(
    ("name", "strength", "expected", "tolerance"),
    [
        ("auto_contrast", 0.5, ImageOps.autocontrast, 1),
        ("invert", 0.5, ImageOps.invert, 0),
        ("posterize", 0.5, lambda image: ImageOps.posterize(image, 2), 0),
        ("solarize", 0.5, lambda image: ImageOps.solarize(image, 128), 0),
    ],
)
def test_enhancements_are_those_of_pil(name, strength, expected, tolerance):
    clip = make_clips()[:1]
    ours = change(clip, name, find_amount(name, strength, 1, 24, 24))[0, 0]
    theirs = torch.from_numpy(np.array(expected(to_pil(clip[0, 0])))).permute(2, 0, 1)
    assert (ours - theirs).abs().max() <= tolerance


@pytest.mark.parametrize(
    ("name", "expected"),
    [("saturation", ImageEnhance.Color), ("contrast", ImageEnhance.Contrast), ("brightness", ImageEnhance.Brightness)],
)
@pytest.mark.parametrize("factor", [0.3, 1.7])
def test_factors_are_those_of_pil(name, expected, factor):
    clip = make_clips()[:1]
    theirs = torch.from_numpy(np.array(expected(to_pil(clip[0, 0])).enhance(factor))).permute(2, 0, 1)
    assert (change(clip, name, factor)[0, 0] - theirs).abs().max() <= 0


def test_moves_go_where_they_should_and_fill():
    clips = torch.zeros(1, 2, 3, 20, 20)
    clips[..., 8:12, 8:12] = 255
    left = change(clips, "translate_x", find_amount("translate_x", 0.5, 1, 20, 20))[0]  # by 0.45 * 0.5 * 20 pixels
    assert (left[..., 10, 5] > 229).all()
    torch.testing.assert_close(left[..., 0, 19], FILL.flatten().expand(2, 3))
    down = change(clips, "translate_y", find_amount("translate_y", 0.5, -1, 20, 20))[0]
    assert (down[..., 14, 10] > 229).all()
    turned = change(clips, "rotate", find_amount("rotate", 1.0, 1, 20, 20))[0]
    torch.testing.assert_close(turned[..., 0, 0], FILL.flatten().expand(2, 3))
    assert (turned[..., 9:11, 9:11] > 229).all()


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
    assert draw_box(10, 10, 1.0, 9.0, rng) is None  # taller than the image: timm draws another
    assert draw_box(10, 10, 0.25, 1.0, rng) is not None


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


def test_erased_boxes_have_the_areas_and_ratios_of_timm():
    erased = erase_randomly(torch.full((600, 1, 1, 100, 100), 7.0), 1.0, np.random.default_rng(0))[:, 0, 0] != 7
    heights, widths = erased.any(2).sum(1).double(), erased.any(1).sum(1).double()
    assert (erased.sum((1, 2)) == heights * widths).all() and (heights > 0).all()  # one box in each
    areas, ratios = heights * widths / 10_000, (heights / widths).log()
    assert areas.min() > 0.018 and areas.max() < 0.345
    # Uniform areas from 0.02 to 1/3, and uniform logarithms, but for boxes larger than the image.
    assert areas.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.012)
    assert ratios.mean().abs() < 0.06 and ratios.std() == pytest.approx(
        2 * math.log(1 / 0.3) / math.sqrt(12), abs=0.06
    )


def test_trivial_augment_is_that_of_torchvision(monkeypatch):
    """One operation of 14, of 31 strengths; those of TrivialAugmentWide, by hand."""
    drawn = []

    def record(clips, names, amounts, fill, mode):
        drawn.extend(zip(names, amounts))
        assert not fill.any()
        return clips

    monkeypatch.setattr("hf_frozen_llm.data.augmentation.apply_operations", record)
    trivial_augment(torch.zeros(14_000, 1, 3, 2, 2), np.random.default_rng(0))
    places = [place / 30 for place in range(31)]

    def both(values):
        return {round(sign * value, 6) for value in values for sign in (1, -1)}

    expected = {
        "identity": {0.0},
        "auto_contrast": {0.0},
        "equalize": {0.0},
        "shear_x": both(0.99 * place for place in places),
        "translate_x": both(int(32 * place) for place in places),
        "rotate": both(135 * place for place in places),
        "posterize": {8 - round(bin_number / 5) for bin_number in range(31)},
        "solarize": {round(255 - 255 * place, 6) for place in places},
    }
    expected |= {name: {round(1 + change, 6) for change in both(0.99 * place for place in places)} for name in FACTORS}
    expected |= {name: expected[name.replace("_y", "_x")] for name in ("shear_y", "translate_y")}
    assert expected.keys() == WIDE.keys()
    for name, values in expected.items():
        of_name = [round(amount, 6) + 0.0 for other, amount in drawn if other == name]
        assert set(of_name) == values, name
        assert len(of_name) == pytest.approx(1000, abs=130)


def test_three_augment_draws_one_of_three():
    """Grey, solarised from 128 on, or blurred by 0.1 to 2 pixels."""
    clips = make_clips(300, 1)
    changed = three_augment(clips, np.random.default_rng(0))
    zeros = torch.zeros(len(clips), 1, 1, 1, 1)
    is_grey = (changed == OPERATIONS["grayscale"](clips, zeros)).flatten(1).all(1)
    is_solarized = (changed == OPERATIONS["solarize"](clips, zeros + 128)).flatten(1).all(1)
    rest = ~(is_grey | is_solarized)
    assert all(70 < part.sum() < 130 for part in (is_grey, is_solarized, rest))
    high = (clips - OPERATIONS["gaussian_blur"](clips, zeros + 2)).abs().flatten(1).mean(1)
    moved = (clips - changed).abs().flatten(1).mean(1)[rest]
    assert (moved <= high[rest] + 0.5).all() and moved.min() < 0.2


def test_color_jitter_is_that_of_torchvision(monkeypatch):
    """Three operations in any order, with factors from 0.6 to 1.4."""
    drawn = []

    def record(clips, names, amounts, fill):
        drawn.append((names, amounts))
        return clips

    monkeypatch.setattr("hf_frozen_llm.data.augmentation.apply_operations", record)
    jitter_colors(torch.zeros(600, 1, 3, 2, 2), 0.4, np.random.default_rng(0))
    orders = list(zip(*(names for names, _ in drawn)))
    assert {len(set(order)) for order in orders} == {3} and len(set(orders)) == 6
    assert all(60 < orders.count(order) < 140 for order in set(orders))
    factors = np.array([amounts for _, amounts in drawn])
    assert 0.6 <= factors.min() < 0.61 and 1.39 < factors.max() <= 1.4 and abs(factors.mean() - 1) < 0.02


def test_rand_augment_draws_strengths_and_operations(monkeypatch):
    drawn = []

    def record(clips, names, amounts, fill, mode):
        drawn.extend(zip(names, amounts))
        return clips

    monkeypatch.setattr("hf_frozen_llm.data.augmentation.apply_operations", record)
    rand_augment(torch.zeros(6000, 1, 3, 2, 2), 2, 9, FILL, np.random.default_rng(0))
    names = [name for name, _ in drawn]
    assert len(drawn) == 12_000 and names.count("identity") == pytest.approx(6000, abs=200)
    assert all(names.count(name) == pytest.approx(400, abs=80) for name in (*ENHANCEMENTS, *FACTORS, *MOVES))
    strengths = np.array([abs(amount) / 3 for name, amount in drawn if name == "rotate"])
    assert abs(strengths.mean() - 9) < 0.1 and abs(strengths.std() - 0.5) < 0.08 and strengths.max() <= 10


def test_cutmix_boxes_are_those_of_timm():
    """Whole pixels of a box about a point of the image; what is outside is left out."""
    rng, again = np.random.default_rng(0), np.random.default_rng(0)
    shares = []
    for kept in np.linspace(0, 1, 200):
        rows, columns = draw_cut(60, 101, kept, rng)
        for box, side in ((rows, 60), (columns, 101)):
            middle, length = int(again.integers(side)), int(side * math.sqrt(1 - kept))
            assert box == slice(max(0, middle - length // 2), min(side, middle + length // 2))
        shares.append((rows.stop - rows.start) * (columns.stop - columns.start) / 6060 <= 1 - kept + 1e-9)
    assert all(shares)


def test_mixing_draws_are_those_of_timm():
    """Shares from Beta(0.8, 0.8) and Beta(1, 1); CutMix with its probability."""
    labels, clips = torch.tensor([0, 1]), torch.zeros(2, 1, 1, 50, 50)
    clips[1] = 1
    kept, is_cut = [], []
    for seed in range(1500):
        mixed, shares = mix(clips, labels, 2, 0.8, 1.0, np.random.default_rng(seed), switch_prob=0.3)
        kept.append(shares[0, 0].item())
        is_cut.append(bool((mixed == mixed.round()).all()))
    assert 390 < sum(is_cut) < 510
    mixup = np.array([share for share, cut in zip(kept, is_cut) if not cut])
    assert abs(mixup.mean() - 0.5) < 0.03
    assert abs(mixup.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.012  # of a symmetric beta distribution


def test_smoothed_targets_of_mixed_labels_are_those_of_timm():
    labels, logits = torch.tensor([2, 0, 1]), torch.randn(3, 4)
    _, shares = mix(torch.rand(3, 1, 3, 8, 8), labels, 4, 0.8, 0.0, np.random.default_rng(3))
    kept = float(np.random.default_rng(3).beta(0.8, 0.8))
    on, off = 1 - 0.1 + 0.1 / 4, 0.1 / 4
    first, second = (torch.full((3, 4), off).scatter_(1, part[:, None], on) for part in (labels, labels.flip(0)))
    targets = kept * first + (1 - kept) * second
    by_hand = -(targets * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(F.cross_entropy(logits, shares, label_smoothing=0.1), by_hand)


def test_presets():
    """Each sets every key; a key of the recipe replaces its value; the default changes nothing."""
    assert all(preset.keys() == NONE.keys() for preset in PRESETS.values())
    plain = ImageDataArguments("x")
    assert {name: getattr(plain, name) for name in NONE} == NONE and not plain.changes_batches
    light = ImageDataArguments("x", augmentation="light")
    assert (light.random_crop_scale, light.random_flip, light.changes_batches) == ([0.08, 1.0], True, False)
    for arguments in (ImageDataArguments, VideoDataArguments):
        deit = arguments("x", augmentation="deit", rand_augment_magnitude=7.0, mixup_alpha=0.0, random_flip=False)
        assert (deit.rand_augment_ops, deit.rand_augment_magnitude, deit.random_erasing) == (2, 7.0, 0.25)
        assert (deit.mixup_alpha, deit.cutmix_alpha, deit.random_flip, deit.repeated_augmentation) == (
            0,
            1.0,
            False,
            3,
        )
        assert deit.training_loss is None and deit.is_mixing and deit.changes_batches
    third = ImageDataArguments("x", augmentation="deit3")
    assert (third.three_augment, third.color_jitter, third.training_loss) == (True, 0.3, "binary_cross_entropy")
    assert third.rand_augment_ops == 0 and third.random_erasing == 0
    padded = ImageDataArguments("x", augmentation="deit", crop_padding=4)
    assert padded.random_crop_scale is None and padded.random_erasing == 0.25


def test_the_table_of_presets_is_right():
    text = (REPO / "docs" / "train_on_your_own_data.md").read_text()
    table = text[text.index("| key | `none` (default)") :].partition("\n\n")[0]
    header, *rows = re.findall(r"^\| (.+) \|$", table, re.MULTILINE)
    presets = re.findall(r"`(\w+)`", header)
    assert presets == list(PRESETS)
    words = {"–": None, "false": False, "true": True, "cross-entropy": None, "binary": "binary_cross_entropy"}
    seen = set()
    for row in rows:
        names, *cells, _ = row.split(" | ")
        keys = re.findall(r"`(\w+)`", names)
        seen |= set(keys)
        for preset, cell in zip(presets, cells, strict=True):
            said = [cell] if cell.startswith("[") else cell.replace("`", "").split(", ")
            for key, value in zip(keys, said, strict=True):
                assert PRESETS[preset][key] == (words[value] if value in words else json.loads(value)), (preset, key)
    assert seen == set(NONE)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"augmentation": "deit", "trivial_augment": True}, "rand_augment_ops and trivial_augment are all set"),
        ({"three_augment": True, "trivial_augment": True}, "Set trivial_augment or three_augment to 0 or false"),
        ({"augmentation": "deit", "streaming": True}, "repeated_augmentation is 3, but the examples of a stream"),
        ({"mixup_off_epoch": 3, "streaming": True}, "mixup_off_epoch is 3, but a stream"),
        ({"mixup_off_epoch": 0}, "mixup_off_epoch is 0; it must be at least 1"),
        ({"mixup_prob": 1.5}, "mixup_prob is 1.5; it is a probability"),
        ({"color_jitter": -0.1}, "color_jitter is -0.1; it must be finite, and it must not be negative"),
        ({"crop_padding": 4, "random_crop_scale": [0.1, 1.0]}, "both set"),
        ({"crop_padding": -1}, "must not be negative"),
        (
            {"training_loss": "binary_cross_entropy", "class_weights": "balanced"},
            "class_weights is set, but training_loss",
        ),
        ({"training_loss": "cross_entropy", "problem_type": "multi_label_classification"}, "one label for each row"),
    ],
)
def test_keys_that_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        ImageDataArguments("x", **keys).check_training()


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
