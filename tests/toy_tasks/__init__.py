# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Two tasks that the package does not contain, each in a separate file: a task can be added from outside."""
