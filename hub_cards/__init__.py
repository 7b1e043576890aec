# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
