# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The report of an ablation, from tables made by hand: tuned values, statistics, tables, the figure."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from hf_frozen_llm.commands.ablation_report import (
    AblationReport,
    choose_values,
    compute_power,
    count_seeds,
    describe_runs,
    is_at_end,
    paired_differences,
    summarize_differences,
    write_report,
)
from hf_frozen_llm.metrics import Metric
from hf_frozen_llm.plotting import plot_ablation


TOP1 = Metric("top1", "top-1", is_share=True)
ERROR = Metric("error", "error", greater_is_better=False)


def make_rows(scores: dict[str, list[float]], name: str = "eval_top1") -> list[dict]:
    costs = {"trainable_parameters": 1000, "frozen_parameters": 20, "forward_mflop": 1.5, "step_mflop": 4.5}
    facts = {"device": "cpu", "dataset_name": "cifar10", "steps": 400, "num_eval_rows": 10_000}
    return [
        {
            "variant": variant,
            "seed": seed,
            name: score,
            **costs,
            "train_seconds": 12.0,
            **facts,
            "llm_name_or_path": llm,
        }
        for variant, of_variant in scores.items()
        for seed, score in enumerate(of_variant)
        for llm in [None if variant == "plain host" else "SmolLM2"]
    ]


@pytest.fixture
def report(tmp_path):
    return AblationReport("tiny.yaml", TOP1, tmp_path, tmp_path / "ablation.png", ["plain host", "frozen", "MLP"])


def make_tuning(scores: dict[tuple[str, str], list[float | None]], name: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"variant": variant, "value": value, name: score, "status": "failed" if score is None else "finished"}
        for (variant, value), of_value in scores.items()
        for score in of_value
    )


def test_choice_of_tuned_values():
    scores = {
        ("a", "lr=1"): [0.5, 0.5],
        ("a", "lr=2"): [0.9, 0.2],
        ("a", "lr=3"): [0.99, None],
        ("b", "lr=1"): [0.1, 0.1],
        ("b", "lr=2"): [0.1, 0.1],
        ("c", "lr=1"): [None, None],
    }
    assert choose_values(make_tuning(scores, "eval_top1"), TOP1) == {"a": "lr=2", "b": "lr=1", "c": None}
    assert choose_values(make_tuning(scores, "eval_error"), ERROR) == {"a": "lr=1", "b": "lr=1", "c": None}


def test_end_of_the_grid():
    grid = ["3e-3", "1e-3", "3e-4"]
    assert [is_at_end(value, grid) for value in grid] == [True, False, True]
    assert not is_at_end("1e-3", ["1e-3"]) and not is_at_end("cosine", ["cosine", "linear", "constant"])


def test_differences_are_paired_by_seed():
    rows = [row for row in make_rows({"plain host": [0.5, 0.6, 0.7], "frozen": [0.52, 0.0, 0.73]}) if row["eval_top1"]]
    differences = paired_differences(pd.DataFrame(rows), "plain host", TOP1)
    assert list(differences) == ["frozen"] and differences["frozen"] == pytest.approx([2, 3])
    assert len(paired_differences(pd.DataFrame(rows), "lost", TOP1)["frozen"]) == 0


def test_intervals():
    """By hand: the mean of 1, 2 and 6 is 3, their deviation √7, and t(0.975, 2) is 4.303."""
    summary = summarize_differences(np.array([1.0, 2.0, 6.0]), delta=1)
    assert summary["difference"] == 3 and summary["standard_deviation"] == pytest.approx(7**0.5)
    assert summary["t_high"] == pytest.approx(3 + 4.3027 * (7 / 3) ** 0.5, abs=1e-3)

    differences = np.random.default_rng(5).normal(1, 2, 12)
    summary = summarize_differences(differences, delta=1)
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (summary["t_low"], summary["t_high"]) == pytest.approx(tuple(interval))
    resampled = stats.bootstrap((differences,), np.mean, method="percentile", n_resamples=10_000, rng=1)
    ends = summary["bootstrap_low"], summary["bootstrap_high"]
    assert ends == pytest.approx(tuple(resampled.confidence_interval), abs=0.05)
    assert summary == summarize_differences(differences, delta=1), "the same draws each time"
    assert summarize_differences(np.array([2.0]), 1) == {"seeds": 1, "difference": 2}
    assert summarize_differences(np.array([]), 1)["seeds"] == 0


def test_necessary_seeds():
    """Paired t-tests in G*Power and statsmodels' TTestPower: 33.37 pairs for an effect of 0.5."""
    assert [count_seeds(effect, 1) for effect in (0.2, 0.5, 0.8)] == [199, 34, 15]
    assert count_seeds(1, 2) == 34 and count_seeds(1, 0) == 2 and count_seeds(1, 1e-6) == 2
    assert count_seeds(0.001, 1) == pytest.approx(2.8016**2 / 0.001**2, rel=1e-3)
    draws = np.random.default_rng(0).normal(0.8, 1, (20_000, 10))
    share = (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean()
    assert compute_power(0.8, 10) == pytest.approx(share, abs=0.01)


def test_tables(report, tmp_path):
    report = replace(report, reference="plain host", delta=0.5, tuned={"frozen": "lr=1 (at the end of the grid)"})
    report.failures["MLP, seed 1"] = tmp_path / "runs" / "MLP" / "seed1" / "log.txt"
    rows = make_rows({"plain host": [0.5, 0.6], "frozen": [0.52, 0.64], "MLP": [0.4]})
    write_report(report, rows)
    table = (tmp_path / "ablation.md").read_text()
    assert "| variant | top-1 %, mean ± standard deviation | seeds | tuned |" in table
    assert "| frozen | 58.00 ± 8.49 | 2 | lr=1 (at the end of the grid) | 1,000 |" in table
    assert "| MLP | 40.00 | 1 |  | 1,000 |" in table
    assert "| MLP, seed 1 | failed, see runs/MLP/seed1/log.txt |" in table
    assert "cifar10, 400 training steps, evaluated on 10,000 rows, LLM SmolLM2." in table
    assert "| variant | difference in top-1 % | 95 % interval (Student's t) |" in table
    assert "| common seeds | seeds for 0.5 points |" in table
    assert "| frozen | +3.00 | -9.71 to +15.71 | +2.00 to +4.00 | 2 | 65 |" in table
    assert "| MLP | -10.00 | fewer than 2 common seeds |  | 1 |  |" in table
    assert len(pd.read_csv(tmp_path / "ablation.csv")) == 5
    differences = pd.read_csv(tmp_path / "differences.csv").set_index("variant")
    assert differences.loc["frozen", "t_high"] == pytest.approx(15.706, abs=1e-3)


@pytest.mark.parametrize("path", ["{folder}/SmolLM2", "./SmolLM2", "../models/SmolLM2"])
def test_titles_name_local_models_without_their_folders(path, tmp_path):
    runs = pd.DataFrame(make_rows({"frozen": [0.5]})).assign(llm_name_or_path=path.format(folder=tmp_path))
    assert describe_runs(runs).endswith("evaluated on 10,000 rows, LLM SmolLM2")
    assert describe_runs(runs.assign(llm_name_or_path="org/SmolLM2")).endswith(", LLM org/SmolLM2")


def test_tables_of_one_seed_and_of_failures_only(report, tmp_path):
    write_report(report, make_rows({"frozen": [0.5]}))
    assert "standard deviation" not in (tmp_path / "ablation.md").read_text().lower()
    report.failures["MLP, seed 0"] = tmp_path / "log.txt"
    write_report(report, [])
    assert "| MLP, seed 0 | failed, see log.txt |" in (tmp_path / "ablation.md").read_text()


def test_figure(tmp_path):
    names = [f"a frozen layer of a large language model at position {number}, with a residual" for number in range(20)]
    sizes = {}
    for kind, scores in {
        "one": {"plain": [0.5], "frozen": [0.6]},
        "five": {"plain": [0.5, 0.52, 0.51, 0.55, 0.53], "frozen": [0.6] * 5},
        "long": {name: [0.5, 0.6] for name in names},
    }.items():
        file = tmp_path / f"{kind}.png"
        runs = pd.DataFrame(make_rows(scores))
        plot_ablation(file, runs, TOP1, "tiny.yaml\ncifar10", [*scores, "lost"], reference=next(iter(scores)))
        sizes[kind] = Image.open(file).size
    assert sizes["long"][0] > sizes["one"][0] > 1000 and sizes["long"][1] > 4 * sizes["one"][1]
    texts = {}
    for kind, scores in {"one": {"plain": [0.5]}, "two": {"plain": [0.5, 0.6]}}.items():
        plot_ablation(
            tmp_path / f"{kind}.svg", pd.DataFrame(make_rows(scores)), TOP1, "tiny.yaml\ncifar10", ["lost", *scores]
        )
        texts[kind] = (tmp_path / f"{kind}.svg").read_text()
    assert "standard deviation" in texts["two"] and "standard deviation" not in texts["one"]
    assert all(word in texts["one"] for word in ("no finished run", "tiny.yaml", "cifar10"))
