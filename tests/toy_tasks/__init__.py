# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Two tasks that the package does not know, each in a file of its own: proof that a task is added from outside."""
