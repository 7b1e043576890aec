# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Runs transformers-mlinter over modeling/, less the rules that mlinter_rules.yaml turns off with a reason."""

import sys
from pathlib import Path

import yaml
from mlinter import mlinter


ROOT = Path(__file__).resolve().parent.parent

turned_off = yaml.safe_load((ROOT / ".ci" / "mlinter_rules.yaml").read_text(encoding="utf-8"))
problems = [f"{rule}: turned off without a reason" for rule, reason in turned_off.items() if not reason]
needless = set(turned_off)
paths = list(mlinter.iter_modeling_files(search_paths=[ROOT / "modeling"]))
if not paths:
    problems.append("no modeling file found")
for path in paths:
    for found in mlinter.analyze_file(path, path.read_text(encoding="utf-8")):
        if found.rule_id in turned_off:
            needless.discard(found.rule_id)
        else:
            problems.append(f"{path.relative_to(ROOT)}:{found.line_number}: {found.message}")
problems += [f"{rule}: turned off in .ci/mlinter_rules.yaml, but finds nothing" for rule in sorted(needless)]

print("\n".join(problems) or f"mlinter: {len(paths)} files, no findings; {len(turned_off)} rules turned off")
sys.exit(bool(problems))
