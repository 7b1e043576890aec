# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The description of a metric: its name and its direction."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """
    The metric by which models of a task are compared.

    Args:
        name (`str`): its key among the metrics of the task, such as `"top1"`.
        title (`str`): its name in tables and plots, such as `"top-1"`.
        greater_is_better (`bool`, *optional*, defaults to `True`): its direction.
        is_share (`bool`, *optional*, defaults to `False`): whether it is between 0 and 1, and is shown in percent.
    """

    name: str
    title: str
    greater_is_better: bool = True
    is_share: bool = False

    @property
    def scale(self) -> float:
        return 100.0 if self.is_share else 1.0

    @property
    def unit(self) -> str:
        return " %" if self.is_share else ""

    @property
    def label(self) -> str:
        return self.title + self.unit + ("" if self.greater_is_better else " (lower is better)")

    def format(self, score: float) -> str:
        """Return a score, already multiplied by `scale`, as text without its unit."""
        return f"{score:.2f}" if self.is_share else f"{score:.4g}"
