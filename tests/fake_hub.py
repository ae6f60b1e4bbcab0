"""The few answers of a model hub that a download needs, on 127.0.0.1."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from support import served

NAME = "naver-hyperclovax/mini"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What it serves, how it fails, and what was asked of it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.refuse: dict[str, tuple[int, str]] = {}  # part of a path -> status, X-Error-Code
        self.fetched: list[str] = []
        self.url = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        for part, (status, code) in self.refuse.items():
            if part in path:
                return status, {"X-Error-Code": code} if code else {}, b"{}"
        if path in (f"/api/models/{NAME}/revision/{r}" for r in ("main", COMMIT)):
            files = [{"rfilename": f.name, "size": f.stat().st_size} for f in self.folder.iterdir()]
            info = {"id": NAME, "sha": COMMIT, "siblings": files}
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        if path.startswith("/api/models/") and "/revision/" in path:
            known = path.startswith(f"/api/models/{NAME}/")
            return 404, {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"}, b"{}"
        file = self.folder / path.rsplit("/", 1)[-1]
        if not path.startswith(f"/{NAME}/resolve/{COMMIT}/") or not file.exists():
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        content = file.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, content


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self, body: bool = False) -> None:
            status, headers, content = hub.answer(self.path.split("?")[0])
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                hub.fetched.append(self.path.split("?")[0].rsplit("/", 1)[-1])
                self.wfile.write(content)

        def do_GET(self) -> None:
            self.do_HEAD(body=True)

        def log_message(self, *args) -> None:
            pass

    with served(Handler) as hub.url:
        yield
