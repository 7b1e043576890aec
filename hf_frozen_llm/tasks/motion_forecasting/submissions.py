# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Files of predictions for the leaderboards of Argoverse 1 and 2.

Source of the layouts: the files that argoverse-api's `generate_forecasting_h5` and av2-api's `ChallengeSubmission`
write, of which these hold the same content.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq


ARGOVERSE1_STEPS, ARGOVERSE2_STEPS = 30, 60
# pandas alone would choose types by its version.
SUBMISSION_SCHEMA = pa.schema(
    [
        ("scenario_id", pa.string()),
        ("track_id", pa.string()),
        ("probability", pa.float64()),
        ("predicted_trajectory_x", pa.list_(pa.float64())),
        ("predicted_trajectory_y", pa.list_(pa.float64())),
    ]
)


def write_argoverse1_submission(
    path: str | os.PathLike,
    trajectories: Mapping[int, Any],
    probabilities: Mapping[int, Sequence[float]] | None = None,
) -> None:
    """
    Write the forecasts of Argoverse 1 as its leaderboard reads them: an HDF5 file.

    Args:
        path (`str` or `PathLike`):
            The file to write.
        trajectories (`Mapping[int, Any]`):
            By the number of the sequence, arrays `(modes, 30, 2)` in the city's coordinates, at least one trajectory.
        probabilities (`Mapping[int, Sequence[float]]`, *optional*):
            By the number of the sequence, the probability of each of its trajectories.

    Raises:
        `ImportError`: without h5py.
        `ValueError`: for other shapes, infinite numbers, or sequences without probabilities.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError("Argoverse 1's submissions need h5py: pip install 'hf_frozen_llm[motion]'") from error
    rows = []
    for sequence, modes in trajectories.items():
        location = f"sequence {sequence}"
        # As the official writer: positions in float32, in a table of float64.
        positions = check_trajectories(modes, ARGOVERSE1_STEPS, location).astype(np.float32).astype(np.float64)
        columns = [np.full((len(positions), ARGOVERSE1_STEPS, 1), int(sequence)), positions]
        if probabilities is not None:
            of_modes = check_probabilities(probabilities, sequence, len(positions), location)
            columns.append(np.repeat(of_modes[:, None, None], ARGOVERSE1_STEPS, axis=1))
        rows.append(np.concatenate(columns, axis=-1).reshape(-1, sum(column.shape[-1] for column in columns)))
    if not rows:
        raise ValueError("trajectories is empty; give the forecasts of at least one sequence.")
    table = np.concatenate(rows)
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "argoverse_forecasting", data=table, chunks=table.shape, compression="gzip", compression_opts=9
        )


def write_argoverse2_submission(
    path: str | os.PathLike,
    trajectories: Mapping[str, Mapping[str, Any]],
    probabilities: Mapping[str, Sequence[float]],
) -> None:
    """
    Write the forecasts of Argoverse 2 as its leaderboard reads them: a parquet file with a row for each trajectory.

    Args:
        path (`str` or `PathLike`):
            The file to write.
        trajectories (`Mapping[str, Mapping[str, Any]]`):
            By the id of the scenario and that of the track, arrays `(modes, 60, 2)` in the map's coordinates.
        probabilities (`Mapping[str, Sequence[float]]`):
            By the id of the scenario, the probabilities of its modes, which all of its tracks share; their sum is 1.

    Raises:
        `ValueError`: for other shapes, infinite numbers, or probabilities that are missing or whose sum is not 1.
    """
    rows = []
    for scenario, tracks in trajectories.items():
        for track, modes in tracks.items():
            location = f"scenario {scenario}, track {track}"
            positions = check_trajectories(modes, ARGOVERSE2_STEPS, location)
            of_modes = check_probabilities(probabilities, scenario, len(positions), location)
            if not np.isclose(of_modes.sum(), 1):
                raise ValueError(f"{location}: the sum of the probabilities is {of_modes.sum():.6g}; it must be 1.")
            for probability, trajectory in zip(of_modes, positions):
                rows.append((str(scenario), str(track), float(probability), *map(list, trajectory.T)))
    if not rows:
        raise ValueError("trajectories is empty; give the forecasts of at least one track.")
    columns = pd.DataFrame(rows, columns=SUBMISSION_SCHEMA.names)
    pq.write_table(pa.Table.from_pandas(columns, SUBMISSION_SCHEMA, preserve_index=False), path)


def check_trajectories(modes: Any, steps: int, location: str) -> np.ndarray:
    positions = np.asarray(modes, dtype=np.float64)
    if positions.ndim != 3 or positions.shape[1:] != (steps, 2) or len(positions) == 0:
        raise ValueError(
            f"{location}: trajectories has the shape {positions.shape}; it must be (modes, steps, 2) = (1 or more, "
            f"{steps}, 2)."
        )
    if not np.isfinite(positions).all():
        raise ValueError(f"{location}: trajectories holds infinite numbers or NaN.")
    return positions


def check_probabilities(
    probabilities: Mapping[Any, Sequence[float]], key: Any, count: int, location: str
) -> np.ndarray:
    if key not in probabilities:
        raise ValueError(f"{location} has no probabilities; give one for each of its {count} trajectories.")
    values = np.asarray(probabilities[key], dtype=np.float64)
    if values.shape != (count,) or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"{location}: probabilities is {values.tolist()}; give one from 0 to 1 for each of its {count} "
            "trajectories."
        )
    return values
