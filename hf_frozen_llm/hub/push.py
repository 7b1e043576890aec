# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm push`: publish a model with its card, results and, if wanted, its code, in one commit."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, errors
from huggingface_hub.utils import validate_repo_id
from transformers import (
    AutoBackbone,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForVideoClassification,
    AutoModelForVisualQuestionAnswering,
)

import hf_frozen_llm
from hf_frozen_llm.auto import TASK_MODELS
from hf_frozen_llm.hub.card import CARD_FILE, RESULTS_FOLDER, check_card, has_own_card, write_card
from hf_frozen_llm.hub.comparison import ABLATION_FOLDER
from hf_frozen_llm.hub.examples import EXAMPLES_FOLDER
from hf_frozen_llm.hub.licences import refuse_forbidden_layer
from hf_frozen_llm.modeling.code_files import copy_code
from hf_frozen_llm.modeling.configuration_llm_block import WithLLMBlockConfigMixin
from hf_frozen_llm.modeling.pretrained_model import PreTrainedModelWithLLMBlock
from hf_frozen_llm.modeling.publishing import is_local_path, publishing
from hf_frozen_llm.training.results import RESULTS_FILE, load_saved_config, read_results, write_text


AUTO_CLASSES: tuple[Any, ...] = (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForVideoClassification,
    AutoModelForVisualQuestionAnswering,
    AutoBackbone,
)
PROCESSOR_CONFIG, RECIPE = "preprocessor_config.json", "recipe.yaml"
JOINT_PROCESSOR_CONFIG = "processor_config.json"  # of images and texts
# Files of the folder that are published beside the model: settings, results, plots.
FOLDERS = (RESULTS_FOLDER, ABLATION_FOLDER, EXAMPLES_FOLDER)
TEXTS = (".json", ".csv", ".yaml", ".yml")
COPIED = (*TEXTS, ".md", ".png", ".svg", ".pdf")
NOT_COPIED = ("config.json", "model.safetensors.index.json", "adapter_config.json")
# A path of this machine in a file of text: a whole quoted string, or a word.
LOCAL_PATH = re.compile(
    r"""(?<=")(?:~?/|[A-Za-z]:[\\/])[^"/\\]+[/\\][^"]*(?=")|"""
    r"""(?<![^\s=,\[('"])(?:~?/|[A-Za-z]:[\\/])[^\s,"'/\\]+[/\\][^\s,"')\]]*"""
)


@dataclass
class Published:
    """
    What [`push`] did.

    Args:
        files (`dict[str, int]`): the sizes of the files.
        url (`str`, *optional*): of the commit or the pull request; `None` after a dry run.
    """

    files: dict[str, int]
    url: str | None

    @property
    def total(self) -> int:
        return sum(self.files.values())


def push(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    light: bool = False,
    include_layer: bool = False,
    with_code: bool = False,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    ablation: str | os.PathLike | None = None,
    token: str | None = None,
) -> Published:
    """
    Publish a model of this package on the Hub, in one commit.

    Args:
        folder (`str` or `os.PathLike`):
            The folder that `hf-frozen-llm train` or `save_pretrained` wrote. It is not changed.
        repo_id (`str`):
            The repository, `owner/name` or `name`. It is created if there is none.
        light (`bool`, *optional*, defaults to `False`):
            Whether to leave out the LLM layer, which loading then reads from the LLM on the Hub.
        include_layer (`bool`, *optional*, defaults to `False`):
            Whether to include the layer although the LLM's licence is unknown, or not known to permit it.
        with_code (`bool`, *optional*, defaults to `False`):
            Whether to include the code, so that `trust_remote_code=True` loads the model without this package.
        private (`bool`, *optional*, defaults to `False`):
            Whether a new repository is private.
        create_pr (`bool`, *optional*, defaults to `False`):
            Whether to open a pull request.
        revision (`str`, *optional*):
            The branch to push to; it is created if there is none.
        dry_run (`bool`, *optional*, defaults to `False`):
            Whether only to find out which files would be published. This needs no token.
        ablation (`str` or `os.PathLike`, *optional*):
            The folder of an `hf-frozen-llm ablate`, whose comparison is put into the card.
        token (`str`, *optional*):
            The token of the Hub; by default that of `hf auth login` or `HF_TOKEN`.

    Returns:
        [`Published`]: the files and the URL.

    Raises:
        `OSError`: if the folder is no model, or the upload was interrupted. The repository is then as before.
        `ValueError`: if the options, the licence of the LLM, the token or the repository do not permit it.
    """
    validate_repo_id(repo_id)
    if create_pr and revision not in (None, "main"):
        raise ValueError(f"--create-pr opens a pull request to main; leave out --revision {revision}.")
    if light and include_layer:
        raise ValueError("--light leaves out the LLM layer, --include-layer includes it: give one of them.")
    config = load_config(Path(folder))
    check_layer(config, light, include_layer)
    api = HfApi(token=token)
    if not dry_run:
        with explained_errors(folder, repo_id):
            repo_id = check_repository(api, repo_id, config.model_type, private, revision)
    with tempfile.TemporaryDirectory() as temporary:
        staging = Path(temporary)
        sizes = stage(Path(folder), staging, repo_id, light=light, with_code=with_code, ablation=ablation)
        if dry_run:
            return Published(sizes, None)
        with explained_errors(folder, repo_id):
            return Published(sizes, upload(api, staging, repo_id, private, create_pr, revision))


def stage(
    folder: Path,
    staging: Path,
    repo_id: str | None,
    *,
    light: bool = False,
    with_code: bool = False,
    ablation: str | os.PathLike | None = None,
) -> dict[str, int]:
    """Write all files that are published into a new folder; return their sizes."""
    save_model(folder, staging, light, with_code)
    copy_other_files(folder, staging)
    if with_code:
        add_code_of_processor(staging)
    write_card_into(staging, repo_id, ablation)
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    return {path.relative_to(staging).as_posix(): path.stat().st_size for path in files}


def load_config(folder: Path) -> Any:
    """Return the configuration of a folder; refuse a folder that is no model of this package."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; push needs the folder of a model.")
    if not (folder / "config.json").is_file():
        checkpoints = sorted(path.name for path in folder.glob("checkpoint-*"))
        hint = f" It has {checkpoints[-1]}, which can be pushed." if checkpoints else ""
        raise FileNotFoundError(
            f"{folder} is no model: it has no config.json. Give a folder that `hf-frozen-llm train` or "
            f"save_pretrained wrote.{hint}"
        )
    config = load_saved_config(str(folder))
    if not isinstance(config, WithLLMBlockConfigMixin):
        raise ValueError(f"{folder} is a {config.model_type}, not a model of this package.")
    return config


def check_layer(config: Any, light: bool, include_layer: bool) -> None:
    """Refuse a light model that no other machine could load, and a layer that may not be redistributed."""
    block = config.llm_block
    if block is None or block.kind != "llm":
        return
    name = block.llm_name_or_path
    if light and (name is None or is_local_path(name)):
        raise ValueError(
            f"--light leaves out the LLM layer, but llm_block.llm_name_or_path is {name!r}, from which no other "
            "machine can read it. Push without --light; or load the model with llm_block={'llm_name_or_path': ID on "
            "the Hub}, save it, and push that folder."
        )
    if not light and not include_layer and block.weights != "random":
        refuse_forbidden_layer(name)


def load_model(folder: Path) -> Any:
    config = load_config(folder)
    name = (config.architectures or [TASK_MODELS[config.model_type].__name__])[0]
    model_class = getattr(hf_frozen_llm, name, None)
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModelWithLLMBlock)):
        raise ValueError(f"{folder}/config.json names the architecture {name!r}, which is no model of this package.")
    return model_class.from_pretrained(folder)


def save_model(folder: Path, staging: Path, light: bool, with_code: bool) -> None:
    """Save the model for publication: with or without the layer, without local paths."""
    model = load_model(folder)
    if model.config.llm_block is not None:
        model.config.llm_block.save_weights = not light
    if with_code:
        model.config.auto_map = describe_code(type(model.config))
    with publishing():
        model.save_pretrained(staging)
    if light and model.config.llm_block is not None and model.config.llm_block.kind == "llm":
        saved = json.loads((staging / "config.json").read_text(encoding="utf-8"))
        if saved["llm_block"].get("save_weights", True):
            raise ValueError(
                f"--light cannot leave out the LLM layer of {folder}: it is random, was trained or was changed, so "
                "that it cannot be read from the LLM again. Push without --light."
            )


def describe_code(config_class: type) -> dict[str, str]:
    """Return the `auto_map` of a configuration: the Auto classes that this package registers for it."""
    mappings = {auto.__name__: auto._model_mapping for auto in AUTO_CLASSES}
    classes = {name: models[config_class] for name, models in mappings.items() if config_class in models}
    return {name: refer_to(found) for name, found in {"AutoConfig": config_class, **classes}.items()}


def refer_to(found: type) -> str:
    return f"{found.__module__.rpartition('.')[2]}.{found.__name__}"


def add_code_of_processor(staging: Path) -> None:
    """Add the code of a processor of this package, and name it in the configuration of the processor."""
    file = staging / PROCESSOR_CONFIG
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    processor = getattr(hf_frozen_llm, content.get("feature_extractor_type") or "", None)
    if processor is not None:
        content["auto_map"] = {"AutoFeatureExtractor": refer_to(processor)}
        copy_code(content["auto_map"], staging)
        write_text(file, json.dumps(content, indent=2, sort_keys=True) + "\n")
    file = staging / JOINT_PROCESSOR_CONFIG
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    processor = getattr(hf_frozen_llm, content.get("processor_class") or "", None)
    if processor is not None:
        content["auto_map"] = {"AutoProcessor": refer_to(processor)}
        of_images = content["image_processor"]
        image_processor = getattr(hf_frozen_llm, of_images["image_processor_type"])
        of_images["auto_map"] = {"AutoImageProcessor": refer_to(image_processor)}
        copy_code(content["auto_map"], staging)
        write_text(file, json.dumps(content, indent=2, sort_keys=True) + "\n")


def copy_other_files(folder: Path, staging: Path) -> None:
    """Copy the processor, card, results, plots and recipe, with absolute paths shortened to their last part."""
    results = folder / RESULTS_FILE
    if results.is_file() and not (folder / RECIPE).is_file():
        recipe = yaml.safe_dump(read_results(results)["recipe"], sort_keys=False, allow_unicode=True)
        write_text(staging / RECIPE, shorten_paths(recipe))
    of_card = [file for name in FOLDERS for file in (folder / name).glob("*")]
    for file in sorted([*folder.iterdir(), *of_card]):
        is_ours = file.suffix in COPIED and not file.name.startswith((".", "_")) and file.name not in NOT_COPIED
        if not is_ours or not file.is_file():
            continue
        copy = staging / file.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        if file.suffix in TEXTS:
            write_text(copy, shorten_paths(file.read_text(encoding="utf-8")))
        else:
            shutil.copyfile(file, copy)


def shorten_paths(text: str) -> str:
    return LOCAL_PATH.sub(lambda match: re.split(r"[/\\]+", match[0].rstrip("/\\"))[-1], text)


def write_card_into(staging: Path, repo_id: str | None, ablation: str | os.PathLike | None) -> None:
    """Write the model card, unless the folder has one that was written by hand, whose numbers are checked."""
    if has_own_card(staging):
        print(f"The card is the {CARD_FILE} of the folder, which was written or changed by hand.")
    else:
        write_card(staging, repo_id, None if ablation is None else Path(ablation))
    check_card(staging)


def check_repository(api: HfApi, repo_id: str, model_type: str, private: bool, revision: str | None) -> str:
    """Return `owner/name`; refuse a token that cannot write, and a repository with another type of content."""
    user = api.whoami()
    role = (user.get("auth") or {}).get("accessToken", {}).get("role")
    if role == "read":
        raise ValueError(
            f"The token of {user['name']} may only read. Make one that may write at {api.endpoint}/settings/tokens, "
            "and log in with it: `hf auth login`."
        )
    if "/" not in repo_id:
        repo_id = f"{user['name']}/{repo_id}"
    try:
        info = api.model_info(repo_id)
    except errors.RepositoryNotFoundError:
        for kind in ("dataset", "space"):
            if api.repo_exists(repo_id, repo_type=kind):
                raise ValueError(f"{repo_id} is a {kind} on the Hub, not a model. Choose another name.") from None
        return repo_id
    if private and not info.private:
        raise ValueError(
            f"{repo_id} exists and is public; --private makes only new repositories private. Change it in its "
            "settings, or choose another name."
        )
    try:
        with open(api.hf_hub_download(repo_id, "config.json", revision=revision), encoding="utf-8") as file:
            found = json.load(file).get("model_type")
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError):
        return repo_id
    if found != model_type:
        raise ValueError(f"{repo_id} holds a model of type {found}, this one is a {model_type}. Choose another name.")
    return repo_id


def upload(api: HfApi, staging: Path, repo_id: str, private: bool, create_pr: bool, revision: str | None) -> str:
    """Upload all files in one commit, which also removes weight files that the model no longer has."""
    if not api.repo_exists(repo_id):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
    is_new_branch = revision not in (None, "main") and not str(revision).startswith("refs/")
    if is_new_branch:
        api.create_branch(repo_id, branch=str(revision), exist_ok=True)
    weights = re.compile(r"(model|pytorch_model)[^/]*\.(safetensors|bin)(\.index\.json)?")
    present = api.list_repo_files(repo_id, revision=revision)
    stale = [name for name in present if weights.fullmatch(name) and not (staging / name).exists()]
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=staging,
        commit_message="Push a model with hf-frozen-llm",
        revision=revision,
        create_pr=create_pr,
        delete_patterns=stale or None,
    )
    return commit.pr_url or commit.commit_url


@contextmanager
def explained_errors(folder: str | os.PathLike, repo_id: str) -> Iterator[None]:
    """Replace the Hub's refusals and lost connections by errors that name the fix."""
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise ValueError(
            "push needs a token of the Hub: log in by `hf auth login`, or set HF_TOKEN. --dry-run needs none."
        ) from error
    except (errors.HTTPError, ConnectionError, RuntimeError) as error:
        # the client wraps errors of large files
        cause = error.__cause__ or error if isinstance(error, RuntimeError) else error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status == 401:
            raise ValueError("The Hub does not know the token: log in again by `hf auth login`.") from error
        if status == 403:
            raise ValueError(
                f"The token may not write to {repo_id}: its owner needs the right to write there. --create-pr "
                "proposes the model to a repository of others."
            ) from error
        reason = {
            409: "somebody else has changed the repository meanwhile",
            412: "somebody else has changed the repository meanwhile",
            429: "the Hub's limit of requests is reached, wait some minutes",
        }.get(status or 0, f"{type(cause).__name__}, {' '.join(str(cause).split()) or 'the connection was lost'}")
        raise OSError(
            f"The push to {repo_id} did not finish: {reason}. A repository never holds a part of a push: "
            f"repeat `hf-frozen-llm push {folder} {repo_id}` with its options. Large files that were uploaded are not "
            "sent again."
        ) from error
