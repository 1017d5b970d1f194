"""A Hugging Face hub for tests, in a thread: what `huggingface_hub` asks for to make a repository, commit and download.

Repositories have branches and commits; a commit takes NDJSON with files in base64, and larger files by LFS, which are
held to their sha256. Tokens, rights and private repositories are heeded, and a card's front matter is validated.
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
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from support.stub import in_thread

REVISION = r"(?P<revision>[^/]+)"
REPOSITORY = r"(?P<repository>[^/]+/[^/]+)"
Files = dict[str, bytes]
Answer = tuple[int, dict[str, str], bytes]  # status, headers, body


@dataclass
class Token:
    """Whose it is, and whether it may write what is theirs."""

    owner: str
    writes: bool = True


@dataclass
class Repository:
    """Files by the hash of their commit, and the commit of each branch; the messages of commits in their order."""

    private: bool
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: Files, message: str) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {branch} {message}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        self.messages.append(message)
        return sha

    def at(self, revision: str | None) -> str:
        """The commit of a branch, or that is named itself. Raises: Refused."""
        revision = unquote(revision or "main")
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha


class Refused(Exception):
    """What the hub answers with a status, a code and a text."""

    def __init__(self, status: int, code: str, message: str, **body: Any) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {"X-Error-Message": message}


class Hub:
    """Whose tokens it takes, what it holds, and what it was asked: method and path."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.tokens = {"hf_writes": Token("owner"), "hf_reads": Token("owner", writes=False)}
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.lock = threading.Lock()

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> Answer:
        self.asked.append((method, path))
        try:
            for verb, pattern, route in ROUTES:
                if verb == method and (found := re.fullmatch(pattern, path)):
                    with self.lock:
                        return route(self, token, body, **found.groupdict())
            raise Refused(404, "", f"no such route: {method} {path}")
        except Refused as refused:
            return refused.status, refused.headers, json.dumps(refused.body).encode()

    def whose(self, token: str | None) -> Token:
        if token not in self.tokens:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        return self.tokens[token]

    def read(self, repository: str, token: str | None) -> Repository:
        """One that this token may see."""
        there = self.repositories.get(repository)
        owner = repository.partition("/")[0]
        if there is None or (there.private and (token not in self.tokens or self.tokens[token].owner != owner)):
            raise Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        return there

    def written(self, repository: str, token: str | None) -> Repository:
        """One that this token may write."""
        self.may_write(repository.partition("/")[0], token)
        return self.read(repository, token)

    def may_write(self, owner: str, token: str | None) -> None:
        who = self.whose(token)
        if not who.writes or who.owner != owner:
            raise Refused(403, "", f"You don't have the rights to create a model under the namespace {owner!r}")

    def create(self, token: str | None, body: bytes) -> Answer:
        asked = json.loads(body)
        self.may_write(asked["organization"], token)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            raise Refused(409, "", "You already created this model repo", url=f"{self.url}/{name}")
        private = asked.get("visibility") == "private" or asked.get("private", False)
        self.repositories[name] = Repository(private)
        self.repositories[name].commit("main", {".gitattributes": b"*.safetensors filter=lfs"}, "initial commit")
        return said({"url": f"{self.url}/{name}"})

    def branch(self, token: str | None, body: bytes, repository: str, revision: str) -> Answer:
        there = self.written(repository, token)
        name = unquote(revision)
        if name in there.branches:
            raise Refused(409, "", f"Reference already exists: {name}")
        there.branches[name] = there.at(json.loads(body).get("startingPoint"))
        return said({})

    def info(self, token: str | None, body: bytes, repository: str, revision: str | None = None) -> Answer:
        there = self.read(repository, token)
        sha = there.at(revision)
        siblings = [{"rfilename": name} for name in there.commits[sha]]
        return said({"id": repository, "sha": sha, "private": there.private, "siblings": siblings})

    def validate(self, token: str | None, body: bytes) -> Answer:
        front = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        facts = yaml.safe_load(front[1]) if front else {}
        base = facts.get("base_model", "a/b")
        errors = [] if isinstance(base, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", base) else ['"base_model" is no id']
        if not isinstance(facts.get("tags", []), list):
            errors.append('"tags" must be an array')
        told = {"errors": [{"message": error} for error in errors], "warnings": []}
        return said(told, 400 if errors else 200)

    def preupload(self, token: str | None, body: bytes, repository: str, revision: str) -> Answer:
        there = self.written(repository, token)
        files = there.commits[there.at(revision)]

        def told(path: str) -> dict[str, Any]:
            large = path.endswith(".safetensors")
            oid = None if path not in files else oid_of(path, files[path])
            mode = "lfs" if large else "regular"
            return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

        return said({"files": [told(file["path"]) for file in json.loads(body)["files"]]})

    def batch(self, token: str | None, body: bytes, repository: str) -> Answer:
        self.written(repository, token)

        def told(file: dict[str, Any]) -> dict[str, Any]:
            href = f"{self.url}/blobs/{file['oid']}"
            actions = {"upload": {"href": href, "header": {}}, "verify": {"href": f"{href}/verify", "header": {}}}
            return {**file, **({} if file["oid"] in self.blobs else {"actions": actions})}

        return said({"transfer": "basic", "objects": [told(file) for file in json.loads(body)["objects"]]})

    def put(self, token: str | None, body: bytes, oid: str) -> Answer:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "", "not what its sha256 says")
        self.blobs[oid] = body
        return said({})

    def verify(self, token: str | None, body: bytes, oid: str) -> Answer:
        if len(self.blobs.get(oid, b"")) != json.loads(body)["size"]:
            raise Refused(404, "", "not uploaded")
        return said({})

    def commit(self, token: str | None, body: bytes, repository: str, revision: str) -> Answer:
        there = self.written(repository, token)
        branch = unquote(revision)
        if branch not in there.branches:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        files = dict(there.commits[there.at(branch)])
        message = ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, "", f"unknown operation {item['key']}")
        sha = there.commit(branch, files, message)
        return said({"commitUrl": f"{self.url}/{repository}/commit/{sha}", "commitOid": sha})

    def tree(self, token: str | None, body: bytes, repository: str, revision: str) -> Answer:
        there = self.read(repository, token)
        rows = []
        for path, data in there.commits[there.at(revision)].items():
            row: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
            if path.endswith(".safetensors"):
                row["lfs"] = {"oid": oid_of(path, data), "size": len(data), "pointerSize": 134}
            rows.append(row)
        return said(rows)

    def resolve(self, token: str | None, body: bytes, repository: str, revision: str, path: str) -> Answer:
        there = self.read(repository, token)
        sha = there.at(revision)
        if path not in there.commits[sha]:
            raise Refused(404, "EntryNotFound", "Entry not found")
        data = there.commits[sha][path]
        return 200, {"X-Repo-Commit": sha, "ETag": f'"{oid_of(path, data)}"'}, data


ROUTES = [
    ("POST", r"/api/repos/create", Hub.create),
    ("POST", r"/api/validate-yaml", Hub.validate),
    ("GET", rf"/api/models/{REPOSITORY}", Hub.info),
    ("GET", rf"/api/models/{REPOSITORY}/revision/{REVISION}", Hub.info),
    ("GET", rf"/api/models/{REPOSITORY}/tree/{REVISION}", Hub.tree),
    ("POST", rf"/api/models/{REPOSITORY}/branch/{REVISION}", Hub.branch),
    ("POST", rf"/api/models/{REPOSITORY}/preupload/{REVISION}", Hub.preupload),
    ("POST", rf"/api/models/{REPOSITORY}/commit/{REVISION}", Hub.commit),
    ("POST", rf"/{REPOSITORY}\.git/info/lfs/objects/batch", Hub.batch),
    ("PUT", r"/blobs/(?P<oid>\w+)", Hub.put),
    ("POST", r"/blobs/(?P<oid>\w+)/verify", Hub.verify),
    ("HEAD", rf"/{REPOSITORY}/resolve/{REVISION}/(?P<path>.+)", Hub.resolve),
    ("GET", rf"/{REPOSITORY}/resolve/{REVISION}/(?P<path>.+)", Hub.resolve),
]


def said(value: Any, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()


def oid_of(path: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if path.endswith(".safetensors") else git_hash(data)


@contextmanager
def hub_server() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            token = (self.headers.get("authorization") or "").removeprefix("Bearer ") or None
            status, headers, body = hub.answer(self.command, urlsplit(self.path).path, token, self.body())
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data

        do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815 - as the base class names them

        def log_message(self, *_: object) -> None:
            pass

    with in_thread(Handler) as url:
        hub = Hub(url)
        yield hub
