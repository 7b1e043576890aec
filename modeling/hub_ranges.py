# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Reading files of Hub repositories by byte ranges over HTTP."""

import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import torch
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff, tqdm

from .layer_cache import layer_folder, locked, open_layer, write_layer


T = TypeVar("T")

GAP = 1 << 10  # ranges separated by at most this many bytes are merged into one request
PIECE = 1 << 24  # largest request, in bytes
PARALLEL = 4  # simultaneous requests
TRIES = 5  # consecutive responses without data before giving up


class RangesIgnored(OSError):
    """The server ignores range requests and sends whole files."""


class HubFile:
    """
    A file of a Hub repository at one commit, read by byte ranges. They are kept in memory; only the header, by which
    the file's tensors are found, is kept in the cache. [`open_hub_files`] opens it.

    Args:
        repo_id (`str`): repository on the Hub.
        filename (`str`): path of the file in the repository.
        commit (`str`): commit hash; a branch could move between two requests.
        hub_kwargs (`dict`): `token`, `cache_dir`, `local_files_only`.
    """

    def __init__(self, repo_id: str, filename: str, commit: str, hub_kwargs: dict[str, Any]):
        self.commit = commit
        self.path = f"{repo_id}/{filename}"
        self.size = 0  # until the server, or the cache, tells it
        self.bytes_read = 0
        self.folder = layer_folder(repo_id, commit, hub_kwargs)
        self._header_path = os.path.join(self.folder, f"{filename}.header")
        self._offline = is_offline(hub_kwargs)
        self._url = hf_hub_url(repo_id, filename, revision=commit)
        self._token = hub_kwargs.get("token")
        self._ranges: list[tuple[int, bytearray]] = []  # first bytes and contents

    def load_header(self) -> bool:
        """Load the first bytes of the file from the cache; return whether they are there."""
        file = open_layer(self._header_path, ["header"])
        if file is None:
            return False
        self.size, self.bytes_read = int(file.metadata.get("size", "")), 0
        self._ranges = [(0, bytearray(file.read("header").numpy()))]
        file.close()
        return True

    def request_header(self) -> None:
        """Request the first bytes of the file, and learn its size."""
        self.size, self.bytes_read, self._ranges = 0, 0, []
        try:
            self._fetch([(0, 8)])
        except RangesIgnored:
            self._fetch([(0, 8)])  # one such answer may be a mistake on the way

    def save_header(self) -> None:
        """Save what was read from the beginning of the file on in the cache."""
        header = bytearray()
        for start, data in sorted(self._ranges):
            header += data if start == len(header) else b""
        about = {"file": self.path, "commit": self.commit, "size": str(self.size)}
        write_layer(self._header_path, {"header": torch.frombuffer(header, dtype=torch.uint8)}, about)

    def read(self, offset: int, length: int) -> bytearray:
        if offset + length > self.size:
            raise ValueError(
                f"{self.path} is truncated: cannot read bytes {offset} to {offset + length} of {self.size}."
            )
        data = bytearray()
        while len(data) < length:
            at = offset + len(data)
            found = next((r for r in self._ranges if r[0] <= at < r[0] + len(r[1])), None)
            if found is None:
                self._fetch([(at, offset + length)])
            else:
                start, content = found
                data += memoryview(content)[at - start : offset + length - start]
        self.bytes_read += length
        return data

    def prefetch(self, ranges: list[tuple[int, int]]) -> None:
        """Download `(start, stop)` ranges into memory, in few requests, with a progress bar."""
        merged: list[tuple[int, int]] = []
        for start, stop in sorted(ranges):
            if any(begin <= start and stop <= begin + len(content) for begin, content in self._ranges):
                continue
            if merged and start <= merged[-1][1] + GAP:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((start, stop))
        self._fetch(merged, progress=True)

    def close(self) -> None:
        """Free the memory of the ranges."""
        self._ranges = []

    def refuse_offline(self) -> None:
        if self._offline:
            raise LocalEntryNotFoundError(
                f"{self.path} at {self.commit}: the requested tensors are not in the cache, and cannot be downloaded "
                "in offline mode (HF_HUB_OFFLINE, local_files_only)."
            )

    def _fetch(self, ranges: list[tuple[int, int]], progress: bool = False) -> None:
        if not ranges:
            return
        self.refuse_offline()
        fetched = [(start, bytearray(stop - start)) for start, stop in ranges]
        pieces = [
            (start + at, memoryview(data)[at : at + PIECE])
            for start, data in fetched
            for at in range(0, len(data), PIECE)
        ]
        total = sum(len(data) for _, data in fetched)
        with (
            tqdm(total=total, unit="B", unit_scale=True, desc=self.path, disable=None if progress else True) as bar,
            ThreadPoolExecutor(PARALLEL) as pool,
        ):
            tasks = [pool.submit(self._get, start, data, bar) for start, data in pieces]
            try:
                for task in tasks:
                    task.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        self._ranges += fetched

    def _get(self, start: int, data: memoryview, bar: tqdm) -> None:
        """Request the bytes from `start` on that fill `data`, and again those that a response lacks."""
        done, failures, reason = 0, 0, ""
        while done < len(data):
            headers = build_hf_headers(token=self._token)
            headers |= {"Range": f"bytes={start + done}-{start + len(data) - 1}", "Accept-Encoding": "identity"}
            before = done
            # The client itself drops the token if a redirect leads to another host.
            with http_stream_backoff(
                "GET", self._url, headers=headers, follow_redirects=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            ) as response:
                if response.status_code >= 400:
                    response.read()
                hf_raise_for_status(response)
                length = self._check_response(response, start + done, start + len(data))
                try:
                    for content in response.iter_raw():
                        content = content[: before + length - done]
                        data[done : done + len(content)] = content
                        done += len(content)
                        bar.update(len(content))
                except HTTPError as error:
                    reason = f" ({error})"
            failures = 0 if done > before else failures + 1
            if done < len(data):
                time.sleep(0.1 * 2**failures)
            if failures == TRIES:
                raise OSError(
                    f"{self.path}: the connection broke off {TRIES} times at byte {start + done} of {self.size}"
                    f"{reason}. Try again; complete layers stay in the cache."
                )

    def _check_response(self, response: Any, start: int, stop: int) -> int:
        """Refuse an answer that is not of bytes `start` to `stop` or the first of them; return how many it has."""
        kind, given = (response.headers.get(name, "") for name in ("Content-Type", "Content-Range"))
        if response.status_code == 200 and self.size == 0 and not kind.startswith("text/html"):
            raise RangesIgnored(f"{self.path}: the server ignores range requests.")
        content = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", given)
        if (
            response.status_code != 206
            or kind.startswith("text/html")
            or content is None
            or int(content[1]) != start
            or not start <= int(content[2]) < stop
        ):
            raise OSError(
                f"{self.path} at {self.commit}: the server did not answer with the requested bytes {start} to {stop}, "
                f"but with status {response.status_code}, Content-Type {kind!r} and Content-Range {given!r}. Nothing "
                "of it is kept; try again."
            )
        if self.size not in (0, int(content[3])):
            raise OSError(f"{self.path} at {self.commit} changed its size while it was read. Try again.")
        self.size = int(content[3])
        if stop > self.size:
            raise ValueError(f"{self.path} is truncated: it has {self.size} bytes. Its upload is damaged.")
        return int(content[2]) + 1 - start


def open_hub_files(files: Sequence[HubFile], parse: Callable[..., T]) -> T:
    """
    Open files of one repository that belong together, such as the parts of a split GGUF file.

    Args:
        files (`Sequence[HubFile]`): the files.
        parse (`Callable`): reads their headers. Those in the cache that it does not accept are requested again.

    Raises:
        `RangesIgnored`: if the server ignores range requests.
        `OSError`: huggingface_hub's errors for a missing, gated or private repository and for a failed connection.
        `ValueError`: that of `parse`.
    """

    def parse_cached() -> T | None:
        with suppress(ValueError):
            if all(file.load_header() for file in files):
                return parse(*files)
        return None

    parsed = parse_cached()
    if parsed is None:
        files[0].refuse_offline()
        with locked(files[0].folder):
            parsed = parse_cached()  # another process may have downloaded them meanwhile
            if parsed is None:
                for file in files:
                    file.request_header()
                parsed = parse(*files)
                for file in files:
                    file.save_header()
    return parsed


def is_offline(hub_kwargs: dict[str, Any]) -> bool:
    return bool(constants.HF_HUB_OFFLINE or hub_kwargs.get("local_files_only"))
