# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The page of the documentation on motion forecasting."""

import dataclasses
import json
import re
from pathlib import Path

from hub_server import HubServer
from pages import AfterBlock, Page, add_llm, table_rows
from tiny_traffic import make_tracks, write_pedestrians

from hf_frozen_llm.tasks import TASKS


def prepare_traffic(hub: HubServer, folder: Path) -> None:
    """Write `eth_ucy` and `tracks.csv`."""
    add_llm(hub)
    write_pedestrians(Path("eth_ucy"))
    tracks = make_tracks(22, 0.4, seed=0).rename(columns={"step": "t"})
    tracks.assign(scene="square", t=tracks["t"] * 0.4).to_csv("tracks.csv", index=False)


def check_traffic(text: str, ran: list[list[str]], after: list[AfterBlock]) -> None:
    assert {words[1] for words in ran} == {"check", "train", "evaluate", "predict", "ablate"}
    lines = [json.loads(line) for line in Path("trajectories.jsonl").read_text().splitlines()]
    assert {"trajectories", "scores", "truth"} <= set(lines[0]) and len(lines[0]["truth"]) == 12
    (built, _), (_, printed), (drawn, scores), _ = after
    assert len(drawn["found"].records) == 1 and scores.startswith("[0.")
    assert Path("walker.png").stat().st_size > 10_000 and Path("submission.parquet").is_file()
    assert built["config"].num_future_steps == 12 and printed.startswith("(6, 12, 2)")
    results = json.loads(Path("runs/motion_tiny/eval_results.json").read_text())
    assert results["num_eval_rows"] == 9  # of tracks.csv: three windows of three agents
    assert [row["baseline"] for row in results["baselines"]] == [
        name for name, *_ in table_rows(text, "baseline | forecast")
    ]
    arguments = TASKS["motion-forecasting"].arguments
    defaults = {field.name: field.default for field in dataclasses.fields(arguments)}
    keys = {key for row in table_rows(text, "key | default") for key in re.findall(r"`(\w+)`", row[0])}
    assert keys == set(vars(arguments)["__annotations__"]) - {"evaluation_keys"}
    assert defaults["num_history_steps"] == 20 and defaults["map_radius"] == 100 and defaults["miss_threshold"] == 2


MOTION_FORECASTING = Page("docs/motion_forecasting.md", prepare_traffic, check=check_traffic)
