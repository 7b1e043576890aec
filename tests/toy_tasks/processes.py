# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Train and evaluate toy tasks in torchrun's processes; the argument is a JSON list of commands and arguments."""

import json
import sys

from hf_frozen_llm.cli import end_distributed
from hf_frozen_llm.commands.train import train
from hf_frozen_llm.training.evaluate import evaluate
from toy_tasks import point_sets, retrieval


if __name__ == "__main__":
    retrieval.add()
    point_sets.add()
    for command, model_or_recipe, flags in json.loads(sys.argv[1]):
        {"train": train, "evaluate": evaluate}[command](model_or_recipe, flags)
    end_distributed()
