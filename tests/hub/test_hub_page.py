# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The tables of docs/hub.md; its commands and snippets are run with those of all pages."""

import re

from hub_pages import HUB

from hf_frozen_llm.auto import TASK_MODELS
from hf_frozen_llm.hub.push import describe_code


def test_the_table_of_auto_classes_is_right():
    rows = dict(re.findall(r"^\| `(\w+_with_llm_block)` \| (.+) \|$", HUB.text, re.MULTILINE))
    assert rows.keys() == TASK_MODELS.keys()
    for name, row in rows.items():
        named = set(re.findall(r"`(AutoModel\w*|AutoBackbone)`", row))
        assert {"AutoConfig", *named} == set(describe_code(TASK_MODELS[name].config_class))
