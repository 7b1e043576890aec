# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""A small server with the Hub's endpoints for local folders, which counts requests and bytes.

```python
with HubServer() as hub:
    hub.add("someone/model", folder)
    hub.add("someone/gated", folder, token="hf_secret")
    with hub.active(cache_dir):          # huggingface_hub of this process talks to the server
        AutoConfig.from_pretrained("someone/model")
    subprocess.run(command, env=hub.env(cache_dir))
    hub.bytes_sent, hub.requests
```
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
from hub_uploads import UploadEndpoints, Uploads
from huggingface_hub import constants, hf_api
from transformers.utils import hub as transformers_hub


@dataclass
class Repository:
    """One repository: the content of each of its revisions."""

    kind: str
    name: str
    commits: dict = field(default_factory=dict)  # commit -> folder
    refs: dict = field(default_factory=dict)  # branch or tag -> commit
    token: str | None = None
    gated: bool = False

    def resolve(self, revision):
        commit = self.refs.get(revision, revision)
        return commit if commit in self.commits else None

    def files(self, commit):
        folder = self.commits[commit]
        return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}


@dataclass
class Request:
    method: str
    path: str
    status: int
    bytes_sent: int = 0
    range: str | None = None


class HubServer:
    """Serves folders as Hub repositories on a free local port."""

    def __init__(self):
        self.repositories = {}
        self._requests = []
        self._answering = 0
        self._is_idle = threading.Condition()
        self.knows_ranges = True
        self.answers_to_break_off = 0  # of those to ranges, after half of their bytes
        self.redirects_to_another_host = False  # the contents of weight files, as the Hub does with its storage
        self.answers_to_stall = 0  # of those to ranges, for a second each
        self.bad_answer = None  # to requests of ranges: "page", "whole", "other range", "other size", "too much"
        self.ranges_before_it = 0
        self.badly_answered = None  # the range of the request that got it
        self.uploads = Uploads(self)  # what clients sent, and who may
        self.authorized_elsewhere = []  # tokens that reached the other host
        self._lock = threading.Lock()
        self._server = None

    def __enter__(self):
        hub = self

        class Handler(HubHandler):
            server_state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self._server.shutdown()
        self._server.server_close()
        self.uploads.cleanup()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, name, folder, kind="models", token=None, gated=False, revision="main"):
        """Serve `folder` as repository `name`; another call with this name adds a commit to `revision`.

        Args:
            kind (`str`): `"models"` or `"datasets"`.
            token (`str`, *optional*): without this bearer token the repository is not found (401).
            gated (`bool`): with `token`: metadata is public, files answer 401 `GatedRepo` (403 to another token).
        """
        repository = self.repositories.setdefault((kind, name), Repository(kind, name))
        repository.token, repository.gated = token, gated
        commit = hashlib.sha1(f"{kind}/{name}/{revision}/{len(repository.commits)}".encode()).hexdigest()
        repository.commits[commit] = Path(folder)
        repository.refs[revision] = commit
        return commit

    def commit(self, name, kind="models", revision="main", files=None, deleted=()):
        """Add a commit as clients do: the files of the last one, and these."""
        folder, repository = self.uploads.make_folder(), self.repositories.get((kind, name))
        if repository is not None:
            shutil.copytree(repository.commits[repository.resolve(revision)], folder, dirs_exist_ok=True)
        for path in deleted:
            (folder / path).unlink()
        for path, content in (files or {}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        token, gated = (repository.token, repository.gated) if repository is not None else (None, False)
        return self.add(name, folder, kind=kind, token=token, gated=gated, revision=revision)

    @contextlib.contextmanager
    def answering(self):
        """Mark an answer as unfinished: its client may continue before it is recorded, and readers wait for all."""
        with self._is_idle:
            self._answering += 1
        try:
            yield
        finally:
            with self._is_idle:
                self._answering -= 1
                self._is_idle.notify_all()

    @property
    def requests(self):
        with self._is_idle:
            self._is_idle.wait_for(lambda: self._answering == 0, timeout=10)
            return list(self._requests)

    def record(self, request):
        with self._is_idle:
            self._requests.append(request)

    def clear(self):
        with self._is_idle:
            self._is_idle.wait_for(lambda: self._answering == 0, timeout=10)
            self._requests.clear()

    def breaks_off(self):
        with self._lock:
            self.answers_to_break_off -= 1
            return self.answers_to_break_off >= 0

    def stalls(self):
        with self._lock:
            self.answers_to_stall -= 1
            return self.answers_to_stall >= 0

    def takes_bad_answer(self, range):
        """Return the bad answer that this request for a range gets; it is given once."""
        with self._lock:
            self.ranges_before_it -= 1
            if self.bad_answer is None or self.ranges_before_it >= 0:
                return None
            bad, self.bad_answer, self.badly_answered = self.bad_answer, None, range
            return bad

    @property
    def bytes_sent(self):
        return sum(r.bytes_sent for r in self.requests)

    def downloaded(self, name=None):
        """Return the names of the files whose content was sent, in order."""
        out = []
        for r in self.requests:
            match = re.match(r"^/(?:datasets/)?(.+?)/resolve/[^/]+/(.+)$", r.path)
            if match and r.method == "GET" and r.status in (200, 206) and name in (None, match[1]):
                out.append(match[2])
        return out

    def env(self, cache_dir, **extra):
        """Return the environment of a subprocess whose Hub is this server."""
        changed = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache_dir),
            "HF_HUB_CACHE": str(Path(cache_dir) / "hub"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        dropped = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
        return {**{k: v for k, v in os.environ.items() if k not in dropped}, **changed, **extra}

    @contextlib.contextmanager
    def active(self, cache_dir, offline=False):
        """Set this server as the Hub of huggingface_hub in this process, with its cache in `cache_dir`."""
        changed = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(Path(cache_dir) / "hub"),
            "HF_HUB_OFFLINE": offline,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_TOKEN_PATH": str(Path(cache_dir) / "token"),
        }
        before = {k: getattr(constants, k) for k in changed}
        environment = {k: os.environ.get(k) for k in ("NO_PROXY", "no_proxy", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")}
        # huggingface_hub's own client, and the one that transformers makes once and keeps
        clients = (hf_api.api, transformers_hub.hf_api())
        endpoints = [client.endpoint for client in clients]
        os.environ.update(NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
        os.environ.pop("HF_TOKEN", None)
        os.environ.pop("HUGGING_FACE_HUB_TOKEN", None)
        for name, value in changed.items():
            setattr(constants, name, value)
        for client in clients:
            client.endpoint = self.url
        # the client reads the proxy settings once, when it is made
        huggingface_hub.close_session()
        try:
            yield self
        finally:
            for name, value in before.items():
                setattr(constants, name, value)
            for client, endpoint in zip(clients, endpoints):
                client.endpoint = endpoint
            for name, value in environment.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            huggingface_hub.close_session()


class HubHandler(UploadEndpoints, BaseHTTPRequestHandler):
    """
    `/api/{kind}/{repo}[/revision|tree|paths-info/…]`, `/{repo}/resolve/{revision}/{file}`; uploads: `hub_uploads.py`.
    """

    protocol_version = "HTTP/1.1"
    server_state: HubServer

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.answer()

    def do_PUT(self):
        self.answer()

    def answer(self):
        with self.server_state.answering():
            self.send_answer()

    def send_answer(self):
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        if self.answer_upload(url.path, query):
            return
        self.request_body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        # matched before a quoted "/" of a branch is unquoted
        api = re.match(
            r"^/api/(models|datasets|spaces)/(.+?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?$", url.path
        )
        file = re.match(r"^/(?:(datasets|spaces)/)?(.+?)/resolve/([^/]+)/(.+)$", url.path)
        if file:
            self.send_file_of(file[1] or "models", *map(unquote, file.groups()[1:]))
        elif api:
            kind, name, action, revision, folder = api.groups()
            self.send_api(kind, name, action, unquote(revision or "main"), unquote(folder or ""), query)
        else:
            self.fail(404, None, f"no such endpoint: {url.path}")

    def token(self):
        kind, _, token = (self.headers.get("Authorization") or "").partition(" ")
        return token if kind == "Bearer" else None

    def find(self, kind, name, revision, content):
        """Return (repository, commit); or send the Hub's refusal, and return None."""
        repository = self.server_state.repositories.get((kind, name))
        if repository is None:
            # the Hub does not reveal private repositories
            self.fail(404 if self.token() else 401, "RepoNotFound", "Repository not found")
            return None
        if repository.token and self.token() != repository.token:
            if not repository.gated:
                self.fail(404 if self.token() else 401, "RepoNotFound", "Repository not found")
                return None
            if content:
                self.fail(403 if self.token() else 401, "GatedRepo", f"Access to model {name} is restricted")
                return None
        commit = repository.resolve(revision)
        if commit is None:
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository, commit

    def send_api(self, kind, name, action, revision, folder, query):
        found = self.find(kind, name, revision, content=False)
        if found is None:
            return
        repository, commit = found
        files = repository.files(commit)
        if action in (None, "revision"):
            self.send_json(
                {
                    "_id": commit[:24],
                    "id": name,
                    "modelId": name,
                    "sha": commit,
                    "private": bool(repository.token and not repository.gated),
                    "gated": "auto" if repository.gated else False,
                    "disabled": False,
                    "downloads": 0,
                    "likes": 0,
                    "tags": [],
                    "siblings": [{"rfilename": f} for f in files],
                }
            )
        elif action == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            entries = tree(files, folder, recursive)
            if folder and not entries:
                self.fail(404, "EntryNotFound", f"{folder} does not exist on {revision}")
            else:
                self.send_json(entries)
        else:
            form = (self.headers.get("Content-Type") or "").startswith("application/x-www-form-urlencoded")
            body = self.request_body.decode()
            paths = parse_qs(body).get("paths", []) if form else json.loads(body or "{}").get("paths", [])
            entries = tree(files, "", True)
            self.send_json([e for e in entries if e["path"] in paths])

    def send_file_of(self, kind, name, revision, file_name):
        # The other host checks no tokens: its URL is the permission.
        is_elsewhere = "localhost" in self.headers.get("Host", "")
        found = self.find(kind, name, revision, content=not is_elsewhere)
        if found is None:
            return
        repository, commit = found
        path = repository.files(commit).get(file_name)
        if path is None:
            self.fail(404, "EntryNotFound", "Entry not found", commit=commit)
            return
        if self.server_state.redirects_to_another_host and path.suffix in (".safetensors", ".gguf"):
            if "127.0.0.1" in self.headers.get("Host", ""):
                self.send_response(302)
                self.send_header("Location", self.server_state.url.replace("127.0.0.1", "localhost") + self.path)
                self.send_header("X-Repo-Commit", commit)
                self.send_header("X-Linked-ETag", f'"{blob_id(path)}"')
                self.send_header("X-Linked-Size", str(path.stat().st_size))
                self.send_header("Content-Length", "0")
                self.end_headers()
                self.note(302, 0)
                return
            self.server_state.authorized_elsewhere += [self.token()] if self.token() else []
        if self.headers.get("Range") and self.server_state.stalls():
            time.sleep(1)
        size = path.stat().st_size
        start, stop, status = 0, size, 200
        asked = re.match(r"^bytes=(\d*)-(\d*)$", self.headers.get("Range") or "")
        if asked and self.server_state.knows_ranges:
            if asked[1]:
                start, stop = int(asked[1]), min(int(asked[2]) + 1 if asked[2] else size, size)
            else:
                start = max(size - int(asked[2]), 0)
            if start >= size:
                self.fail(416, None, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
                return
            status = 206
        bad = self.server_state.takes_bad_answer(self.headers["Range"]) if status == 206 else None
        if bad == "page":
            self.send_page()
            return
        if bad == "whole":
            start, stop, status = 0, size, 200
        self.send_response(status)
        self.send_header("ETag", f'"{blob_id(path)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(stop - start))
        if status == 206:
            begin, end = (start + 1, stop) if bad == "other range" else (start, stop)
            end += 5 if bad == "too much" else 0
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size + (bad == 'other size')}")
        self.end_headers()
        sent = 0
        if self.command != "HEAD":
            if status == 206 and self.server_state.breaks_off():
                stop = (start + stop) // 2
                self.close_connection = True
            with open(path, "rb") as f:
                f.seek(start)
                while sent < stop - start:
                    chunk = f.read(min(1 << 20, stop - start - sent))
                    if not chunk:
                        break
                    self.wfile.write(chunk)
                    sent += len(chunk)
        self.note(status, sent)

    def send_page(self):
        body = b"<html>Please sign in to the network of this hotel.</html>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.note(200, len(body))

    def send_json(self, value, status=200, headers=None):
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.note(status, len(body))

    def fail(self, status, code, message, commit=None, headers=None):
        body = json.dumps({"error": message}).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.note(status, 0)

    def note(self, status, sent):
        path = unquote(urlsplit(self.path).path)
        self.server_state.record(Request(self.command, path, status, sent, self.headers.get("Range")))


def blob_id(path):
    # names the content, as git's and LFS's ids do
    return digest_of(path, path.stat().st_size, path.stat().st_mtime_ns)


@functools.lru_cache
def digest_of(path, size, changed):
    digest = hashlib.sha1()
    with open(path, "rb") as file:
        while data := file.read(1 << 24):
            digest.update(data)
    return digest.hexdigest()


def tree(files, folder, recursive):
    prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
    entries, folders = [], {}
    for name, path in files.items():
        if not name.startswith(prefix):
            continue
        rest = name[len(prefix) :].split("/")
        for depth in range(1, len(rest)):
            sub = prefix + "/".join(rest[:depth])
            if (recursive or depth == 1) and sub not in folders:
                folders[sub] = {
                    "type": "directory",
                    "path": sub,
                    "oid": hashlib.sha1(sub.encode()).hexdigest(),
                    "size": 0,
                }
        if recursive or len(rest) == 1:
            entries.append({"type": "file", "path": name, "oid": blob_id(path), "size": path.stat().st_size})
    return [*folders.values(), *entries]
