# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The report of an ablation: which tuned value is best, differences to a reference, tables."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from hf_frozen_llm.metrics import Metric
from hf_frozen_llm.modeling.publishing import is_local_path
from hf_frozen_llm.plotting import plot_ablation


SIGNIFICANCE, POWER = 0.05, 0.8
RESAMPLES = 10_000
ENDS = ("low", "high")


@dataclass
class AblationReport:
    """
    The settings of the report, and its content besides the finished runs.

    Args:
        recipe (`str`): the recipe, for titles.
        metric ([`Metric`]): the metric that compares the variants.
        output_dir (`Path`): gets the tables.
        figure (`Path`): the file of the figure.
        variants (`list[str]`): the names of all variants, in their order.
        reference (`str`, *optional*): the variant that the others are compared with.
        delta (`float`): the difference, in the unit shown, for which the necessary seeds are computed.
        tuned (`dict[str, str]`): the tuned fields of each variant, in words.
        notes (`list[str]`): sentences about the tuning.
        failures (`dict[str, Path]`): the log of each failed run, by its name.
    """

    recipe: str
    metric: Metric
    output_dir: Path
    figure: Path
    variants: list[str]
    reference: str | None = None
    delta: float = 1.0
    tuned: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failures: dict[str, Path] = field(default_factory=dict)


def choose_values(tuning: pd.DataFrame, metric: Metric) -> dict[str, str | None]:
    """
    Return the best value of each variant, by its mean over seeds; `None` if no value can be trained with.

    Args:
        tuning (`pandas.DataFrame`):
            A row for each run: `variant`, `value`, `status` and `eval_<metric>`. A value with a run whose status is
            not `"finished"` is not chosen. The first of equal values is.
        metric ([`Metric`]):
            The metric, which has a direction.
    """
    chosen: dict[str, str | None] = {}
    for variant, of_variant in tuning.groupby("variant", sort=False):
        is_finished = (of_variant["status"] == "finished").groupby(of_variant["value"]).transform("all")
        scores = of_variant[is_finished].groupby("value", sort=False)[f"eval_{metric.name}"].mean()
        best = None if scores.empty else scores.idxmax() if metric.greater_is_better else scores.idxmin()
        chosen[str(variant)] = best
    return chosen


def is_at_end(value: str, values: Sequence[str]) -> bool:
    """Return whether a value is the smallest or the largest of several numbers: a better one may lie beyond."""
    try:
        numbers = [float(other) for other in values]
    except ValueError:
        return False
    return len(set(numbers)) > 1 and float(value) in (min(numbers), max(numbers))


def paired_differences(runs: pd.DataFrame, reference: str, metric: Metric) -> dict[str, np.ndarray]:
    """Return the differences of each variant to the reference, in the unit shown, one for each common seed."""
    scores = {
        str(variant): metric.scale * of_variant.set_index("seed")[f"eval_{metric.name}"]
        for variant, of_variant in runs.groupby("variant", sort=False)
    }
    of_reference = scores.pop(reference, pd.Series(dtype=float))
    return {variant: (of_variant - of_reference).dropna().to_numpy() for variant, of_variant in scores.items()}


def summarize_differences(differences: np.ndarray, delta: float) -> dict[str, float]:
    """
    Describe paired differences: their mean and, for at least two, 95 % intervals of it and the necessary seeds.

    Args:
        differences (`numpy.ndarray`): a difference for each seed.
        delta (`float`): the difference to find, see [`count_seeds`].

    Returns:
        `dict[str, float]`: `seeds`, `difference`, `standard_deviation` (n - 1), `t_low` and `t_high` by Student's t,
        `bootstrap_low` and `bootstrap_high` (percentiles of the means of resampled seeds), `seeds_needed`.
    """
    count = len(differences)
    mean = float(differences.mean()) if count else math.nan
    if count < 2:
        return {"seeds": count, "difference": mean}
    from scipy import stats

    deviation = float(differences.std(ddof=1))
    half = float(stats.t.ppf(1 - SIGNIFICANCE / 2, count - 1)) * deviation / math.sqrt(count)
    low, high = bootstrap_interval(differences)
    return {
        "seeds": count,
        "difference": mean,
        "standard_deviation": deviation,
        "t_low": mean - half,
        "t_high": mean + half,
        "bootstrap_low": low,
        "bootstrap_high": high,
        "seeds_needed": count_seeds(delta, deviation),
    }


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the mean of values: percentiles of the means of resampled values."""
    rng, count = np.random.default_rng(0), len(values)
    rows = max(1, min(RESAMPLES, 2**24 // count))  # resamples that fit into memory at a time
    means = [rng.choice(values, (min(rows, RESAMPLES - start), count)).mean(1) for start in range(0, RESAMPLES, rows)]
    low, high = np.quantile(np.concatenate(means), [SIGNIFICANCE / 2, 1 - SIGNIFICANCE / 2]).tolist()
    return low, high


def count_seeds(delta: float, deviation: float) -> int:
    """
    Return how many seeds a paired t-test (two-sided, at 5 %) needs to find a difference with a power of 80 %.

    Args:
        delta (`float`): the true difference.
        deviation (`float`): the standard deviation of the paired differences.
    """
    from scipy import stats

    effect = delta / deviation if deviation > 0 else math.inf
    normal = stats.norm.ppf(1 - SIGNIFICANCE / 2) + stats.norm.ppf(POWER)
    count = max(2, math.ceil((normal / effect) ** 2))  # with a known deviation, which is a lower bound
    while compute_power(effect, count) < POWER:
        count += 1
    return count


def compute_power(effect: float, count: int) -> float:
    """Return the power of a paired t-test of `count` differences whose mean is `effect` standard deviations."""
    from scipy import stats

    if effect > 100:  # certain even with two seeds, and beyond the range of the noncentral distribution
        return 1.0
    critical = stats.t.ppf(1 - SIGNIFICANCE / 2, count - 1)
    shift = effect * math.sqrt(count)
    return float(stats.nct.sf(critical, count - 1, shift) + stats.nct.cdf(-critical, count - 1, shift))


def write_report(report: AblationReport, rows: Sequence[Mapping[str, object]]) -> None:
    """Write `ablation.csv`, `ablation.md`, the figure and, with a reference, `differences.csv` of the runs so far."""
    runs = pd.DataFrame(rows)
    report.output_dir.mkdir(parents=True, exist_ok=True)
    lines = [f"# {report.recipe}: an ablation", ""]
    if runs.empty:
        lines += list_failures(report)
    else:
        runs.to_csv(report.output_dir / "ablation.csv", index=False)
        lines += [*list_variants(report, runs), "", " ".join([describe_table(runs), *report.notes])]
        if report.reference is not None:
            lines += ["", *list_differences(report, runs)]
        title = f"{report.recipe}\n{describe_runs(runs)}"
        plot_ablation(report.figure, runs, report.metric, title, report.variants, report.reference)
    (report.output_dir / "ablation.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def list_variants(report: AblationReport, runs: pd.DataFrame) -> list[str]:
    """Return the table of the variants, and of the runs that failed."""
    metric, has_tuning = report.metric, any(report.tuned.values())
    several = runs["variant"].duplicated().any()
    names = ["variant", f"{metric.label}, mean{' ± standard deviation' if several else ''}", "seeds"]
    names += ["tuned"] if has_tuning else []
    names += ["trained parameters", "frozen", "MFLOP forward", "MFLOP training step", "training s"]
    lines = [format_row(names), f"|---|{'---:|' * (len(names) - 1)}"]
    for variant, of_variant in runs.groupby("variant", sort=False):
        first = of_variant.iloc[0]
        scores = metric.scale * of_variant[f"eval_{metric.name}"]
        score = metric.format(scores.mean())
        if len(scores) > 1:
            score += f" ± {metric.format(scores.std())}"
        cells = [
            str(variant),
            score,
            str(len(of_variant)),
            *([report.tuned.get(str(variant), "")] if has_tuning else []),
            f"{first['trainable_parameters']:,}",
            f"{first['frozen_parameters']:,}",
            f"{first['forward_mflop']:,.1f}",
            f"{first['step_mflop']:,.1f}",
            f"{of_variant['train_seconds'].mean():.0f}",
        ]
        lines.append(format_row(cells))
    empty = [""] * (len(names) - 2)
    return [*lines, *(format_row([name, f"failed, see {log}", *empty]) for name, log in log_paths(report).items())]


def list_failures(report: AblationReport) -> list[str]:
    rows = [format_row([name, f"failed, see {log}"]) for name, log in log_paths(report).items()]
    return ["| run | |", "|---|---|", *rows]


def log_paths(report: AblationReport) -> dict[str, str]:
    return {name: log.relative_to(report.output_dir).as_posix() for name, log in report.failures.items()}


def list_differences(report: AblationReport, runs: pd.DataFrame) -> list[str]:
    """Return the table of the differences to the reference; write `differences.csv`."""
    metric = report.metric
    unit = "points" if metric.is_share else metric.title
    delta = f"{report.delta:g} {'point' if metric.is_share and report.delta == 1 else unit}"
    names = ["variant", f"difference in {metric.label}", "95 % interval (Student's t)", "95 % interval (bootstrap)"]
    names += ["common seeds", f"seeds for {delta}"]
    lines = [f"## Differences to {report.reference}", "", format_row(names), f"|---|{'---:|' * (len(names) - 1)}"]
    summaries = []
    for variant, differences in paired_differences(runs, str(report.reference), metric).items():
        summary = summarize_differences(differences, report.delta)
        summaries.append({"variant": variant, "reference": report.reference, "delta": report.delta, **summary})
        mean = with_sign(metric, summary["difference"]) if len(differences) else ""
        intervals = ["fewer than 2 common seeds", ""]
        if len(differences) > 1:
            bounds = [with_sign(metric, summary[f"{method}_{end}"]) for method in ("t", "bootstrap") for end in ENDS]
            intervals = [f"{bounds[0]} to {bounds[1]}", f"{bounds[2]} to {bounds[3]}"]
        needed = f"{summary['seeds_needed']:,}" if "seeds_needed" in summary else ""
        lines.append(format_row([variant, mean, *intervals, str(len(differences)), needed]))
    pd.DataFrame(summaries).to_csv(report.output_dir / "differences.csv", index=False)
    return [
        *lines,
        "",
        f"A difference is the variant's result minus that of {report.reference} with the same seed, in {unit}. The "
        f"bootstrap draws {RESAMPLES:,} times from the seeds; with few of them its interval is too short. The last "
        f"column is the number of seeds with which a two-sided test at 5 % finds a difference of {delta} with a "
        "probability of 80 %, if the standard deviation of the differences is that of these seeds.",
    ]


def with_sign(metric: Metric, difference: float) -> str:
    return ("+" if difference > 0 else "") + metric.format(difference)


def format_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def describe_table(runs: pd.DataFrame) -> str:
    deviations = "Standard deviations are over seeds (n - 1). " if runs["variant"].duplicated().any() else ""
    return (
        "FLOPs are for one input, of matrix products, as the model runs: a trained layer runs without the fast path. "
        f"{deviations}Device: {', '.join(sorted(runs['device'].unique()))}. {describe_runs(runs)}."
    )


def describe_runs(runs: pd.DataFrame) -> str:
    """Return data set, training steps, size of the evaluation and LLM of the runs, in one line."""
    facts = [name_values(runs, "dataset_name", "{}", "data sets")]
    facts.append(name_values(runs, "steps", "{:,.0f} training steps", "numbers of training steps"))
    facts.append(name_values(runs, "num_eval_rows", "evaluated on {:,.0f} rows", "sizes of the evaluation"))
    facts.append(name_values(runs, "llm_name_or_path", "LLM {}", "LLMs"))
    return ", ".join(fact for fact in facts if fact)


def name_values(runs: pd.DataFrame, column: str, one: str, several: str) -> str:
    """Name the value that all runs have, or count them; of a path, only the last part says what it is."""
    values = [Path(v).name if isinstance(v, str) and is_local_path(v) else v for v in runs[column].dropna().unique()]
    return "" if len(values) == 0 else one.format(values[0]) if len(values) == 1 else f"{len(values)} {several}"
