# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Files of Hub repositories read by byte ranges over HTTP, and the cache of the ranges that were read."""

import hashlib
import json
import os
import re
import struct
import time
from concurrent.futures import ThreadPoolExecutor

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, hf_raise_for_status, http_stream_backoff, tqdm

from .checkpoint_files import LocalFile


GAP = 1 << 10  # ranges with fewer bytes between them are one request
PIECE = 1 << 24  # bytes of one request at most
PARALLEL = 4
TRIES = 5  # answers in a row that bring nothing


class RangesIgnored(OSError):
    """The server sends whole files where a range is asked for."""


class HubFile:
    """
    A file of a Hub repository at one commit, read by byte ranges. What was read once is kept below the repository's
    folder of the Hub's cache, in safetensors files with a checksum, and is not asked for again.

    Args:
        repo_id (`str`): repository on the Hub.
        filename (`str`): path of the file in the repository.
        commit (`str`): commit hash; a branch could move between two requests.
        hub_kwargs (`dict`): `token`, `cache_dir`, `local_files_only`.

    Raises:
        `RangesIgnored`: where the server ignores ranges.
        `OSError`: huggingface_hub's errors for what is missing, gated or private, and for a connection that fails.
    """

    def __init__(self, repo_id: str, filename: str, commit: str, hub_kwargs: dict):
        self.repo_id, self.filename, self.commit = repo_id, filename, commit
        self.path = f"{repo_id}/{filename}"
        self.size = 0
        self.bytes_read = 0
        self._offline = is_offline(hub_kwargs)
        self._url = hf_hub_url(repo_id, filename, revision=commit)
        self._token = hub_kwargs.get("token")
        self._folder = os.path.join(repository_folder(repo_id, hub_kwargs), "llm_layers", commit)
        self._parts: list[tuple[int, int, int, LocalFile]] = []  # start, stop, place in the cached file
        self._fetch([(0, 8)])

    def read(self, offset: int, length: int) -> bytearray:
        if offset + length > self.size:
            raise ValueError(
                f"{self.path} is truncated: bytes {offset} to {offset + length} are wanted and it has {self.size}."
            )
        data = bytearray()
        while len(data) < length:
            at = offset + len(data)
            part = next((part for part in self._parts if part[0] <= at < part[1]), None)
            if part is None:
                self._fetch([(at, offset + length)])
            else:
                start, stop, place, file = part
                data += file.read(place + at - start, min(stop, offset + length) - at)
        self.bytes_read += length
        return data

    def prefetch(self, ranges: list[tuple[int, int]]) -> None:
        """Reads `(start, stop)` ranges into the cache, in few requests with a progress bar."""
        merged: list[tuple[int, int]] = []
        for start, stop in sorted(ranges):
            if merged and start <= merged[-1][1] + GAP:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((start, stop))
        if merged:
            self._fetch(merged, progress=True)

    def close(self):
        for *_, file in self._parts:
            file.close()
        self._parts = []

    def _fetch(self, ranges: list[tuple[int, int]], progress: bool = False) -> None:
        name = hashlib.sha256(json.dumps([self.filename, ranges]).encode()).hexdigest()
        path = os.path.join(self._folder, f"{name}.safetensors")
        if self._load(path):
            return
        if self._offline:
            raise LocalEntryNotFoundError(
                f"{self.path} at {self.commit}: what is wanted of it is not in the cache, and the Hub cannot be asked "
                "in offline mode (HF_HUB_OFFLINE, local_files_only)."
            )
        os.makedirs(self._folder, exist_ok=True)
        with WeakFileLock(f"{path}.lock"):
            if not self._load(path):  # another process may have read it meanwhile
                self._download(ranges, path, progress)
                if not self._load(path):
                    raise OSError(f"{path}: what was just written cannot be read back; is the disk full or damaged?")

    def _load(self, path: str) -> bool:
        """Takes over a file of the cache; `False` if there is none, or it is damaged."""
        if not os.path.isfile(path):
            return False
        file = LocalFile(path)
        try:
            (length,) = struct.unpack("<Q", file.read(0, 8))
            header = json.loads(file.read(8, length))
            metadata = header.pop("__metadata__")
            start, digest = 8 + length, hashlib.sha256()
            for offset in range(start, file.size, PIECE):
                digest.update(file.read(offset, min(PIECE, file.size - offset)))
            if digest.hexdigest() != metadata["sha256"]:
                raise ValueError("its checksum is wrong")
            parts = []
            for name, entry in header.items():
                begin, end = map(int, name.split("-"))
                parts.append((begin, end, start + entry["data_offsets"][0], file))
            self.size = int(metadata["size"])
        except (AttributeError, KeyError, TypeError, ValueError, struct.error):
            file.close()
            return False
        self._parts += parts
        return True

    def _download(self, ranges: list[tuple[int, int]], path: str, progress: bool) -> None:
        pieces, entries, place = [], {}, 0
        for start, stop in ranges:
            entries[f"{start}-{stop}"] = {
                "dtype": "U8",
                "shape": [stop - start],
                "data_offsets": [place, place + stop - start],
            }
            pieces += [(at, min(at + PIECE, stop), place + at - start) for at in range(start, stop, PIECE)]
            place += stop - start

        def encoded_header(digest: str) -> bytes:
            about = {"repository": self.repo_id, "commit": self.commit, "file": self.filename}
            about.update(size=f"{self.size:020d}", sha256=digest)
            data = json.dumps({"__metadata__": about, **entries}).encode()
            data += b" " * (-len(data) % 8)
            return struct.pack("<Q", len(data)) + data

        data_start = len(encoded_header("0" * 64))
        temporary = f"{path}.incomplete"
        try:
            with (
                open(temporary, "w+b") as file,
                tqdm(
                    total=place, unit="B", unit_scale=True, desc=self.path, disable=None if progress else True
                ) as bar,
                ThreadPoolExecutor(PARALLEL) as pool,
            ):

                def get(piece: tuple[int, int, int]) -> None:
                    start, stop, at = piece
                    self._get(start, stop, lambda data, n: os.pwrite(file.fileno(), data, data_start + at + n), bar)

                tasks = [pool.submit(get, piece) for piece in pieces]
                try:
                    for task in tasks:
                        task.result()
                except BaseException:
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
                digest = hashlib.sha256()
                file.seek(data_start)
                while data := file.read(PIECE):
                    digest.update(data)
                file.seek(0)
                file.write(encoded_header(digest.hexdigest()))
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    def _get(self, start: int, stop: int, write, bar) -> None:
        """Asks for bytes `start` to `stop`, and again for what an answer lacks."""
        done, failures, reason = 0, 0, ""
        while start + done < stop:
            headers = build_hf_headers(token=self._token)
            headers |= {"Range": f"bytes={start + done}-{stop - 1}", "Accept-Encoding": "identity"}
            before = done
            # The client itself drops the token where a redirect leads to another host.
            with http_stream_backoff(
                "GET", self._url, headers=headers, follow_redirects=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            ) as response:
                if response.status_code >= 400:
                    response.read()
                hf_raise_for_status(response)
                content = re.match(r"bytes (\d+)-\d+/(\d+)$", response.headers.get("Content-Range", ""))
                if response.status_code != 206 or not content or int(content[1]) != start + done:
                    raise RangesIgnored(f"{self.path}: the server ignores ranges.")
                if self.size not in (0, int(content[2])):
                    raise OSError(f"{self.path} at {self.commit} has changed its size while it was read. Try again.")
                self.size = int(content[2])
                if stop > self.size:
                    raise ValueError(f"{self.path} is truncated: it has {self.size} bytes. Its upload is damaged.")
                try:
                    for data in response.iter_raw():
                        data = data[: stop - start - done]
                        write(data, done)
                        done += len(data)
                        bar.update(len(data))
                except HTTPError as error:
                    reason = f" ({error})"
            failures = 0 if done > before else failures + 1
            if start + done < stop:
                time.sleep(0.1 * 2**failures)
            if failures == TRIES:
                raise OSError(
                    f"{self.path}: the connection broke off {TRIES} times at byte {start + done} of {self.size}"
                    f"{reason}. Try again; what is complete stays in the cache."
                )


def is_offline(hub_kwargs: dict) -> bool:
    return bool(constants.HF_HUB_OFFLINE or hub_kwargs.get("local_files_only"))


def repository_folder(repo_id: str, hub_kwargs: dict) -> str:
    """Where the Hub's cache keeps a repository."""
    cache = os.fspath(hub_kwargs.get("cache_dir") or constants.HF_HUB_CACHE)
    return os.path.join(cache, repo_folder_name(repo_id=repo_id, repo_type="model"))
