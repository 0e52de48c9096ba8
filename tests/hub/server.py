"""A hub on the loopback: the HTTP that ModelScope's and Hugging Face's clients speak, from a dict of files.

The requests and answers are those that modelscope-hub 0.5.1 and huggingface_hub 2.4.0 send and expect.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class LoopbackHub:
    """`repos`: (kind, id) -> {path: content}. The rest says how the hub misbehaves, and what it saw."""

    repos: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    token: str | None = None
    status: int | None = None
    cut: dict[str, int] = field(default_factory=dict)
    """Path -> how many more times its transfer breaks off half-way."""
    broken_pushes: int = 0
    """How many more commits break off without an answer."""
    user: str = "somebody"
    requests: list[str] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)
    """Path -> bytes sent in all."""
    url: str = ""

    def transfers(self) -> list[str]:
        return [line for line in self.requests if line.startswith("GET FILE ")]


@contextmanager
def loopback_hub(**options: Any) -> Iterator[LoopbackHub]:
    hub = LoopbackHub(**options)

    class Bound(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: LoopbackHub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), {k: v[0] for k, v in parse_qs(parts.query).items()}
        hub = self.state
        if hub.status is not None:
            return self._json({"Code": hub.status, "Message": "told to fail", "error": "told to fail"}, hub.status)
        if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._json({"Code": 401, "Message": "who are you?", "error": "who are you?"}, 401)
        for pattern, answer in ROUTES:
            if found := re.fullmatch(pattern, path):
                return answer(self, query, **found.groupdict())
        self._missing()

    def do_PUT(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, hub = unquote(urlsplit(self.path).path), self.state
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        if hub.status is not None:
            return self._json({"Code": hub.status, "Message": "told to fail", "error": "told to fail"}, hub.status)
        is_blob = path.startswith("/blob/")  # its address is the permission
        if hub.token is not None and not is_blob and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._json({"Code": 401, "Message": "who are you?", "error": "who are you?"}, 401)
        for pattern, answer in WRITES:
            if found := re.fullmatch(pattern, path):
                return answer(self, body, **found.groupdict())
        self._missing()

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _breaks_off(self) -> bool:
        if self.state.broken_pushes > 0:
            self.state.broken_pushes -= 1
            self.close_connection = True
            self.connection.close()
            return True
        return False

    def ms_user(self, query: dict[str, str]) -> None:
        self._json({"success": True, "data": {"username": self.state.user, "Username": self.state.user}})

    def ms_create(self, body: bytes) -> None:
        said = json.loads(body)
        repo = f"{said['Path']}/{said['Name']}"
        self.state.requests.append(f"CREATE {repo} {said.get('Visibility')}")
        if ("model", repo) in self.state.repos:
            return self._json({"Code": 10030005, "Message": "already exists", "Success": False}, 409)
        self.state.repos["model", repo] = {}
        self._json({"Code": 200, "Success": True, "Data": {"Name": said["Name"]}})

    def ms_batch(self, body: bytes, repo: str) -> None:
        objects = [
            one | {"actions": {"upload": {"href": f"{self.state.url}/blob/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        self._json({"Code": 200, "Success": True, "Data": {"objects": objects}})

    def blob(self, body: bytes, oid: str) -> None:
        self.state.blobs[oid] = body
        self._json({"Code": 200})

    def ms_commit(self, body: bytes, repo: str) -> None:
        if self._breaks_off():
            return
        said = json.loads(body)
        for action in said["actions"]:
            inline = action.get("content") or ""
            large = action["type"] == "lfs"
            content = self.state.blobs[action["sha256"]] if large else base64.b64decode(inline)
            self.state.repos["model", repo][action["path"]] = content
        self.state.requests.append(f"COMMIT {repo}")
        self._json({"Code": 200, "Success": True, "Data": {"oid": COMMIT}})

    def hf_user(self, query: dict[str, str]) -> None:
        self._json({"name": self.state.user, "type": "user", "auth": {}})

    def hf_create(self, body: bytes) -> None:
        said = json.loads(body)
        repo = f"{said.get('organization') or self.state.user}/{said['name'].rsplit('/', 1)[-1]}"
        self.state.requests.append(f"CREATE {repo} private={said.get('private')}")
        status = 409 if ("model", repo) in self.state.repos else 200
        self.state.repos.setdefault(("model", repo), {})
        self._json({"url": f"{self.state.url}/{repo}", "id": repo, "name": repo}, status)

    def hf_validate(self, body: bytes) -> None:
        wrong = re.search(r"base_model: */", json.loads(body)["content"])
        errors = [{"message": "base_model must be the id of a repository"}] if wrong else []
        self._json({"warnings": [], "errors": errors}, 400 if wrong else 200)

    def hf_preupload(self, body: bytes, repo: str) -> None:
        files = [
            {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def hf_commit(self, body: bytes, repo: str) -> None:
        if self._breaks_off():
            return
        for line in body.decode().splitlines():
            said = json.loads(line)
            if said["key"] == "file":
                value = said["value"]
                self.state.repos["model", repo][value["path"]] = base64.b64decode(value["content"])
        self.state.requests.append(f"COMMIT {repo}")
        self._json({"commitUrl": f"{self.state.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT, "success": True})

    # ModelScope

    def ms_files(self, query: dict[str, str], kind: str, repo: str) -> None:
        if (files := self._files(kind[:-1], repo)) is None:
            return self._missing()
        entries = [
            {"Path": p, "Name": p, "Type": "blob", "Size": len(c), "Sha256": hashlib.sha256(c).hexdigest()}
            for p, c in files.items()
        ]
        if query.get("PageNumber", "1") != "1":
            entries = []
        self._json({"Code": 200, "Success": True, "Data": {"Files": entries, "TotalCount": len(files)}})

    def ms_file(self, query: dict[str, str], kind: str, repo: str) -> None:
        self._file(kind[:-1], repo, query["FilePath"])

    # Hugging Face

    def hf_info(self, query: dict[str, str], kind: str, repo: str) -> None:
        if (files := self._files(kind[:-1], repo)) is None:
            return self._missing()
        siblings = [{"rfilename": path} for path in files]
        self._json({"id": repo, "sha": COMMIT, "siblings": siblings, "private": False})

    def hf_tree(self, query: dict[str, str], kind: str, repo: str) -> None:
        if (files := self._files(kind[:-1], repo)) is None:
            return self._missing()
        self._json([{"type": "file", "path": p, "size": len(c), "oid": _oid(c)} for p, c in files.items()])

    def hf_file(self, query: dict[str, str], repo: str, path: str, kind: str | None = None) -> None:
        self._file("dataset" if kind else "model", repo, path)

    # Answers

    def _files(self, kind: str, repo: str) -> dict[str, bytes] | None:
        self.state.requests.append(f"{self.command} LIST {kind} {repo}")
        return self.state.repos.get((kind, repo))

    def _file(self, kind: str, repo: str, path: str) -> None:
        files = self.state.repos.get((kind, repo))
        if files is None or path not in files:
            return self._missing()
        content = files[path]
        start = 0
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start = int(asked[1])
        self.state.requests.append(f"{self.command} FILE {path} from {start}")
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{_oid(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "HEAD":
            return
        body = content[start:]
        if self.state.cut.get(path, 0) > 0:
            self.state.cut[path] -= 1
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)
        self.wfile.flush()
        self.state.served[path] = self.state.served.get(path, 0) + len(body)

    def _json(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


KIND, REPO = r"(?P<kind>models|datasets)", r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = [
    (rf"/api/v1/{KIND}/{REPO}/repo/(files|tree)", _Handler.ms_files),
    (rf"/api/v1/{KIND}/{REPO}/repo", _Handler.ms_file),
    (rf"/api/{KIND}/{REPO}/tree/[\w.-]+", _Handler.hf_tree),
    (rf"/api/{KIND}/{REPO}(/revision/[\w.-]+)?", _Handler.hf_info),
    (rf"/(?P<kind>datasets)/{REPO}/resolve/[\w.-]+/(?P<path>.+)", _Handler.hf_file),
    (rf"/{REPO}/resolve/[\w.-]+/(?P<path>.+)", _Handler.hf_file),
    ("/openapi/v1/users/me", _Handler.ms_user),
    ("/api/whoami-v2", _Handler.hf_user),
]
WRITES = [
    ("/api/v1/models", _Handler.ms_create),
    (rf"/api/v1/repos/models/{REPO}/info/lfs/objects/batch", _Handler.ms_batch),
    (r"/blob/(?P<oid>\w+)", _Handler.blob),
    (rf"/api/v1/repos/models/{REPO}/commit/[\w.-]+", _Handler.ms_commit),
    ("/api/repos/create", _Handler.hf_create),
    ("/api/validate-yaml", _Handler.hf_validate),
    (rf"/api/models/{REPO}/preupload/[\w.-]+", _Handler.hf_preupload),
    (rf"/api/models/{REPO}/commit/[\w.-]+", _Handler.hf_commit),
]
