"""A server with the part of the Hugging Face hub's interface that pushes and downloads use.

It is strict: it keeps what it is sent, checks digests, tokens and parents of commits, and answers
with the statuses of the hub. `python tests/stand_in_hub.py FOLDER` serves a folder as the data set
`DATA` until it is stopped.
"""

import base64
import contextlib
import functools
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_of_the_stand_in"  # may write to repositories of OWNER
OWNER = "someone"
DATA = "some/data"  # the data set whose files are those of a folder, and its only commit:
DATA_SHA = "0123456789abcdef0123456789abcdef01234567"


class Folder(Mapping[str, bytes]):
    """{path: bytes} of the files of a folder, as they are when they are asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __iter__(self) -> Iterator[str]:
        paths = sorted(path for path in self.root.rglob("*") if path.is_file())
        return (path.relative_to(self.root).as_posix() for path in paths)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, name: str) -> bytes:
        path = self.root / name
        if not path.is_file():
            raise KeyError(name)
        return _read(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read(path: Path, changed: int) -> bytes:
    return path.read_bytes()


class Repository:
    """Commits, {path: bytes} each, and branches."""

    def __init__(self, private: bool, files: dict[str, bytes] | None = None) -> None:
        self.private: bool = private
        self.commits: dict[str, Mapping[str, bytes]] = {}
        self.messages: list[str] = []
        self.branches = {
            "main": self.commit({".gitattributes": b"*.safetensors lfs\n"} | (files or {}))
        }

    def commit(self, files: dict[str, bytes]) -> str:
        """Keep the files; returns the name of the commit."""
        content = [len(self.commits), *((path, files[path].hex()) for path in sorted(files))]
        sha = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        self.commits[sha] = files
        return sha

    def sha(self, revision: str) -> str | None:
        """The commit of a branch, or of its own name."""
        return self.branches.get(revision, revision if revision in self.commits else None)


class Hub(ThreadingHTTPServer):
    """The server.

    Attributes:
      repositories: by name.
      requests: "METHOD path" of every request.
      ranges: (name, range) of every request for a part of a file.
      failing: a part of a path, and the status that requests for it are answered with.
      failures: statuses that the next requests for parts of files are answered with.
    """

    daemon_threads = True

    def __init__(self, folder: Path | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, Repository] = {}
        if folder:
            self.repositories[DATA] = data = Repository(private=False)
            data.commits, data.branches = {DATA_SHA: Folder(folder)}, {"main": DATA_SHA}
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.ranges: list[tuple[str, str]] = []
        self.failing: tuple[str, int] = ("", 0)
        self.failures: list[int] = []


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def answer(self, status: int, content: Any = b"", **headers: str) -> None:
        """Send a status with bytes, or with JSON."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str = "", message: str = "refused") -> None:
        """Send an error as the hub does."""
        headers = {"X_Error_Message": message} | ({"X_Error_Code": code} if code else {})
        self.answer(status, {"error": message}, **headers)

    def handle_any(self) -> None:
        """Read the request, and answer it by its path."""
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        part, status = self.server.failing
        if part and part in path:
            self.refuse(status)
            return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.known = token == TOKEN
        if token and not self.known and not path.startswith("/lfs/"):
            self.refuse(401, message="Invalid credentials in Authorization header")
            return
        for method, pattern, function in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == self.command.replace("HEAD", "GET"):
                function(self, **found.groupdict())
                return
        self.refuse(404, "EntryNotFound", f"{self.command} {path} is not known here")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def repository(self, name: str, write: bool = False) -> Repository | None:
        """The repository, or None after a refusal."""
        found = self.server.repositories.get(name)
        if found is None or (found.private and not self.known):
            self.refuse(404 if self.known else 401, "RepoNotFound", "Repository not found")
            return None
        if write and not (self.known and name.startswith(f"{OWNER}/")):
            self.refuse(403, message="You may not write here")
            return None
        return found

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if not self.known or asked["organization"] != OWNER:
            self.refuse(403, message="You may not create here")
        elif name in self.server.repositories:
            message = "You already created this model repo"
            self.answer(409, {"error": message, "url": f"{self.server.url}/{name}"})
        else:
            self.server.repositories[name] = Repository(asked.get("visibility") == "private")
            self.answer(200, {"url": f"{self.server.url}/{name}", "name": name, "id": name})

    def branch(self, name: str, branch: str) -> None:
        if repository := self.repository(name, write=True):
            if branch in repository.branches:
                self.refuse(409, message="Reference already exists")
                return
            repository.branches[branch] = repository.branches["main"]
            self.answer(200, {})

    def info(self, name: str, revision: str = "main") -> None:
        if repository := self.repository(name):
            sha = repository.sha(revision or "main")
            if sha is None:
                self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
                return
            siblings = [{"rfilename": path} for path in sorted(repository.commits[sha])]
            said = {"id": name, "sha": sha, "siblings": siblings, "private": repository.private}
            self.answer(200, said)

    def preupload(self, name: str, revision: str) -> None:
        if self.repository(name, write=True):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(self.body)["files"]
            ]
            self.answer(200, {"files": files})

    def batch(self, name: str) -> None:
        if self.repository(name, write=True):
            objects = []
            for item in json.loads(self.body)["objects"]:
                to = {"href": f"{self.server.url}/lfs/{item['oid']}"}
                verify = {"href": f"{self.server.url}/{name}/verify"}
                actions = {"upload": to, "verify": verify}
                objects.append(
                    item | ({} if item["oid"] in self.server.stored else {"actions": actions})
                )
            self.answer(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.refuse(400, message="the content has another digest")
            return
        self.server.stored[oid] = self.body
        self.answer(200)

    def verify(self, name: str) -> None:
        asked = json.loads(self.body)
        sound = len(self.server.stored.get(asked["oid"], b"")) == asked["size"]
        self.answer(200 if sound else 400, {})

    def commit(self, name: str, revision: str) -> None:
        if not (repository := self.repository(name, write=True)):
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") != repository.branches[revision]:
            self.refuse(412, message="A commit has happened since")
            return
        files = dict(repository.commits[repository.branches[revision]])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        repository.branches[revision] = repository.commit(files)
        repository.messages.append(header["summary"])
        sha = repository.branches[revision]
        self.answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{sha}", "commitOid": sha})

    def tree(self, name: str, revision: str, below: str | None) -> None:
        if repository := self.repository(name):
            files = repository.commits[repository.sha(revision) or ""]
            found = {str(path) for file in files for path in _with_parents(file)} - {"."}
            if below:
                found = {path for path in found if path.startswith(f"{below}/")}
            query = parse_qs(urlsplit(self.path).query)
            if query.get("recursive", [""])[0].lower() not in ("1", "true"):
                depth = 1 + len(PurePosixPath(below or "").parts)
                found = {path for path in found if len(PurePosixPath(path).parts) == depth}
            if below and not found:
                self.refuse(404, "EntryNotFound", "Entry not found")
                return
            self.answer(200, [_entry(files, path) for path in sorted(found)])

    def entries(self, name: str, revision: str) -> None:
        if repository := self.repository(name):
            files = repository.commits[repository.sha(revision) or ""]
            known = {str(path) for file in files for path in _with_parents(file)}
            text = self.body.decode()
            asked = (
                json.loads(text)["paths"] if text[:1] == "{" else parse_qs(text).get("paths", [])
            )
            self.answer(200, [_entry(files, path) for path in asked if path in known])

    def resolve(self, name: str, revision: str, path: str) -> None:
        if not (repository := self.repository(name)):
            return
        sha = repository.sha(revision)
        data = repository.commits.get(sha or "", {}).get(path)
        if sha is None or data is None:
            self.refuse(404, "EntryNotFound" if sha else "RevisionNotFound", "not found")
            return
        part = self.headers.get("Range", "")
        if part and self.command == "GET":
            self.server.ranges.append((PurePosixPath(path).name, part))
            if self.server.failures:
                self.refuse(self.server.failures.pop(0))
                return
            first, last = part.removeprefix("bytes=").split("-")
            self.answer(206, data[int(first) : int(last or len(data)) + 1], X_Repo_Commit=sha)
            return
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        self.answer(200, data, ETag=etag, X_Repo_Commit=sha, X_Linked_Size=str(len(data)))

    def validate(self) -> None:
        content = json.loads(self.body)["content"]
        try:
            sound = isinstance(yaml.safe_load(content.split("---\n")[1]), dict)
        except (yaml.YAMLError, IndexError):
            sound = False
        self.answer(200 if sound else 400, {"errors": [], "warnings": []})


def _with_parents(file: str) -> list[PurePosixPath]:
    return [PurePosixPath(file), *PurePosixPath(file).parents]


def _entry(files: Mapping[str, bytes], path: str) -> dict[str, Any]:
    """What the hub says of a file, or of a directory."""
    if path not in files:
        oid = hashlib.sha1(path.encode()).hexdigest()
        return {"type": "directory", "path": path, "oid": oid, "size": 0}
    data = files[path]
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry = {"type": "file", "path": path, "oid": oid, "size": len(data)}
    if path.endswith(".safetensors"):
        of_content = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": of_content, "size": len(data), "pointerSize": 130}
    return entry


_REPOSITORY = r"/api/(?:models|datasets)/(?P<name>[\w.-]+/[\w.-]+)"
_NAME, _REVISION = r"(?P<name>[\w.-]+/[\w.-]+)", r"(?P<revision>[\w./-]+)"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", f"/api/models/{_NAME}/branch/(?P<branch>.+)", Handler.branch),
    ("GET", _REPOSITORY, Handler.info),
    ("GET", f"{_REPOSITORY}/revision/{_REVISION}", Handler.info),
    ("POST", f"/api/models/{_NAME}/preupload/{_REVISION}", Handler.preupload),
    ("POST", f"/api/models/{_NAME}/commit/{_REVISION}", Handler.commit),
    ("GET", rf"{_REPOSITORY}/tree/(?P<revision>[\w.-]+)(?:/(?P<below>.+))?", Handler.tree),
    ("POST", rf"{_REPOSITORY}/paths-info/{_REVISION}", Handler.entries),
    ("POST", f"/{_NAME}.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", Handler.store),
    ("POST", f"/{_NAME}/verify", Handler.verify),
    (
        "GET",
        rf"(?:/datasets)?/{_NAME}/resolve/(?P<revision>[0-9a-f]+|main)/(?P<path>.+)",
        Handler.resolve,
    ),
]


@contextlib.contextmanager
def serving(folder: Path | None = None) -> Iterator[Hub]:
    """A hub at an own port of this machine, with the data set of a folder."""
    hub = Hub(folder)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


if __name__ == "__main__":
    with serving(Path(sys.argv[1])) as served:
        print(served.url, flush=True)
        threading.Event().wait()
