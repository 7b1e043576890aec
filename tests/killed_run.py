# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Runs a program that kills itself at the end of a training step, in which a checkpoint is not being written:
`python killed_run.py OUTPUT_DIR STEP hf_frozen_llm train RECIPE …`, or a Python file in the place of the module. Of
torchrun's processes, the one whose rank KILLED_RANK names is killed.
"""

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

from transformers import TrainerCallback


class KillAtStep(TrainerCallback):
    """Kill the process at the end of a step of the run in a folder."""

    def __init__(self, output_dir: str, step: int):
        self.output_dir = Path(output_dir)
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        is_meant = os.environ.get("RANK") == os.environ.get("KILLED_RANK")
        if is_meant and state.global_step == self.step and Path(args.output_dir) == self.output_dir:
            os.kill(os.getpid(), signal.SIGKILL)


def run_killed(output_dir: Path, step: int, *command: str, **kwargs) -> None:
    """Run a command in a process of its own that is killed at the end of a step."""
    process = subprocess.run(
        [sys.executable, __file__, str(output_dir), str(step), *command], capture_output=True, text=True, **kwargs
    )
    assert process.returncode == -signal.SIGKILL, process.stderr


if __name__ == "__main__":
    from hf_frozen_llm.tasks import TASKS

    output_dir, step, program, *arguments = sys.argv[1:]
    for task in TASKS.values():
        task.callbacks = lambda self: [KillAtStep(output_dir, int(step))]
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        sys.path[0] = str(Path(program).parent)
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
