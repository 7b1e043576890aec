# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""One layer of a Hub repository by byte ranges: number of bytes, the cache of layers, and failures of the server."""

import logging
import re
import subprocess
import sys

import pytest
import torch
from full_disk import full_disk
from llm_files import write_llm
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_llms import decoder_stack, tiny_config, tiny_llm

from hf_frozen_llm import LLMBlock, LLMBlockConfig
from hf_frozen_llm.commands.layer import extract_layers
from hf_frozen_llm.modeling import hub_ranges, layer_cache
from hf_frozen_llm.modeling.checkpoint_files import MAX_HEADER


NAME = "someone/llm"


@pytest.fixture(scope="module")
def llm():
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 6}
    return tiny_llm(tiny_config("llama", **sizes), dtype=torch.float16)


@pytest.fixture(scope="module", params=["single", "sharded"])
def folder(request, llm, tmp_path_factory):
    options = {"shard_size": 300_000} if request.param == "sharded" else {}
    return write_llm(llm, tmp_path_factory.mktemp("llm"), request.param, **options)


@pytest.fixture
def hub(hub):
    yield hub
    hub.knows_ranges, hub.answers_to_break_off = True, 0
    hub.redirects_to_another_host, hub.answers_to_stall = False, 0
    hub.bad_answer, hub.ranges_before_it = None, 0


def build(layer_index=3):
    return LLMBlock(LLMBlockConfig(llm_name_or_path=NAME, layer_index=layer_index, hidden_size=24))


def assert_right(block, llm):
    for name, tensor in decoder_stack(llm)[0][3].state_dict().items():
        assert torch.equal(block.llm_layers[0].state_dict()[name], tensor.float()), name


def bytes_of_weights(hub):
    return sum(r.bytes_sent for r in hub.requests if r.path.endswith(".safetensors"))


def cached(home, pattern):
    """Return the files of the cache of layers; its folders are named by commits."""
    return sorted(path for path in home.rglob(f"llm_layers/*/{pattern}") if path.is_file())


def bytes_of_headers(folder):
    total = 0
    for path in folder.glob("*.safetensors"):
        total += 8 + int.from_bytes(path.read_bytes()[:8], "little")
    return total


def test_bytes_of_the_layer_and_no_others(folder, llm, hub):
    hub.add(NAME, folder)
    block = build()
    assert_right(block, llm)
    layer = sum(2 * parameter.numel() for parameter in block.llm_layers.parameters())
    assert bytes_of_weights(hub) <= 1.02 * layer + bytes_of_headers(folder)
    assert block.bytes_read <= 1.02 * layer + bytes_of_headers(folder)
    whole = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert bytes_of_weights(hub) < whole / 3


def test_few_requests(folder, llm, hub):
    """For each file the length of its header, its header, and the layer's adjacent tensors at once."""
    hub.add(NAME, folder)
    build()
    paths = [r.path for r in hub.requests if r.status == 206]
    assert paths and {paths.count(path) for path in paths} == {3}


def test_kept_in_the_cache(folder, llm, hub, tmp_path):
    hub.add(NAME, folder)
    build()
    hub.clear()
    block = build()
    assert_right(block, llm)
    assert bytes_of_weights(hub) == 0
    layer = sum(2 * parameter.numel() for parameter in block.llm_layers.parameters())
    assert layer <= block.bytes_read <= 1.02 * layer + bytes_of_headers(folder)
    with hub.active(tmp_path / "hf_home", offline=True):
        hub.clear()
        assert_right(build(), llm)
        assert not hub.requests
    with hub.active(tmp_path / "empty", offline=True), pytest.raises(OSError, match=NAME):
        build()


def test_each_layer_is_kept_by_itself(folder, llm, hub):
    hub.add(NAME, folder)
    build(3)
    hub.clear()
    block = build([3, 4])
    layer = sum(2 * parameter.numel() for parameter in block.llm_layers[1].parameters())
    assert 0 < bytes_of_weights(hub) <= 1.02 * layer + bytes_of_headers(folder)
    for i, index in enumerate([3, 4]):
        for name, tensor in decoder_stack(llm)[0][index].state_dict().items():
            assert torch.equal(block.llm_layers[i].state_dict()[name], tensor.float()), name


def test_redirect_to_another_host(folder, llm, hub, monkeypatch):
    """The Hub redirects downloads to its storage, which must never get the token."""
    hub.add(NAME, folder, token="hf_right", gated=True)
    hub.redirects_to_another_host = True
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert_right(build(), llm)
    statuses = [r.status for r in hub.requests if r.path.endswith(".safetensors")]
    assert 302 in statuses and statuses.count(206) == statuses.count(302)
    assert not hub.authorized_elsewhere


@pytest.mark.parametrize(("token", "gated"), [(None, True), ("hf_wrong", True), (None, False)])
def test_repositories_that_may_not_be_read(token, gated, folder, hub, tmp_path, monkeypatch):
    hub.add(NAME, folder, token="hf_right", gated=gated)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(OSError, match=rf"(?s){NAME}.*{'gated' if gated else 'private'}"):
        build()
    assert not cached(tmp_path / "hf_home", "*")


def test_file_that_the_index_promises_and_the_hub_lacks(llm, hub, tmp_path):
    folder = write_llm(llm, tmp_path / "llm", "sharded", shard_size=300_000)
    hub.add(NAME, folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(OSError, match=rf"{NAME} .* lacks model-.*safetensors, which its index names"):
        build()


def test_slow_server(folder, llm, hub, monkeypatch):
    """A request without an answer within the timeout is repeated."""
    monkeypatch.setattr(hub_ranges.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.add(NAME, folder)
    hub.answers_to_stall = 2
    assert_right(build(), llm)


def test_cached_layers_look_like_extracted_ones(folder, llm, hub, tmp_path):
    """A cached layer has the names, types and values of the language model's checkpoint, and opens by `safe_open`."""
    commit = hub.add(NAME, folder)
    LLMBlock(LLMBlockConfig(llm_name_or_path=NAME, layer_index=[3, 4], final_norm="pretrained", hidden_size=24))
    files = cached(tmp_path / "hf_home", "*.safetensors")
    assert [file.name for file in files] == ["layers.3.safetensors", "layers.4.safetensors", "norm.safetensors"]
    extract_layers(NAME, [3, 4], tmp_path / "extracted")
    expected, found = load_file(tmp_path / "extracted" / "model.safetensors"), {}
    for path in files:
        with safe_open(path, "pt") as file:
            assert file.metadata()["repository"] == NAME and file.metadata()["commit"] == commit
            found |= {key: file.get_tensor(key) for key in file.keys()}
    published = llm.state_dict()
    assert set(found) == set(expected) and "model.layers.3.self_attn.q_proj.weight" in found
    for key, tensor in found.items():
        assert tensor.dtype == torch.float16 and torch.equal(tensor, published[key]), key
        assert torch.equal(tensor, expected[key]), key


@pytest.mark.parametrize("pattern", ["*.safetensors", "*.header"])
@pytest.mark.parametrize("damage", ["last byte", "cut", "empty", "page", "huge header"])
def test_damaged_cache_is_read_anew(damage, pattern, folder, llm, hub, tmp_path):
    hub.add(NAME, folder)
    build()
    kept = cached(tmp_path / "hf_home", pattern)
    assert kept
    for path in kept:
        data = path.read_bytes()
        changed = {"last byte": data[:-1] + bytes([data[-1] ^ 255]), "cut": data[:-1], "empty": b""}
        changed |= {"page": b"<html>no space</html>", "huge header": (MAX_HEADER + 1).to_bytes(8, "little") + data[8:]}
        path.write_bytes(changed[damage])
    assert_right(build(), llm)
    for path in kept if pattern == "*.safetensors" else []:
        with safe_open(path, "pt") as file:
            assert file.metadata()["repository"] == NAME
            assert all(torch.equal(file.get_tensor(key), llm.state_dict()[key]) for key in file.keys())


def test_cached_header_that_does_not_parse_is_fetched_anew(folder, llm, hub, tmp_path):
    hub.add(NAME, folder)
    build()
    for path in cached(tmp_path / "hf_home", "*.header"):
        with safe_open(path, "pt") as file:
            about = file.metadata()
        page = torch.frombuffer(bytearray(b"<html>" + bytes(40)), dtype=torch.uint8)
        layer_cache.write_layer(str(path), {"header": page}, {"size": about["size"]}).close()
    cached(tmp_path / "hf_home", "*.safetensors")[0].unlink()
    assert_right(build(), llm)
    with safe_open(cached(tmp_path / "hf_home", "*.header")[0], "pt") as file:
        assert b"__metadata__" in bytes(file.get_tensor("header").tolist())


def test_the_former_cache_is_ignored(folder, llm, hub, tmp_path):
    commit = hub.add(NAME, folder)
    former = layer_cache.layer_folder(NAME, commit, {"cache_dir": tmp_path / "hf_home" / "hub"})
    old = f"{former}/{'0' * 64}.safetensors"
    about = {"repository": NAME, "commit": commit, "file": "model.safetensors", "size": "8"}
    layer_cache.write_layer(old, {"0-8": torch.zeros(8, dtype=torch.uint8)}, about).close()
    assert_right(build(), llm)


def test_full_disk(folder, hub, tmp_path):
    hub.add(NAME, folder)
    with full_disk(100_000), pytest.raises(OSError, match=r"layers\.3\.safetensors cannot be written .*disk full"):
        build()
    assert not cached(tmp_path / "hf_home", "*.safetensors") and not list((tmp_path / "hf_home").rglob("*.incomplete"))


@pytest.mark.parametrize("what", ["half", "zeros"])
def test_writes_that_end_short_without_an_error(what, folder, llm, hub, tmp_path, monkeypatch):
    """Some file systems report a full disk late, or never."""
    hub.add(NAME, folder)
    save_file = layer_cache.save_file

    def save_short(tensors, path, metadata):
        save_file(tensors, path, metadata)
        size = path_size = len(data := open(path, "rb").read())
        with open(path, "wb") as file:
            file.write(data[: size // 2])
            if what == "zeros":
                file.truncate(path_size)

    monkeypatch.setattr(layer_cache, "save_file", save_short)
    with pytest.raises(OSError, match=r"\.header cannot be written .*cannot be read again"):
        build()
    assert not cached(tmp_path / "hf_home", "*")
    monkeypatch.setattr(layer_cache, "save_file", save_file)
    assert_right(build(), llm)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("bad", ["page", "whole", "other range", "other size", "too much"])
def test_one_bad_answer(bad, number, folder, llm, hub, tmp_path, caplog):
    """An error that names the file, and the next try succeeds: nothing of it was kept."""
    hub.add(NAME, folder)
    hub.bad_answer, hub.ranges_before_it = bad, number
    problem = None
    try:
        build()
    except OSError as error:
        problem = str(error)
    assert hub.bad_answer is None
    if bad == "whole" and hub.badly_answered == "bytes=0-7":
        # Servers that ignore ranges answer so, too: it is asked again, before whole files are downloaded.
        assert problem is None and "downloaded as a whole" not in caplog.text
        return
    assert re.search(rf"{NAME}/model.*safetensors at .*(bytes|changed its size)", problem)
    assert not cached(tmp_path / "hf_home", "*.safetensors") and not list((tmp_path / "hf_home").rglob("*.incomplete"))
    assert_right(build(), llm)


def test_an_upload_that_is_a_page(hub, llm, tmp_path):
    folder = write_llm(llm, tmp_path / "llm", "single")
    (folder / "model.safetensors").write_bytes(b"<html>Too many requests</html>")
    commit = hub.add(NAME, folder)
    with pytest.raises(ValueError, match=r"someone/llm/model\.safetensors is truncated or not a safetensors file"):
        build()
    assert not cached(tmp_path / "hf_home", "*")
    write_llm(llm, folder, "single")
    assert hub.add(NAME, folder) != commit
    assert_right(build(), llm)


def test_interrupted_commit_of_a_branch(folder, llm, hub, tmp_path):
    """A reference that a killed process left empty is no commit."""
    hub.add(NAME, folder)
    build()
    (reference,) = (tmp_path / "hf_home").rglob("refs/main")
    commit = reference.read_text()
    reference.write_text("")
    with hub.active(tmp_path / "hf_home", offline=True), pytest.raises(OSError, match=NAME):
        build()
    assert_right(build(), llm)
    assert reference.read_text() == commit


def test_server_that_ignores_ranges(folder, llm, hub, caplog):
    hub.add(NAME, folder)
    hub.knows_ranges = False
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        assert_right(build(), llm)
    assert "the server ignores range requests, so" in caplog.text and "is downloaded as a whole" in caplog.text


def test_connections_that_break_off(folder, llm, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_ranges.time, "sleep", lambda seconds: None)
    hub.add(NAME, folder)
    hub.answers_to_break_off = 3
    assert_right(build(), llm)


def test_connection_that_never_holds(folder, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_ranges.time, "sleep", lambda seconds: None)
    hub.add(NAME, folder)
    hub.answers_to_break_off = 10_000
    with pytest.raises(OSError, match=r"model.*\.safetensors: the connection broke off 5 times at byte 7 of"):
        build()
    assert not list((tmp_path / "hf_home").rglob("*.incomplete"))


def test_two_processes_at_once(folder, hub, tmp_path):
    """The second process waits for the first, and reads its cached layer."""
    hub.add(NAME, folder)
    script = (
        "from hf_frozen_llm import LLMBlock, LLMBlockConfig\n"
        f"block = LLMBlock(LLMBlockConfig(llm_name_or_path={NAME!r}, layer_index=3, hidden_size=24))\n"
        "print(block.config.fingerprint)"
    )
    environment = hub.env(tmp_path / "shared_home", OMP_NUM_THREADS="1")
    processes = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert printed[0] == printed[1] and len(printed[0].strip()) == 64
    asked = [(r.path, r.range) for r in hub.requests if r.status == 206]
    assert len(asked) == len(set(asked)), "no range is sent twice"
