"""A hub of data sets on this machine: what reading needs of the Hugging Face hub's interface.

A folder is the data set. `python tests/local_hub.py FOLDER` serves one until it is stopped.
"""

import contextlib
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

NAME = "some/data"
REVISION = "0123456789abcdef0123456789abcdef01234567"
BLOCK = 1 << 20


class Hub(ThreadingHTTPServer):
    """Serves the folder as the data set `NAME` with the only commit `REVISION`.

    Attributes:
      endpoint: its address.
      failures: statuses with which the next requests for contents of data files end.
      ranges: (path, range asked for) of every request for contents of files.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.failures: list[int] = []
        self.ranges: list[tuple[str, str]] = []


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._contents(head=True)

    def do_GET(self) -> None:
        parts = self._parts()
        if parts[:1] != ["api"]:
            self._contents(head=False)
        elif parts[4:5] == ["tree"]:
            below = self.server.folder.joinpath(*parts[6:])
            if not below.is_dir():
                self._refuse("EntryNotFound")
                return
            query = parse_qs(urlsplit(self.path).query)
            recursive = query.get("recursive", ["false"])[0].lower() in ("1", "true")
            found = sorted(below.rglob("*") if recursive else below.iterdir())
            self._answer(json.dumps([self._entry(path) for path in found]))
        elif parts[4:5] in ([], ["revision"]):
            files = [path for path in self.server.folder.rglob("*") if path.is_file()]
            names = [path.relative_to(self.server.folder).as_posix() for path in files]
            siblings = [{"rfilename": name} for name in names]
            self._answer(json.dumps({"id": NAME, "sha": REVISION, "siblings": siblings}))
        else:
            self._refuse("EntryNotFound")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        asked = (
            json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
        )
        paths = [self.server.folder / path for path in asked]
        self._answer(json.dumps([self._entry(path) for path in paths if path.exists()]))

    def _parts(self) -> list[str]:
        return [unquote(part) for part in urlsplit(self.path).path.split("/") if part]

    def _entry(self, path: Path) -> dict[str, Any]:
        name = path.relative_to(self.server.folder).as_posix()
        oid = hashlib.sha1(name.encode()).hexdigest()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": oid, "size": 0}
        return {"type": "file", "path": name, "oid": oid, "size": path.stat().st_size}

    def _contents(self, *, head: bool) -> None:
        parts = self._parts()
        path = self.server.folder.joinpath(*parts[5:])
        if parts[1:3] != NAME.split("/"):
            self._refuse("RepoNotFound")
        elif parts[4:5] not in ([REVISION], ["main"]):
            self._refuse("RevisionNotFound")
        elif len(parts) < 6 or not path.is_file():
            self._refuse("EntryNotFound")
        else:
            asked = self.headers.get("range", "")
            if not head and asked:
                self.server.ranges.append((path.name, asked))
                if self.server.failures:
                    self._answer("", self.server.failures.pop(0))
                    return
            size = path.stat().st_size
            first, last = 0, size - 1
            if asked:
                begin, _, end = asked.removeprefix("bytes=").partition("-")
                first, last = int(begin), min(int(end or last), last)
            self.send_response(206 if asked else 200)
            self.send_header("X-Repo-Commit", REVISION)
            self.send_header("ETag", f'"{hashlib.sha1(str(path).encode()).hexdigest()}"')
            self.send_header("Content-Length", str(last - first + 1))
            self.end_headers()
            if not head:
                with path.open("rb") as file:
                    file.seek(first)
                    for at in range(first, last + 1, BLOCK):
                        self.wfile.write(file.read(min(BLOCK, last + 1 - at)))

    def _answer(self, body: str, status: int = 200) -> None:
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """A hub that answers until the end of the block."""
    with Hub(folder) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


if __name__ == "__main__":
    with serve(Path(sys.argv[1])) as served:
        print(served.endpoint, flush=True)
        threading.Event().wait()
