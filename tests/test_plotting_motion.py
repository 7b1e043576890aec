# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Pictures and animations of scenes: what is drawn where."""

import numpy as np
import pytest
from motion_cases import traffic
from PIL import Image

from hf_frozen_llm.plotting_motion import FORECAST, HISTORY, LANE, OTHERS, TRUTH, SceneView, animate_scene, plot_scenes


pytest.importorskip("matplotlib")
NOW = 6


def make_scene(angle=0.0):
    """Three agents; the target, agent 0, drives along x, turned by an angle, and goes on."""
    scene = traffic(3, 2)
    steps = np.arange(10.0)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    positions = np.stack([np.stack([steps + y, steps * y], axis=1) for y in range(3)])
    lanes = [{**lane, "centerline": np.array(lane["centerline"]) @ rotation.T} for lane in scene["lanes"]]
    return {"positions": positions @ rotation.T, "timestamps": steps / 10, "target": 0, "lanes": lanes}


def make_prediction(angle=0.0):
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    ahead = 5 + np.arange(1.0, 9)
    trajectories = np.stack([np.stack([ahead, side * (ahead - 5)], axis=1) for side in (0.0, 0.5)])
    return {"trajectories": (trajectories @ rotation.T).tolist(), "scores": [0.25, 0.75]}


class Axis:
    """Notes what is drawn."""

    def __init__(self):
        self.lines, self.texts = [], []

    def plot(self, x, y, *args, color, **kwargs):
        self.lines.append((color, np.stack([np.atleast_1d(x), np.atleast_1d(y)], axis=-1), kwargs))

    def text(self, x, y, text, **kwargs):
        self.texts.append((text, np.array([x, y])))

    def __getattr__(self, name):
        return lambda *args, **kwargs: None

    def of(self, color):
        return [points for other, points, _ in self.lines if other == color]


def draw(step=None, angle=0.0, **change):
    from hf_frozen_llm.modeling.motion_scenes import check_scene

    axis = Axis()
    scene = check_scene({**make_scene(angle), **change}, NOW, "scene")
    SceneView(scene, make_prediction(angle), NOW, "scene").draw(axis, step)
    return axis


@pytest.mark.parametrize("angle", [0.0, 2.0])
def test_what_is_drawn_where(angle):
    """The target is at 0 and heads upwards, wherever it is in the scene."""
    axis = draw(angle=angle)
    history, now = axis.of(HISTORY)
    np.testing.assert_allclose(history, np.stack([np.zeros(6), np.arange(-5.0, 1)], axis=1), atol=1e-9)
    np.testing.assert_allclose(now, [[0, 0]], atol=1e-9)
    truth, end = axis.of(TRUTH)
    np.testing.assert_allclose(truth, np.stack([np.zeros(5), np.arange(5.0)], axis=1), atol=1e-9)
    np.testing.assert_allclose(end, [[0, 4]], atol=1e-9)
    best, best_end, other, _ = axis.of(FORECAST)
    np.testing.assert_allclose(best[[0, -1]], [[0, 0], [-4, 8]], atol=1e-9)
    np.testing.assert_allclose(best_end, [[-4, 8]], atol=1e-9)
    np.testing.assert_allclose(other[-1], [0, 8], atol=1e-9)
    strengths = [style["alpha"] for color, _, style in axis.lines if color == FORECAST]
    assert strengths[0] == pytest.approx(1) and 0.3 < strengths[2] < 1
    assert len(axis.of(LANE)) == 2 and len(axis.of(OTHERS)) == 4
    scores = {text: place for text, place in axis.texts if "%" in text}
    assert set(scores) == {"75 %", "25 %"} and scores["75 %"][0] < -4 < scores["25 %"][0]
    assert [text for text, _ in axis.texts if text.endswith(" m")] == ["10 m"]


def test_steps_of_an_animation():
    early, now, later = draw(3), draw(NOW), draw(NOW + 2)
    assert len(early.of(HISTORY)[0]) == 3 and not early.of(FORECAST) and not early.of(TRUTH)
    assert len(now.of(FORECAST)) == 4 and len(now.of(TRUTH)[0]) == 1
    assert len(later.of(TRUTH)[0]) == 3 and len(later.of(OTHERS)[0]) == 8


def test_unseen_steps_and_scores_at_one_place():
    positions = make_scene()["positions"].copy()
    positions[1, 5:] = positions[0, 7:] = np.nan
    axis = draw(positions=positions)
    assert len(axis.of(OTHERS)) == 3  # the agent that left has no place now
    assert len(axis.of(TRUTH)) == 1
    from hf_frozen_llm.modeling.motion_scenes import check_scene

    same = {"trajectories": [[[6.0, 0.0], [7.0, 0.0]]] * 3, "scores": [0.5, 0.3, 0.2]}
    axis = Axis()
    SceneView(check_scene(make_scene(), NOW, "scene"), same, NOW, "scene").draw(axis)
    places = [place for text, place in axis.texts if "%" in text]
    assert min(np.abs(a - b).max() for i, a in enumerate(places) for b in places[:i]) > 1


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_files(suffix, tmp_path):
    path = tmp_path / f"scenes{suffix}"
    plot_scenes(
        path, [make_scene(angle) for angle in range(5)], [make_prediction(a) for a in range(5)], NOW, columns=2
    )
    assert path.stat().st_size > 10_000
    if suffix == ".png":
        with Image.open(path) as image:
            assert image.height > image.width > 900
    plot_scenes(tmp_path / "one.png", [make_scene()], num_history_steps=NOW)


def test_animation(tmp_path):
    animate_scene(tmp_path / "scene.gif", make_scene(), make_prediction(), NOW, "a scene")
    with Image.open(tmp_path / "scene.gif") as image:
        assert image.n_frames == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scenes": []}, "scenes is empty"),
        ({"predictions": []}, "predictions has 0 entries; it must have one for each of 1 scenes"),
        ({"titles": ["a", "b"]}, "titles has 2 entries"),
        ({"num_history_steps": 20}, "scene 0 has 10 steps, fewer than num_history_steps, 20"),
    ],
)
def test_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plot_scenes(tmp_path / "a.png", **{"scenes": [make_scene()], "num_history_steps": NOW, **arguments})
