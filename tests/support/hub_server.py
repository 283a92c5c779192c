"""A local Hub server: the part of the HTTP API that huggingface_hub 2 uses to upload, query and download.

Files are kept in memory by SHA-256; with xet, hf_xet reads and writes them in a local folder. `interrupt` breaks
off uploads. The client must run in another process with `HF_ENDPOINT` set: huggingface_hub reads it at import.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_" + "x" * 10  # too short for a real one
LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "other", "unknown"}
REPOSITORY = r"/(?P<kind>models|datasets)/(?P<id>[\w.-]+/[\w.-]+)"


@dataclass
class Repository:
    kind: str
    private: bool
    files: dict[str, bytes | str] = field(default_factory=dict)
    """Name -> the content of a small file, or the SHA-256 of a large one."""
    commits: list[dict[str, Any]] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(json.dumps([len(self.commits), self.kind]).encode()).hexdigest()


@dataclass
class Hub:
    """The state of the server, and the requests that it received.

    Attributes:
        stored: large files by SHA-256, committed or not.
        received: (method, path, bytes) of each request served to its end.
        interrupt: called with the SHA-256 before a large file is stored. It returns None to store the file, "drop"
            to close the connection half-way, or "hold" to read half and wait.
        xet: the folder that hf_xet uses; None if large files are uploaded by LFS.
    """

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    collections: dict[str, dict[str, Any]] = field(default_factory=dict)
    received: list[tuple[str, str, int]] = field(default_factory=list)
    interrupt: Callable[[str], str | None] = lambda oid: None
    holding: threading.Event = field(default_factory=threading.Event)
    xet: Path | None = None
    url: str = ""
    xet_files: dict[str, tuple[str, int]] = field(default_factory=dict)
    """SHA-256 -> xet hash and size. The real Hub reads them from hf_xet's upload; here the tests register them."""

    def will_get(self, *files: Path) -> None:
        """Registers the xet hashes of files that will be uploaded."""
        import hf_xet

        for path, info in zip(files, hf_xet.hash_files([str(path) for path in files]), strict=True):
            self.xet_files[hashlib.sha256(path.read_bytes()).hexdigest()] = (info.hash, path.stat().st_size)

    def sent(self, part: str) -> list[str]:
        """Paths of served requests whose 'method path' contains `part`."""
        return [path for method, path, _ in self.received if part in f"{method} {path}"]


@contextmanager
def serving(xet: Path | None = None) -> Iterator[Hub]:
    hub = Hub(xet=xet)

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None: ...

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        if self.command == "PUT" and path.startswith("/lfs/"):
            if not self._take(path.rpartition("/")[2], length):
                return
        else:
            self._body = self.rfile.read(length)
        for method, form, answer in ROUTES:
            match = re.fullmatch(form, path)
            if match and self.command in method:
                try:
                    answer(self, **match.groupdict())
                except _Refused as refused:
                    headers = {"X-Error-Message": refused.message, "X-Error-Code": refused.code}
                    self._send({"error": refused.message}, refused.status, headers)
                self.state.received.append((self.command, path, length))
                return
        self._send({"error": f"no route for {self.command} {path}"}, 404)

    def _take(self, oid: str, length: int) -> bool:
        what = self.state.interrupt(oid)
        self._body = self.rfile.read(length // 2 if what else length)
        if what == "hold":
            self.state.holding.set()
            self.rfile.read(1)  # blocks until the client dies
            time.sleep(0.05)
        if what:
            self.close_connection = True
            self.connection.close()
        return not what

    def _json(self) -> Any:
        return json.loads(self._body)

    def _send(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _authorised(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Refused(401, "Invalid username or password.")

    def _repository(self, kind: str | None, id: str) -> Repository:
        repository = self.state.repositories.get((kind or "models", id))
        if repository is None or (repository.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            raise _Refused(401, "Repository not found", "RepoNotFound")
        return repository

    # --- Routes ---

    def whoami(self) -> None:
        self._authorised()
        self._send({"name": "me", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def create(self) -> None:
        self._authorised()
        body = self._json()
        key = (f"{body.get('type') or 'model'}s", f"{body.get('organization') or 'me'}/{body['name']}")
        known = key in self.state.repositories
        self.state.repositories.setdefault(key, Repository(key[0], body.get("visibility") == "private"))
        self._send({"url": f"{self.state.url}/{key[1]}", "name": key[1]}, 409 if known else 200)

    def validate(self) -> None:
        errors = list(_card_errors(self._json()))
        self._send({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)

    def info(self, kind: str, id: str, revision: str | None = None) -> None:
        repository = self._repository(kind, id)
        siblings = [{"rfilename": name} for name in sorted(repository.files)]
        about = {"id": id, "sha": repository.sha, "private": repository.private, "tags": [], "downloads": 0}
        self._send(about | {"likes": 0, "gated": False, "disabled": False, "siblings": siblings})

    def tree(self, kind: str, id: str, revision: str, path: str | None = None) -> None:
        repository = self._repository(kind, id)
        names = [name for name in sorted(repository.files) if not path or name.startswith(f"{path}/")]
        if path and not names:
            raise _Refused(404, f"{path} does not exist", "EntryNotFound")
        parents = {str(parent) for name in names for parent in Path(name).parents if parent != Path(".")}
        entries = [self._entry(repository, name) for name in names]
        entries += [{"type": "directory", "path": folder, "oid": "0" * 40} for folder in sorted(parents)]
        here = str(Path(path or "."))
        deep = "recursive=true" in urlsplit(self.path).query.lower()
        below = [entry for entry in entries if here == "." or entry["path"].startswith(f"{here}/")]
        self._send([entry for entry in below if deep or str(Path(entry["path"]).parent) == here])

    def paths_info(self, kind: str, id: str, revision: str) -> None:
        repository = self._repository(kind, id)
        if "json" in self.headers.get("Content-Type", ""):
            paths = self._json()["paths"]
        else:
            paths = re.findall(r"paths=([^&]+)", unquote(self._body.decode()))
        folders = {str(parent) for name in repository.files for parent in Path(name).parents}
        self._send(
            [self._entry(repository, name) for name in paths if name in repository.files]
            + [{"type": "directory", "path": name, "oid": "0" * 40} for name in paths if name in folders]
        )

    def _entry(self, repository: Repository, name: str) -> dict[str, Any]:
        content = repository.files[name]
        if isinstance(content, bytes):
            return {"type": "file", "path": name, "size": len(content), "oid": _git_hash(content)}
        size, entry = self._size(content), {"type": "file", "path": name, "oid": content[:40]}
        return entry | {"size": size, "lfs": {"oid": content, "size": size, "pointerSize": 130}}

    def _size(self, oid: str) -> int:
        return self.state.xet_files[oid][1] if self.state.xet else len(self.state.stored[oid])

    def preupload(self, kind: str, id: str, revision: str) -> None:
        self._authorised()
        repository = self._repository(kind, id)
        files = []
        for file in self._json()["files"]:
            is_text = b"\0" not in base64.b64decode(file["sample"]) and file["size"] < 10_000_000
            known = repository.files.get(file["path"])
            oid = known if isinstance(known, str) else known and _git_hash(known)
            mode = "regular" if is_text else "lfs"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._send({"files": files})

    def lfs_batch(self, id: str, kind: str | None = None) -> None:
        self._authorised()
        self._repository(kind, id)
        objects = []
        for wanted in self._json()["objects"]:
            entry = dict(wanted)
            if wanted["oid"] not in self.state.stored:
                address = f"{self.state.url}/lfs/{wanted['oid']}"
                entry["actions"] = {
                    "upload": {"href": address, "header": {}},
                    "verify": {"href": f"{address}/verify", "header": {}},
                }
            objects.append(entry)
        self._send({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self._body).hexdigest() != oid:
            raise _Refused(400, "the content is not what its hash says")
        self.state.stored[oid] = self._body
        self._send({})

    def lfs_verify(self, oid: str) -> None:
        body = self._json()
        if len(self.state.stored.get(oid, b"")) != body["size"]:
            raise _Refused(404, "not there")
        self._send({})

    def xet_token(self, kind: str, id: str, what: str, revision: str) -> None:
        if what == "write":
            self._authorised()
        self._repository(kind, id)
        if self.state.xet is None:
            raise _Refused(404, "no xet here")
        address, expires = f"local://{self.state.xet}", int(time.time()) + 3600
        xet_headers = {"X-Xet-Cas-Url": address, "X-Xet-Access-Token": "t", "X-Xet-Token-Expiration": str(expires)}
        self._send({"casUrl": address, "accessToken": "t", "exp": expires}, headers=xet_headers)

    def commit(self, kind: str, id: str, revision: str) -> None:
        self._authorised()
        repository = self._repository(kind, id)
        files = dict(repository.files)
        lines = [json.loads(line) for line in self._body.splitlines()]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in (self.state.xet_files if self.state.xet else self.state.stored):
                    raise _Refused(400, f"{value['path']} was not uploaded")
                files[value["path"]] = value["oid"]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        repository.files = files
        repository.commits.append(lines[0]["value"])
        self._send(
            {
                "commitUrl": f"{self.state.url}/{id}/commit/{repository.sha}",
                "commitOid": repository.sha,
                "success": True,
            }
        )

    def resolve(self, id: str, revision: str, name: str, kind: str | None = None) -> None:
        repository = self._repository(kind, id)
        if name not in repository.files:
            raise _Refused(404, "Entry not found", "EntryNotFound")
        content = repository.files[name]
        headers = {"X-Repo-Commit": repository.sha, "Accept-Ranges": "bytes"}
        if isinstance(content, bytes):
            self._send_part(content, headers | {"ETag": f'"{_git_hash(content)}"'})
            return
        headers |= {
            "X-Linked-Etag": f'"{content}"',
            "ETag": f'"{content}"',
            "X-Linked-Size": str(self._size(content)),
        }
        if self.state.xet:
            route = f"{self.state.url}/api/{kind or 'models'}/{id}/xet-read-token/{revision}"
            headers |= {"X-Xet-Hash": self.state.xet_files[content][0], "X-Xet-Refresh-Route": route}
            self._send_part(b"", headers)
        else:
            self._send_part(self.state.stored[content], headers)

    def _send_part(self, content: bytes, headers: dict[str, str]) -> None:
        range_ = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not range_:
            self._send(content, headers=headers)
            return
        first, last = int(range_[1]), min(int(range_[2] or len(content) - 1), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(content[first : last + 1], 206, headers)

    def collection(self) -> None:
        self._authorised()
        body = self._json()
        slug = f"{body['namespace']}/{re.sub(r'[^a-z0-9]+', '-', body['title'].lower())}-0123"
        known = slug in self.state.collections
        about = {"slug": slug, "title": body["title"], "private": body["private"], "items": [], "position": 0}
        about |= {"owner": {"name": body["namespace"]}, "lastUpdated": "2026-01-01T00:00:00.000Z"}
        self.state.collections.setdefault(slug, about | {"theme": "blue", "upvotes": 0})
        self._send(self.state.collections[slug], 409 if known else 200)

    def read_collection(self, slug: str) -> None:
        self._send(self.state.collections[slug])

    def collection_item(self, slug: str) -> None:
        self._authorised()
        added, collection = self._json()["item"], self.state.collections[slug]
        known = [item["id"] for item in collection["items"]]
        if added["id"] in known:
            raise _Refused(409, "already there")
        self._repository(f"{added['type']}s", added["id"])
        item = {"_id": str(len(known)), "id": added["id"], "type": added["type"], "position": len(known)}
        collection["items"].append(item | {"repoType": added["type"]})
        self._send(collection)


def _card_errors(request: dict[str, Any]) -> Iterator[str]:
    """The Hub's errors about a card's metadata, as far as these cards need them."""
    match = re.match(r"---\n(.*?)\n---", request["content"], re.DOTALL)
    if not match:
        yield "there is no metadata"
        return
    header = yaml.safe_load(match[1])
    if "license" in header and header["license"] not in LICENSES:
        yield f'"license" must be one of {", ".join(sorted(LICENSES))}'
    for name in [header.get("base_model"), *header.get("datasets", [])]:
        if name is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            yield f"{name!r} is no name on the Hub"
    for entry in header.get("model-index", []):
        if not entry.get("name"):
            yield "model-index: an entry has no name"
        for result in entry["results"]:
            if (
                not {"task", "dataset", "metrics"} <= result.keys()
                or not {"type", "name"} <= result["dataset"].keys()
            ):
                yield "model-index: a result lacks task, dataset or metrics"
            if any(not {"type", "value"} <= metric.keys() for metric in result["metrics"]):
                yield "model-index: a metric lacks type or value"
    if request["repoType"] == "dataset" and not header.get("configs"):
        yield "a data set has no configs"


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


LFS = r"/(?:(?P<kind>datasets)/)?(?P<id>[\w.-]+/[\w.-]+)"
ROUTES: list[tuple[tuple[str, ...], str, Callable[..., None]]] = [
    (("GET",), "/api/whoami-v2", _Handler.whoami),
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", _Handler.validate),
    (("POST",), "/api/collections", _Handler.collection),
    (("GET",), r"/api/collections/(?P<slug>[\w.-]+/[\w.-]+)", _Handler.read_collection),
    (("POST",), r"/api/collections/(?P<slug>[\w.-]+/[\w.-]+)/items?", _Handler.collection_item),
    (("GET",), rf"/api{REPOSITORY}", _Handler.info),
    (("GET",), rf"/api{REPOSITORY}/revision/(?P<revision>[^/]+)", _Handler.info),
    (("GET",), rf"/api{REPOSITORY}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", _Handler.tree),
    (("POST",), rf"/api{REPOSITORY}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    (("POST",), rf"/api{REPOSITORY}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (("POST",), rf"/api{REPOSITORY}/commit/(?P<revision>[^/]+)", _Handler.commit),
    (("GET",), rf"/api{REPOSITORY}/xet-(?P<what>read|write)-token/(?P<revision>[^/]+)", _Handler.xet_token),
    (("POST",), rf"{LFS}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("PUT",), "/lfs/(?P<oid>[0-9a-f]{64})", _Handler.lfs_put),
    (("POST",), "/lfs/(?P<oid>[0-9a-f]{64})/verify", _Handler.lfs_verify),
    (("GET", "HEAD"), rf"{LFS}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.resolve),
]
"""(method, path pattern, handler)."""
