# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Models that were pushed with their code load in a process that has torch and transformers, but not this package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from hub_server import HubServer
from paths import REPO
from tiny_runs import write_llama
from transformers import AutoConfig, AutoModelForImageClassification, AutoProcessor
from transformers.utils import HF_MODULES_CACHE
from vision_cases import POINT_BERT, VIDEOMAE, VISION, VIT

from hf_frozen_llm import LLMBlockConfig, PointCloudProcessor, ViTWithLLMBlockForImageClassification, push


FAMILIES = {"image": VIT, "any-host": VISION, "video": VIDEOMAE, "point-cloud": POINT_BERT}
AUTO_CLASSES = {
    "image": ["AutoModelForImageClassification", "AutoModel"],
    "any-host": ["AutoModelForImageClassification", "AutoModel", "AutoBackbone"],
    "video": ["AutoModelForVideoClassification", "AutoModel"],
    "point-cloud": ["AutoModel"],
}
KINDS = ["light", "self-contained"]
FLOOR = os.environ.get("HF_FROZEN_LLM_FLOOR_PYTHON")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with HubServer() as hub:
        llm = tmp_path_factory.mktemp("llm")
        write_llama(llm)
        (llm / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
        hub.add("tester/llm", llm)
        yield hub


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    """The folders that were pushed, by family and kind, and the commits."""
    folders, commits = {}, {}
    with hub.active(tmp_path_factory.mktemp("hf_home")), pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_write")
        for family, case in FAMILIES.items():
            folder = tmp_path_factory.mktemp(family)
            model = case.build(LLMBlockConfig(llm_name_or_path="tester/llm", layer_index=1))
            model.save_pretrained(folder)
            case.processor().save_pretrained(folder)
            for kind in KINDS:
                name = f"tester/{family}-{kind}"
                push(folder, name, with_code=True, light=kind == "light")
                folders[family, kind] = folder
                repository = hub.repositories["models", name]
                commits[family, kind] = repository.refs["main"]
                code = repository.commits[repository.refs["main"]].glob("*.py")
                hub.commit(name, files={path.name: b"raise RuntimeError('newer code')" for path in code})
    return folders, commits


@pytest.fixture(scope="module")
def tasks(hub, pushed):
    return [
        {
            "id": f"{family}-{kind}",
            "family": family,
            "kind": kind,
            "name": f"tester/{family}-{kind}",
            # main has newer code, which must not run
            "options": {"code_revision" if family == "image" and kind == "light" else "revision": commit},
            "commit": commit,
            "inputs": FAMILIES[family].inputs(2),
            "sample": FAMILIES[family].sample(),
            "auto_classes": AUTO_CLASSES[family],
            "processors": ["AutoProcessor", *(["AutoFeatureExtractor"] if family == "point-cloud" else [])],
        }
        for (family, kind), commit in pushed[1].items()
    ]


@pytest.fixture(scope="module")
def loaded(hub, pushed, tasks, tmp_path_factory):
    """What the other process got, by family and kind."""
    work = tmp_path_factory.mktemp("work")
    # isolated, without site-packages and their .pth files, to which the paths of all other packages are added
    ours = (REPO, REPO / "tests", REPO / "examples", Path(HF_MODULES_CACHE).resolve())
    paths = [path for path in sys.path if path and Path(path).resolve() not in ours]
    results, _ = load_elsewhere([sys.executable, "-I", "-S"], paths, tasks, work, hub)
    return dict(zip(pushed[0], results)), work


def load_elsewhere(python, paths, tasks, work, hub):
    """Run `load_by_code.py` with an interpreter; return its results, and the version of its transformers."""
    torch.save(tasks, work / "tasks.pt")
    script, files = str(REPO / "tests" / "load_by_code.py"), [str(work / "tasks.pt"), str(work / "results.pt")]
    environment = hub.env(work / "other_home")
    run = subprocess.run([*python, script, *files, *paths], env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and (work / "results.pt").is_file(), run.stderr[-3000:]
    return torch.load(work / "results.pt", weights_only=False), run.stdout.split()[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_outputs(family, kind, hub, pushed, loaded, tmp_path):
    case = FAMILIES[family]
    with hub.active(tmp_path):
        for auto in AUTO_CLASSES[family]:
            model_class = {"AutoModel": case.base_class}.get(auto, case.model_class)
            model_class = case.model_class if family == "point-cloud" else model_class
            if auto == "AutoBackbone":
                from hf_frozen_llm import VisionWithLLMBlockBackbone as model_class
            model = model_class.from_pretrained(pushed[0][family, kind]).eval()
            with torch.no_grad():
                expected = model(**case.inputs(2))[0]
            for name in (auto, f"{auto}, saved again"):
                found = loaded[0][family, kind]["outputs"][name]
                for one, other in zip([found], [expected]) if torch.is_tensor(found) else zip(found, expected):
                    assert torch.equal(one, other), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_files(family, kind, hub, pushed, loaded):
    folder = hub.repositories["models", f"tester/{family}-{kind}"].commits[pushed[1][family, kind]]
    config = json.loads((folder / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", *AUTO_CLASSES[family]}
    assert config["llm_block"]["save_weights"] is (kind == "self-contained")
    code = {path.name for path in folder.glob("*.py")}
    assert {f"{reference.partition('.')[0]}.py" for reference in config["auto_map"].values()} <= code
    results, work = loaded
    for auto in AUTO_CLASSES[family]:
        saved = set(results[family, kind]["files"][auto])
        assert code - {"processing_point_bert_with_llm_block.py", "point_files.py"} <= saved, auto
        again = json.loads((work / f"{family}-{kind}-{auto}" / "config.json").read_text())
        assert again["auto_map"] == config["auto_map"]
        assert again["llm_block"]["save_weights"] is (kind == "self-contained")


@pytest.mark.parametrize("family", FAMILIES)
def test_processors(family, loaded):
    case = FAMILIES[family]
    expected = case.processor()(case.sample(), return_tensors="pt")
    for result in (loaded[0][family, kind] for kind in KINDS):
        for auto, found in result["samples"].items():
            assert found.keys() == expected.keys(), auto
            assert all(torch.equal(found[name], expected[name]) for name in found), auto
            if family == "point-cloud":
                assert {"processing_point_bert_with_llm_block.py", "point_files.py"} <= set(result["files"][auto])


def test_with_the_package_the_code_is_kept_and_not_needed(hub, pushed, tmp_path):
    """Installed classes are used, nobody is asked for the code, and a model that is saved again has it."""
    with hub.active(tmp_path):
        model = AutoModelForImageClassification.from_pretrained("tester/image-self-contained")  # newer code is not run
        assert type(model) is ViTWithLLMBlockForImageClassification
        assert type(AutoConfig.from_pretrained("tester/any-host-light").llm_block) is LLMBlockConfig
        processor = AutoProcessor.from_pretrained("tester/point-cloud-light")
        assert type(processor) is PointCloudProcessor
    for part, name in ((model, "modeling_vit_with_llm_block.py"), (processor, "point_groups.py")):
        part.save_pretrained(tmp_path / "again")
        assert (tmp_path / "again" / name).is_file()
        assert (tmp_path / "again" / "code_files.py").is_file()


@pytest.mark.skipif(not FLOOR, reason="needs HF_FROZEN_LLM_FLOOR_PYTHON, a Python with the lowest transformers")
def test_lowest_transformers(hub, tasks, loaded, tmp_path):
    # transformers 5.17 itself cannot read the published names of VideoMAE's biases.
    tasks = [task for task in tasks if task["family"] != "video"]
    results, version = load_elsewhere([FLOOR, "-I"], [], tasks, tmp_path, hub)
    assert version != transformers.__version__
    for task, found in zip(tasks, results):
        expected = loaded[0][task["family"], task["kind"]]
        assert found["files"] == expected["files"], task["id"]
        torch.testing.assert_close(found["outputs"], expected["outputs"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found["samples"], expected["samples"])
