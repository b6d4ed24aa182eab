"""Fake Hugging Face Hub on loopback: the endpoints that huggingface_hub's client uses, served from memory."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0ffee" + 34 * "0"


def commit_of(revision: str) -> str:
    """Commit hash of a branch; a full commit hash is returned unchanged."""
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    return COMMIT if revision == "main" else hashlib.sha1(revision.encode()).hexdigest()


_INFO = re.compile(r"/api/(models|datasets)/(.+?)(?:/revision/(.+))?$")
_TREE = re.compile(r"/api/(models|datasets)/(.+?)/tree/([^/]+)$")
_FILE = re.compile(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)$")


class StandInHub:
    """`files`: contents by (kind, repository, revision), name; `asked`: method and path of all requests."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str, str], dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.token: str | None = None
        self.address = ""

    def add(self, kind: str, repo: str, files: dict[str, bytes], revision: str = "main") -> None:
        self.files[kind, repo, revision] = files

    def of(self, kind: str, repo: str, revision: str) -> dict[str, bytes] | None:
        commits = {commit_of(key[2]): key[2] for key in self.files}
        return self.files.get((kind, repo, commits.get(revision, revision.replace("%2F", "/"))))


@contextmanager
def stand_in_hub() -> Iterator[StandInHub]:
    hub = StandInHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def answer(self, code: int, content: bytes, **headers: str) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def fail(self, code: int, kind: str) -> None:
            self.answer(code, json.dumps({"error": kind}).encode(), X_Error_Code=kind, X_Error_Message=kind)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append(f"{self.command} {path}")
            if tree := _TREE.fullmatch(path):
                files = hub.of(tree[1], tree[2], tree[3]) or {}
                listed = [
                    {
                        "type": "file",
                        "path": name,
                        "size": len(content),
                        "oid": hashlib.sha1(content).hexdigest(),
                    }
                    for name, content in files.items()
                ]
                self.answer(200, json.dumps(listed).encode(), Content_Type="application/json")
            elif info := _INFO.fullmatch(path):
                kind, repo, revision = info[1], info[2], info[3] or "main"
                files = hub.of(kind, repo, revision)
                if files is None:
                    known = any(key[:2] == (kind, repo) for key in hub.files)
                    self.fail(404, "RevisionNotFound" if known else "RepoNotFound")
                    return
                told = {
                    "id": repo,
                    "sha": commit_of(revision.replace("%2F", "/")),
                    "siblings": [{"rfilename": name} for name in files],
                }
                self.answer(200, json.dumps(told).encode(), Content_Type="application/json")
            elif found := _FILE.fullmatch(path):
                kind = "datasets" if found[1] else "models"
                files = hub.of(kind, found[2], found[3])
                commit = commit_of(found[3].replace("%2F", "/"))
                if files is None:
                    self.fail(404, "RepoNotFound")
                elif found[4] not in files:
                    self.answer(
                        404,
                        b"",
                        X_Error_Code="EntryNotFound",
                        X_Repo_Commit=commit,
                    )
                else:
                    content = files[found[4]]
                    tag = hashlib.sha256(content).hexdigest()
                    self.answer(200, content, ETag=f'"{tag}"', X_Repo_Commit=commit)
            else:
                self.fail(404, "Unknown")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hub.asked.append(f"POST {self.path}")
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                self.answer(401, b'{"error": "Invalid username or password."}')
                return
            if self.path == "/api/repos/create":
                told = json.loads(body)
                repo = "/".join(filter(None, [told.get("organization"), told["name"]]))
                hub.files.setdefault(("models", repo, "main"), {})
                self.answer(200, json.dumps({"url": f"{hub.address}/{repo}"}).encode())
            elif "/preupload/" in self.path:
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                self.answer(200, json.dumps({"files": files}).encode())
            elif commit := re.fullmatch(r"/api/models/(.+)/commit/(.+?)(\?.*)?", self.path):
                files_there = hub.files.setdefault(("models", commit[1], commit[2]), {})
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        files_there[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                told = {"commitUrl": f"{hub.address}/{commit[1]}/commit/{COMMIT}", "commitOid": COMMIT}
                self.answer(200, json.dumps(told).encode())
            else:
                self.answer(200, json.dumps({"errors": [], "warnings": []}).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
