"""A Hugging Face hub on this machine: as much of its HTTP API as a download needs, and ways for it to fail."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".bin", ".safetensors", ".ckpt")


@cache
def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@cache
def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass
class Hub:
    """Serves ``repositories``: by name, the files of the one commit that each has, as branch main and tag v1."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    break_off: dict[str, list[int]] = field(default_factory=dict)
    """By file, after how many bytes each of its next downloads breaks off."""
    damaged: set[str] = field(default_factory=set)
    """Files whose bytes are not those that their hashes were taken of."""
    stall: threading.Event | None = None
    """Downloads of large files stop half way until this is set."""
    stalled: threading.Event = field(default_factory=threading.Event)
    downloads: list[tuple[str, str | None]] = field(default_factory=list)
    """The files that were asked for, each with the Range."""
    url: str = ""

    def publish(self, name: str, folder: Path) -> str:
        """Make a repository of a folder; returns its commit."""
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        self.repositories[name] = {file: path.read_bytes() for file, path in files.items()}
        return self.commit(name)

    def commit(self, name: str) -> str:
        content = "".join(file + git_name(content) for file, content in self.repositories[name].items())
        return hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest()

    def asked_for(self) -> list[str]:
        return [file for file, _ in self.downloads]


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Let ``hub.url`` answer."""
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        if hub.stall:
            hub.stall.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A downloader that hangs up is none: the tests read what is printed, and this thread outlives its test."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[0] == "storage":
            return self._download(*self._stored(parts[1]))
        if parts[:2] == ["api", "models"]:
            return self._describe("/".join(parts[2:4]), parts[5])
        return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    do_HEAD = do_GET  # noqa: N815 - the base class looks for this name

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _describe(self, name: str, revision: str) -> None:
        if self._refused(name, revision):
            return
        siblings = []
        for file, content in self.hub.repositories[name].items():
            entry: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": git_name(content)}
            if file.endswith(LARGE):
                entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 135}
            siblings.append(entry)
        self._answer(200, json.dumps({"id": name, "sha": self.hub.commit(name), "siblings": siblings}).encode())

    def _resolve(self, name: str, revision: str, file: str) -> None:
        """Small files come from here; large ones from another host, as on the real hub."""
        if self._refused(name, revision):
            return
        content = self.hub.repositories[name].get(file)
        if content is None:
            self._answer(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": self.hub.commit(name), "ETag": f'"{git_name(content)}"'}
        if file.endswith(LARGE):
            linked = {"X-Linked-ETag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
            elsewhere = f"{self.hub.url.replace('127.0.0.1', 'localhost')}/storage/{sha256(content)}"
            self._answer(302, b"", headers | linked | {"Location": elsewhere})
        else:
            self._download(file, content, headers)

    def _refused(self, name: str, revision: str) -> bool:
        """The real hub says 401 for a repository that is not there, unless the caller is known."""
        if name not in self.hub.repositories:
            self._answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif name in self.hub.gated:
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif revision not in {"main", "v1", self.hub.commit(name)}:
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            return False
        return True

    def _stored(self, wanted: str) -> tuple[str, bytes]:
        contents = (item for files in self.hub.repositories.values() for item in files.items())
        return next((file, content) for file, content in contents if sha256(content) == wanted)

    def _download(self, file: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        asked = self.headers.get("Range")
        if self.command == "GET":
            self.hub.downloads.append((file, asked))
        if file in self.hub.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        self.send_response(206 if asked else 200)
        for header, value in (headers or {}).items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(content) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self._send(file, content[start:])

    def _send(self, file: str, content: bytes) -> None:
        if self.hub.break_off.get(file):
            self.wfile.write(content[: self.hub.break_off[file].pop(0)])
            self.close_connection = True
            return
        if self.hub.stall and file.endswith(LARGE):
            self.wfile.write(content[: len(content) // 2])
            self.hub.stalled.set()
            self.hub.stall.wait()
            content = content[len(content) // 2 :]
        self.wfile.write(content)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for header, value in (headers or {}).items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
