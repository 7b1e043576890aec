# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Reading files of Hub repositories by byte ranges over HTTP, and caching the ranges."""

import hashlib
import json
import os
import re
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, hf_raise_for_status, http_stream_backoff, tqdm

from .checkpoint_files import LocalFile


GAP = 1 << 10  # ranges separated by at most this many bytes are merged into one request
PIECE = 1 << 24  # largest request, in bytes
PARALLEL = 4  # simultaneous requests
TRIES = 5  # consecutive responses without data before giving up


class RangesIgnored(OSError):
    """The server ignores range requests and sends whole files."""


class HubFile:
    """
    A file of a Hub repository at one commit, read by byte ranges. Ranges are cached below the repository's folder of
    the Hub's cache, in safetensors files with a checksum, so that none is downloaded twice.

    Args:
        repo_id (`str`): repository on the Hub.
        filename (`str`): path of the file in the repository.
        commit (`str`): commit hash; a branch could move between two requests.
        hub_kwargs (`dict`): `token`, `cache_dir`, `local_files_only`.

    Raises:
        `RangesIgnored`: if the server ignores range requests.
        `OSError`: huggingface_hub's errors for a missing, gated or private repository and for a failed connection.
    """

    def __init__(self, repo_id: str, filename: str, commit: str, hub_kwargs: dict[str, Any]):
        self.repo_id, self.filename, self.commit = repo_id, filename, commit
        self.path = f"{repo_id}/{filename}"
        self.size = 0
        self.bytes_read = 0
        self._offline = is_offline(hub_kwargs)
        self._url = hf_hub_url(repo_id, filename, revision=commit)
        self._token = hub_kwargs.get("token")
        self._folder = os.path.join(repository_folder(repo_id, hub_kwargs), "llm_layers", commit)
        # Start and stop of each cached range, its offset in the cache file, and the cache file.
        self._cached: list[tuple[int, int, int, LocalFile]] = []
        self._fetch([(0, 8)])

    def read(self, offset: int, length: int) -> bytearray:
        if offset + length > self.size:
            raise ValueError(
                f"{self.path} is truncated: cannot read bytes {offset} to {offset + length} of {self.size}."
            )
        data = bytearray()
        while len(data) < length:
            at = offset + len(data)
            cached = next((cached for cached in self._cached if cached[0] <= at < cached[1]), None)
            if cached is None:
                self._fetch([(at, offset + length)])
            else:
                start, stop, cache_offset, file = cached
                data += file.read(cache_offset + at - start, min(stop, offset + length) - at)
        self.bytes_read += length
        return data

    def prefetch(self, ranges: list[tuple[int, int]]) -> None:
        """Download `(start, stop)` ranges into the cache, in few requests, with a progress bar."""
        merged: list[tuple[int, int]] = []
        for start, stop in sorted(ranges):
            if merged and start <= merged[-1][1] + GAP:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((start, stop))
        if merged:
            self._fetch(merged, progress=True)

    def close(self) -> None:
        for *_, file in self._cached:
            file.close()
        self._cached = []

    def _fetch(self, ranges: list[tuple[int, int]], progress: bool = False) -> None:
        name = hashlib.sha256(json.dumps([self.filename, ranges]).encode()).hexdigest()
        path = os.path.join(self._folder, f"{name}.safetensors")
        if self._load(path):
            return
        if self._offline:
            raise LocalEntryNotFoundError(
                f"{self.path} at {self.commit}: the requested tensors are not in the cache, and cannot be downloaded "
                "in offline mode (HF_HUB_OFFLINE, local_files_only)."
            )
        os.makedirs(self._folder, exist_ok=True)
        with WeakFileLock(f"{path}.lock"):
            if not self._load(path):  # another process may have downloaded it meanwhile
                self._download(ranges, path, progress)
                if not self._load(path):
                    raise OSError(f"{path} cannot be read back after writing it; is the disk full or damaged?")

    def _load(self, path: str) -> bool:
        """Load the ranges of a cache file; return `False` if it is missing or damaged."""
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
            cached = []
            for name, entry in header.items():
                begin, end = map(int, name.split("-"))
                cached.append((begin, end, start + entry["data_offsets"][0], file))
            self.size = int(metadata["size"])
        except (AttributeError, KeyError, TypeError, ValueError, struct.error):
            file.close()
            return False
        self._cached += cached
        return True

    def _download(self, ranges: list[tuple[int, int]], path: str, progress: bool) -> None:
        pieces, entries, num_bytes = [], {}, 0
        for start, stop in ranges:
            entries[f"{start}-{stop}"] = {
                "dtype": "U8",
                "shape": [stop - start],
                "data_offsets": [num_bytes, num_bytes + stop - start],
            }
            pieces += [(at, min(at + PIECE, stop), num_bytes + at - start) for at in range(start, stop, PIECE)]
            num_bytes += stop - start

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
                    total=num_bytes, unit="B", unit_scale=True, desc=self.path, disable=None if progress else True
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

    def _get(self, start: int, stop: int, write: Callable[[bytes, int], Any], bar: tqdm) -> None:
        """Request bytes `start` to `stop`, and again those that a response lacks."""
        done, failures, reason = 0, 0, ""
        while start + done < stop:
            headers = build_hf_headers(token=self._token)
            headers |= {"Range": f"bytes={start + done}-{stop - 1}", "Accept-Encoding": "identity"}
            before = done
            # The client itself drops the token if a redirect leads to another host.
            with http_stream_backoff(
                "GET", self._url, headers=headers, follow_redirects=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            ) as response:
                if response.status_code >= 400:
                    response.read()
                hf_raise_for_status(response)
                content = re.match(r"bytes (\d+)-\d+/(\d+)$", response.headers.get("Content-Range", ""))
                if response.status_code != 206 or not content or int(content[1]) != start + done:
                    raise RangesIgnored(f"{self.path}: the server ignores range requests.")
                if self.size not in (0, int(content[2])):
                    raise OSError(f"{self.path} at {self.commit} changed its size while it was read. Try again.")
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
                    f"{reason}. Try again; complete ranges stay in the cache."
                )


def is_offline(hub_kwargs: dict[str, Any]) -> bool:
    return bool(constants.HF_HUB_OFFLINE or hub_kwargs.get("local_files_only"))


def repository_folder(repo_id: str, hub_kwargs: dict[str, Any]) -> str:
    """Return the folder of a repository in the Hub's cache."""
    cache = os.fspath(hub_kwargs.get("cache_dir") or constants.HF_HUB_CACHE)
    return os.path.join(cache, repo_folder_name(repo_id=repo_id, repo_type="model"))
