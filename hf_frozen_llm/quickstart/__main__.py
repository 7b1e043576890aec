# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
from hf_frozen_llm.quickstart.run import main


if __name__ == "__main__":
    main()
