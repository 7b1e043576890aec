# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Forecasts without learning, beside which the results of every model stand."""

from collections.abc import Callable

import numpy as np


# Turns in degrees, and factors of the velocity, of the six trajectories that fan out.
FAN = ((0, 1.0), (12.5, 1.0), (-12.5, 1.0), (25, 1.0), (-25, 1.0), (0, 0.5))
# The Kalman filter's standard deviations: of a position in metres, of an acceleration in metres per square second.
POSITION_NOISE = 0.1
ACCELERATION_NOISE = 1.0


def stand_still(history: np.ndarray, times: np.ndarray, num_steps: int) -> np.ndarray:
    """Return the last observed position, repeated."""
    return np.repeat(history[-1:], num_steps, axis=0)


def keep_velocity(history: np.ndarray, times: np.ndarray, num_steps: int) -> np.ndarray:
    """Return positions that go on with the last observed displacement, per step."""
    seen = np.flatnonzero(np.isfinite(history).all(axis=-1))
    if len(seen) < 2:
        return stand_still(history, times, num_steps)
    velocity = (history[-1] - history[seen[-2]]) / (len(history) - 1 - seen[-2])
    return history[-1] + np.arange(1, num_steps + 1)[:, None] * velocity


def fan_out(history: np.ndarray, times: np.ndarray, num_steps: int) -> np.ndarray:
    """Return six trajectories of constant velocity: straight on first, then turned to both sides, and slower."""
    straight = keep_velocity(history, times, num_steps) - history[-1]
    angles, factors = np.deg2rad([turn for turn, _ in FAN]), np.array([factor for _, factor in FAN])
    cosines, sines = factors * np.cos(angles), factors * np.sin(angles)
    rotations = np.stack([np.stack([cosines, -sines], axis=-1), np.stack([sines, cosines], axis=-1)], axis=-2)
    return history[-1] + np.einsum("mij,sj->msi", rotations, straight)


def filter_velocity(history: np.ndarray, times: np.ndarray, num_steps: int) -> np.ndarray:
    """
    Return positions that go on from the position and velocity of a Kalman filter: constant velocity, disturbed by
    random accelerations. Steps at which the target was not seen are predicted only.
    """
    seen = np.flatnonzero(np.isfinite(history).all(axis=-1))
    # x and y have the same covariance, so that one matrix serves both; a row of the state is position, velocity.
    state = np.stack([history[seen[0]], np.zeros(2)])
    covariance = np.diag([POSITION_NOISE**2, 10.0**2])
    for step in range(seen[0] + 1, len(history)):
        seconds = times[step] - times[step - 1]
        transition = np.array([[1, seconds], [0, 1]])
        by_acceleration = np.array([seconds**2 / 2, seconds]) * ACCELERATION_NOISE
        state = transition @ state
        covariance = transition @ covariance @ transition.T + np.outer(by_acceleration, by_acceleration)
        if np.isfinite(history[step]).all():
            gain = covariance[:, 0] / (covariance[0, 0] + POSITION_NOISE**2)
            state = state + gain[:, None] * (history[step] - state[0])
            covariance = covariance - np.outer(gain, covariance[0])
    seconds = (times[-1] - times[0]) / max(1, len(times) - 1)
    return state[0] + np.arange(1, num_steps + 1)[:, None] * seconds * state[1]


BASELINES: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "standing still": stand_still,
    "constant velocity": keep_velocity,
    "Kalman filter": filter_velocity,
    "constant velocity, six directions": fan_out,
}


def forecast_baselines(history: np.ndarray, times: np.ndarray, num_steps: int) -> dict[str, np.ndarray]:
    """
    Return the forecast of each baseline, `(modes, num_steps, 2)`, the most probable first: one trajectory, or six.

    Args:
        history (`np.ndarray` of shape `(steps, 2)`): the target's observed positions; NaN where it was not seen. It is
            seen at the last step.
        times (`np.ndarray` of shape `(steps,)`): seconds.
        num_steps (`int`): number of future steps.
    """
    return {
        name: forecast(history, times, num_steps).reshape(-1, num_steps, 2) for name, forecast in BASELINES.items()
    }
