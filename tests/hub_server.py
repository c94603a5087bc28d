"""A small Hub on the loopback address, for tests with huggingface_hub's real client.

It supports what publishing and downloading a word need: whoami, create, settings, upload (by git-LFS, not
Xet), commit, repository information, file tree, download with etags. It keeps everything in memory, and fails
where a test asks it to.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

ID = r"(?P<id>[\w.-]+/[\w.-]+)"
# from the real Hub's default .gitattributes
IN_LFS = (".safetensors", ".bin", ".pt", ".png", ".npy")


class Refused(Exception):
    """An answer other than 200."""


@dataclass
class Repository:
    """A repository: its visibility, and its files after each commit, name → content."""

    private: bool = True
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])
    messages: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    @property
    def sha(self) -> str:
        return f"{len(self.commits):040x}"


class HubServer(ThreadingHTTPServer):
    """The server and its state, which tests may inspect and change.

    Attributes:
        accounts: the answer to `whoami`, by access token.
        repositories: by id.
        asked: the name of each request, in order.
        failing: by such a name, a status to answer with; "cut" to hang up while the client is still
            sending; or "lost" to process the request and hang up before answering.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.accounts: dict[str, dict] = {}
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.failing: dict[str, int | str] = {}

    def add_account(self, token: str, name: str, *, role: str = "write", orgs=()) -> None:
        access = {"displayName": "a token", "role": role}
        self.accounts[token] = {
            "type": "user", "name": name, "orgs": [{"name": org} for org in orgs],
            "auth": {"type": "access_token", "accessToken": access},
        }  # fmt: skip

    def add_repository(self, repo_id: str, files: dict[str, bytes], *, private=False) -> None:
        self.repositories[repo_id] = Repository(private, [{}, dict(files)], ["made by hand"])


def owners(account: dict) -> set[str]:
    """The namespaces in which an account may have repositories."""
    return {account["name"], *(org["name"] for org in account["orgs"])}


class Handler(BaseHTTPRequestHandler):
    """Answers requests; each route is a method, named in ROUTES."""

    server: HubServer

    ROUTES = (
        ("whoami", "GET", r"/api/whoami-v2"),
        ("create", "POST", r"/api/repos/create"),
        ("settings", "PUT", rf"/api/models/{ID}/settings"),
        ("validate", "POST", r"/api/validate-yaml"),
        ("preupload", "POST", rf"/api/models/{ID}/preupload/main"),
        ("batch", "POST", rf"/{ID}\.git/info/lfs/objects/batch"),
        ("upload", "PUT", r"/objects/(?P<oid>[0-9a-f]{64})"),
        ("commit", "POST", rf"/api/models/{ID}/commit/main"),
        ("tree", "GET", rf"/api/models/{ID}/tree/(?P<revision>\w+)"),
        ("info", "GET HEAD", rf"/api/models/{ID}(?:/revision/(?P<revision>\w+))?"),
        ("resolve", "GET HEAD", rf"/{ID}/resolve/(?P<revision>\w+)/(?P<path>.+)"),
    )

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        routes = (
            (name, match)
            for name, methods, pattern in self.ROUTES
            if self.command in methods.split() and (match := re.fullmatch(pattern, path))
        )
        name, match = next(routes, ("", None))
        if match is None:  # the client also sends requests that these tests do not need
            return self.send(404, {"error": f"no such address: {path}"})
        self.server.asked.append(name)
        failing = self.server.failing.get(name)
        if failing == "cut":
            return self.hang_up()
        body = self.read_body()
        try:
            if isinstance(failing, int):
                raise Refused(failing, "told to fail")
            answer = getattr(self, name)(body, **match.groupdict())
        except Refused as refused:
            status, message, *code = refused.args
            headers = {"X-Error-Code": code[0]} if code else {}
            return self.send(status, {"error": message}, **headers)
        if failing == "lost":
            return self.hang_up()
        if answer is not None:
            self.send(200, answer)

    do_GET = do_POST = do_PUT = do_HEAD = handle_request

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def send(self, status: int, answer: dict | list | bytes, **headers: str) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        headers.setdefault("Content-Type", "application/json")
        headers.setdefault("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments) -> None:
        """Say nothing."""

    # Permissions

    def account(self) -> dict:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in self.server.accounts:
            raise Refused(401, "Invalid username or password.")
        return self.server.accounts[token]

    def may_write(self, namespace: str) -> None:
        account = self.account()
        role = account["auth"]["accessToken"]["role"]
        if namespace not in owners(account) or role == "read":
            raise Refused(403, f"You don't have the rights to write under {namespace!r}")

    def repository(self, repo_id: str, *, write: bool = False) -> Repository:
        """The repository; as on the real Hub, a private one does not exist for others."""
        found = self.server.repositories.get(repo_id)
        known = {owner for account in self.known() for owner in owners(account)}
        if found is None or (found.private and repo_id.split("/")[0] not in known):
            raise Refused(404 if known else 401, "Repository not found", "RepoNotFound")
        if write:
            self.may_write(repo_id.split("/")[0])
        return found

    def known(self) -> list[dict]:
        """The account that sent the request, unless it is anonymous."""
        with contextlib.suppress(Refused):
            return [self.account()]
        return []

    # Routes

    def whoami(self, body: bytes) -> dict:
        return self.account()

    def create(self, body: bytes) -> dict | None:
        asked = json.loads(body)
        owner = asked.get("organization") or self.account()["name"]
        self.may_write(owner)
        repo_id = f"{owner}/{asked['name']}"
        answer = {"url": f"{self.server.url}/{repo_id}"}
        if repo_id in self.server.repositories:
            return self.send(409, {"error": "You already created this model repo", **answer})
        private = asked.get("private") is True or asked.get("visibility") == "private"
        self.server.repositories[repo_id] = Repository(private)
        return answer

    def settings(self, body: bytes, id: str) -> dict:
        asked = json.loads(body)
        private = asked.get("private") is True or asked.get("visibility") == "private"
        self.repository(id, write=True).private = private
        return {"private": private}

    def validate(self, body: bytes) -> dict:
        content = json.loads(body)["content"]
        front = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        data = yaml.safe_load(front[1]) if front else None
        errors = [] if isinstance(data, dict) else [{"message": "no metadata"}]
        return {"errors": errors, "warnings": []}

    def preupload(self, body: bytes, id: str) -> dict:
        self.repository(id, write=True)
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(IN_LFS) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
        }

    def batch(self, body: bytes, id: str) -> dict:
        self.repository(id, write=True)
        objects = json.loads(body)["objects"]
        for one in objects:
            if one["oid"] not in self.server.objects:
                one["actions"] = {"upload": {"href": f"{self.server.url}/objects/{one['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def upload(self, body: bytes, oid: str) -> dict:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "the content is not what was announced")
        self.server.objects[oid] = body
        return {}

    def commit(self, body: bytes, id: str) -> dict:
        repository = self.repository(id, write=True)
        files = dict(repository.files)
        for line in map(json.loads, body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        repository.commits.append(files)
        repository.messages.append(message)
        return {
            "commitUrl": f"{self.server.url}/{id}/commit/{repository.sha}",
            "commitOid": repository.sha,
        }

    def info(self, body: bytes, id: str, revision: str | None = None) -> dict:
        repository = self.repository(id)
        return {
            "id": id, "sha": repository.sha, "private": repository.private, "tags": [],
            "siblings": [{"rfilename": name} for name in repository.files],
        }  # fmt: skip

    def tree(self, body: bytes, id: str, revision: str) -> list:
        files = self.repository(id).files
        return [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in files.items()
        ]

    def resolve(self, body: bytes, id: str, revision: str, path: str) -> None:
        repository = self.repository(id)
        if path not in repository.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        data = repository.files[path]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        self.send(200, data, ETag=etag, X_Repo_Commit=repository.sha, Content_Type="text/plain")


@contextlib.contextmanager
def serving() -> Iterator[HubServer]:
    """A running server on a free port."""
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def environment(server: HubServer, home: object) -> dict[str, str]:
    """Environment variables that connect the Hub client of a new process to `server`."""
    return {
        "HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0", "HF_TOKEN": "",
    }  # fmt: skip


def connect(monkeypatch, server: HubServer, home: object) -> None:
    """Connect the Hub client of this process, already imported, to `server`."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": server.url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": f"{home}/hub", "HF_HOME": str(home),
        "HF_TOKEN_PATH": f"{home}/token",
    }.items():  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    # the client waits 1, 2, 4 … seconds between retries
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
