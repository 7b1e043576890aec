# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Models of images and texts on the Hub: their card, and their processor without the package."""

import json
import re
import subprocess
import sys

import pytest
from meter_cases import METER_QUESTIONS, METER_RETRIEVAL
from PIL import Image

from hf_frozen_llm.hub.push import stage


CODE = """
import sys
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
for part in (processor, processor.image_processor):
    assert type(part).__module__.startswith("transformers_modules."), type(part)
assert "hf_frozen_llm" not in sys.modules
print(processor.answers, processor(text="cats")["input_ids"].tolist())
"""


@pytest.mark.parametrize("case", [METER_QUESTIONS, METER_RETRIEVAL], ids=["questions", "retrieval"])
def test_card_and_code(case, tmp_path, monkeypatch, capsys):
    folder, staging = tmp_path / "saved", tmp_path / "staged"
    staging.mkdir()
    case.build(None).save_pretrained(folder)
    case.processor().save_pretrained(folder)
    files = stage(folder, staging, None, with_code=True)
    assert {"processing_meter_with_llm_block.py", "modeling_meter_with_llm_block.py"} <= files.keys()
    settings = json.loads((staging / "processor_config.json").read_text())
    assert settings["auto_map"] == {"AutoProcessor": "processing_meter_with_llm_block.MeterProcessor"}
    card = (staging / "README.md").read_text()
    tag = "pipeline_tag: visual-question-answering" in card
    assert tag == (case is METER_QUESTIONS) and "from transformers import pipeline" not in card
    (ours, _) = re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 30)).save("picture.jpg")
    name = re.search(r'from_pretrained\("([^"]+)"\)', ours)[1]
    capsys.readouterr()
    namespace = {}
    exec(compile(ours.replace(name, str(staging)).replace("is there a cat", "cat"), "card", "exec"), namespace)
    assert type(namespace["model"]) is case.model_class
    assert ("'answer'" in capsys.readouterr().out) == (case is METER_QUESTIONS)
    if case is METER_QUESTIONS:
        run = subprocess.run([sys.executable, "-c", CODE, staging], capture_output=True, text=True, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        assert run.stdout.strip() == "['cat', 'dog', 'bird'] [[0, 7, 6, 13, 12, 2]]"
