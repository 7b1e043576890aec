# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""What `import hf_frozen_llm` adds to the imports that every user of transformers has (claimed: under 0.5 s)."""

import statistics
import subprocess
import sys


BASE = "import torch; from transformers import PreTrainedModel, AutoModelForImageClassification"
PROBE = f"""
import time
{BASE}
start = time.perf_counter()
import hf_frozen_llm
print(time.perf_counter() - start)
"""

seconds = [float(subprocess.check_output([sys.executable, "-c", PROBE], text=True)) for _ in range(5)]
print(f"import hf_frozen_llm adds {statistics.median(seconds):.3f} s (median of {len(seconds)}) to: {BASE}")
