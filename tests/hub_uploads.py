# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The Hub's endpoints for uploads, for the real client: repositories, branches, LFS in one or several parts, commits.

```python
hub.uploads.tokens = {"hf_write": "write", "hf_read": "read"}  # {}: everybody may write
hub.uploads.part_size = 1000  # larger files are sent in parts
hub.uploads.fail("commit", 409)  # or "create", "preupload", "batch", "put", "branch"; or a status, "drop" or "stall"
hub.uploads.received  # the bytes of each PUT
```
"""

import base64
import hashlib
import json
import re
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import unquote


KINDS = {"model": "models", "dataset": "datasets", "space": "spaces"}
LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pth")
LFS_SIZE = 10_000_000
ENDPOINTS = {
    ("POST", "create"): r"^/api/repos/create$",
    ("POST", "validate"): r"^/api/validate-yaml$",
    ("GET", "whoami"): r"^/api/whoami-v2$",
    ("POST", "preupload"): r"^/api/(models|datasets|spaces)/(.+?)/preupload/([^/]+)$",
    ("POST", "commit"): r"^/api/(models|datasets|spaces)/(.+?)/commit/([^/]+)$",
    ("POST", "branch"): r"^/api/(models|datasets|spaces)/(.+?)/branch/([^/]+)$",
    ("POST", "batch"): r"^/(?:(datasets|spaces)/)?(.+?)\.git/info/lfs/objects/batch$",
    ("PUT", "put"): r"^/lfs-storage/(\w+)(?:/(\d+))?$",
    ("POST", "complete"): r"^/lfs-storage/(\w+)/complete$",
    ("POST", "verify"): r"^/lfs-storage/(\w+)/verify$",
}


class Uploads:
    """What the server has received, who may write, and the faults that are due."""

    def __init__(self, hub):
        self.hub = hub
        self.tokens = {}
        self.part_size = 5_000_000_000
        self.received = []
        self.folder = None
        self.parts = {}
        self._faults = []
        self._lock = threading.Lock()

    def fail(self, endpoint, fault, times=1):
        """The next `times` requests to an endpoint get a status, are dropped half-way, or wait for ever."""
        self._faults += [(endpoint, fault)] * times

    def take_fault(self, endpoint):
        with self._lock:
            due = [fault for fault in self._faults if fault[0] == endpoint]
            if not due:
                return None
            self._faults.remove(due[0])
            return due[0][1]

    def forget_faults(self):
        self._faults.clear()

    def make_folder(self):
        with self._lock:
            self.folder = self.folder or tempfile.TemporaryDirectory()
            return Path(tempfile.mkdtemp(dir=self.folder.name))

    def cleanup(self):
        if self.folder is not None:
            self.folder.cleanup()

    def store(self, oid, content, part=None):
        """Keep the content of a blob, or of one part of it."""
        folder = self.make_folder()
        (folder / "blob").write_bytes(content)
        self.received.append(len(content))
        self.parts.setdefault(oid, {})[int(part or 0)] = folder / "blob"

    def blob(self, oid, size=None):
        """Return a complete blob of this SHA-256 and size, or `None`."""
        parts = self.parts.get(oid, {})
        content = b"".join(parts[number].read_bytes() for number in sorted(parts))
        is_complete = hashlib.sha256(content).hexdigest() == oid and size in (None, len(content))
        return content if is_complete and parts else None


class UploadEndpoints:
    """Part of the server's handler; `send_json`, `fail`, `find` and `token` are the other's."""

    def answer_upload(self, path, query):
        """Answer a request for an upload; return whether it is one. `path` is still quoted."""
        for (method, name), pattern in ENDPOINTS.items():
            match = re.match(pattern, path)
            if match and method == self.command:
                fault = self.server_state.uploads.take_fault(name)
                length = int(self.headers.get("Content-Length") or 0)
                if fault in ("drop", "stall"):
                    self.rfile.read(length // 2)
                    if fault == "stall":
                        time.sleep(600)
                    self.close_connection = True
                    self.note(0, 0)
                    return True
                self.request_body = self.read_body(length)
                if fault is not None:
                    self.fail(fault, None, f"fault {fault} of the test")
                else:
                    groups = [group if group is None else unquote(group) for group in match.groups()]
                    getattr(self, f"answer_{name}")(*groups, query=query)
                return True
        return False

    def read_body(self, length):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(length)
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def may_write(self, name, needs_role=True):
        """Return whether the token may write to a repository of this name; or send the Hub's refusal."""
        tokens = self.server_state.uploads.tokens
        if not tokens:
            return True
        if self.token() not in tokens:
            self.fail(401, None, "Invalid credentials in Authorization header")
        elif needs_role and (tokens[self.token()] != "write" or name.split("/")[0] != "tester"):
            namespace = name.split("/")[0]
            self.fail(403, None, f'You don\'t have the rights to write under the namespace "{namespace}"')
        else:
            return True
        return False

    def answer_whoami(self, query):
        hub = self.server_state
        roles = {**{r.token: "read" for r in hub.repositories.values() if r.token}, **hub.uploads.tokens}
        if self.token() in roles or (self.token() and not roles):
            role = roles.get(self.token(), "write")
            self.send_json({"name": "tester", "type": "user", "auth": {"accessToken": {"role": role}}})
        else:
            self.fail(401, None, "Invalid credentials in Authorization header")

    def answer_create(self, query):
        hub, asked = self.server_state, json.loads(self.request_body)
        name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        kind = KINDS[asked.get("type", "model")]
        if not self.may_write(name):
            return
        described = {"url": f"{hub.url}/{name}", "name": name, "id": name}
        if (kind, name) in hub.repositories:
            self.send_json({**described, "error": "You already created this model repo"}, status=409)
            return
        hub.commit(name, kind)
        if asked.get("visibility") == "private" or asked.get("private"):
            hub.repositories[kind, name].token = self.token()
        self.send_json(described)

    def answer_validate(self, query):
        content = json.loads(self.request_body)["content"]
        is_bad = content.startswith("---") and content.count("---") < 2
        errors = [{"message": "metadata does not end"}] if is_bad else []
        self.send_json({"warnings": [], "errors": errors}, status=400 if errors else 200)

    def answer_branch(self, kind, name, branch, query):
        found = self.find(kind, name, "main", content=True)
        if found is None or not self.may_write(name):
            return
        repository, _ = found
        if branch in repository.refs:
            self.fail(409, None, f"Reference already exists: {branch}")
            return
        start = json.loads(self.request_body or "{}").get("startingPoint", "main")
        repository.refs[branch] = repository.resolve(start)
        self.send_json({})

    def answer_preupload(self, kind, name, revision, query):
        found = self.find(kind, name, revision, content=True)
        if found is None or not self.may_write(name, needs_role="create_pr" not in query):
            return
        present = found[0].files(found[1])
        answers = []
        for file in json.loads(self.request_body)["files"]:
            mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) or file["size"] > LFS_SIZE else "regular"
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if file["path"] in present:
                answer["oid"] = content_id(present[file["path"]].read_bytes(), mode)
            answers.append(answer)
        self.send_json({"files": answers})

    def answer_batch(self, kind, name, query):
        if self.find(kind or "models", name, "main", content=True) is None:
            return
        hub, objects = self.server_state, []
        for asked in json.loads(self.request_body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            answer = {"oid": oid, "size": size}
            if hub.uploads.blob(oid, size) is None:
                url = f"{hub.url}/lfs-storage/{oid}"
                upload = {"href": url}
                if size > hub.uploads.part_size:
                    count = -(-size // hub.uploads.part_size)
                    urls = {f"{number:05d}": f"{url}/{number}" for number in range(1, count + 1)}
                    header = {"chunk_size": str(hub.uploads.part_size), **urls}
                    upload = {"href": f"{url}/complete", "header": header}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{url}/verify"}}
            objects.append(answer)
        self.send_json({"transfer": "basic", "objects": objects})

    def answer_put(self, oid, part, query):
        self.server_state.uploads.store(oid, self.request_body, part)
        self.send_json({}, headers={"ETag": f'"{hashlib.md5(self.request_body).hexdigest()}"'})

    def answer_complete(self, oid, query):
        asked = [part["partNumber"] for part in json.loads(self.request_body)["parts"]]
        if asked == sorted(self.server_state.uploads.parts.get(oid, {})) and self.server_state.uploads.blob(oid):
            self.send_json({})
        else:
            self.fail(400, None, "parts are missing")

    def answer_verify(self, oid, query):
        if self.server_state.uploads.blob(oid, json.loads(self.request_body)["size"]) is None:
            self.fail(404, None, "no such object")
        else:
            self.send_json({})

    def answer_commit(self, kind, name, revision, query):
        found, creates_pr = self.find(kind, name, revision, content=True), "create_pr" in query
        if found is None or not self.may_write(name, needs_role=not creates_pr):
            return
        hub, (repository, last) = self.server_state, found
        lines = [json.loads(line) for line in self.request_body.splitlines()]
        files, deleted = {}, []
        for key, value in ((line["key"], line["value"]) for line in lines):
            if key == "header" and value.get("parentCommit") not in (None, last):
                self.fail(412, None, "A commit has happened since. Please refresh and try again.")
                return
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = hub.uploads.blob(value["oid"], value.get("size"))
                if files[value["path"]] is None:
                    self.fail(400, None, f"Your push was rejected: {value['path']} has no LFS object")
                    return
            elif key == "deletedFile":
                deleted.append(value["path"])
            elif key == "deletedFolder":
                deleted += [
                    path for path in repository.files(last) if path.startswith(value["path"].rstrip("/") + "/")
                ]
        target, answer = revision, {}
        if creates_pr:
            number = 1 + sum(ref.startswith("refs/pr/") for ref in repository.refs)
            target = f"refs/pr/{number}"
            repository.refs[target] = last
            answer["pullRequestUrl"] = f"{hub.url}/{name}/discussions/{number}"
        commit = hub.commit(name, kind, target, files, deleted)
        self.send_json({**answer, "commitUrl": f"{hub.url}/{name}/commit/{commit}", "commitOid": commit})


def content_id(content, mode):
    """Return the id by which the client sees whether a file has changed: that of LFS or of git."""
    if mode == "lfs":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
