"""A Hugging Face hub on this machine, which serves folders as repositories with commits and branches."""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclasses.dataclass
class Hub:
    """What the hub holds.

    Attributes:
        repositories: of each id the folder of each commit.
        branches: of each id the commit of each branch.
        gated: ids whose terms nobody has accepted.
        down: it answers nobody.
        fetched: files that were downloaded, as ID/FILE.
    """

    repositories: dict[str, dict[str, Path]] = dataclasses.field(default_factory=dict)
    branches: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    gated: set[str] = dataclasses.field(default_factory=set)
    down: bool = False
    fetched: list[str] = dataclasses.field(default_factory=list)
    endpoint: str = ""

    def add(self, id_: str, folder: Path, branch: str = "main") -> str:
        """A new commit of `folder`, to which `branch` moves."""
        commits = self.repositories.setdefault(id_, {})
        commit = hashlib.sha1(f"{id_} {len(commits)}".encode()).hexdigest()
        commits[commit] = folder
        self.branches.setdefault(id_, {})[branch] = commit
        return commit


class _RefusalError(Exception):
    def __init__(self, status: int, code: str, commit: str = "") -> None:
        self.status = status
        self.headers = {"X-Error-Code": code} | ({"X-Repo-Commit": commit} if commit else {})


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run a hub; its `endpoint` is for HF_ENDPOINT."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def log_message(self, *_: object) -> None: ...

        def _answer(self, *, body: bool) -> None:
            if hub.down:
                self.close_connection = True
                return
            try:
                content, headers = _content(hub, self.path.partition("?")[0].strip("/"), body=body)
                status = 200
            except _RefusalError as refused:
                status, content, headers = refused.status, b"{}", refused.headers
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _content(hub: Hub, path: str, *, body: bool) -> tuple[bytes, dict[str, str]]:
    """/api/models/ID[/revision/REVISION], /api/models/ID/tree/REVISION, or /ID/resolve/REVISION/FILE."""
    api = path.startswith("api/models/")
    owner, name, *rest = path.removeprefix("api/models/").split("/")
    id_ = f"{owner}/{name}"
    if id_ in hub.gated:
        raise _RefusalError(403, "GatedRepo")
    if id_ not in hub.repositories:
        raise _RefusalError(401, "RepoNotFound")
    revision = rest[1] if len(rest) > 1 else "main"
    commit = hub.branches[id_].get(revision, revision)
    if commit not in hub.repositories[id_]:
        raise _RefusalError(404, "RevisionNotFound")
    folder = hub.repositories[id_][commit]
    if api and (not rest or rest[0] in ("revision", "tree")):
        sizes = {
            str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()
        }
        tree = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes.items()]
        model = {"id": id_, "sha": commit, "siblings": [{"rfilename": name} for name in sizes]}
        told = tree if rest[:1] == ["tree"] else model
        return json.dumps(told).encode(), {"Content-Type": "application/json"}
    file = folder / "/".join(rest[2:])
    if api or rest[0] != "resolve" or not file.is_file():
        raise _RefusalError(404, "EntryNotFound", commit)
    content = file.read_bytes()
    if body:
        hub.fetched.append(f"{id_}/{file.relative_to(folder)}")
    etag = hashlib.sha256(content).hexdigest()
    return content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
