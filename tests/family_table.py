# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
The table of language model families in docs/language_models.md: the results of tests/modeling/test_families.py, and
the refused families.
"""

from llm_families import FAMILIES, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, REASONS
from result_table import ResultTable


def _refused() -> str:
    lines = ["| refused | what the error says |", "|---|---|"]
    for reason in dict.fromkeys(REASONS.values()):
        families = [f for f, why in REASONS.items() if why == reason and f in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
        lines.append(f"| {', '.join(f'`{family}`' for family in families)} | … {reason} … |")
    return "\n".join(lines)


FAMILY_TABLE = ResultTable(
    "family",
    columns=["loads", "bidirectional", "fast path", "experts"],
    rows={family: f"`{family}`" for family in FAMILIES},
    after=_refused(),
)
