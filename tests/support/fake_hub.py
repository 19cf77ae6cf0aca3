"""The part of the Hugging Face Hub's HTTP interface that a push uses: repositories of one branch in memory.

Written after huggingface_hub 2.4 (hf_api.py, _commit_api.py, lfs.py) and the hub's own documentation. Large
files go by git-lfs, the protocol that every client knows (`HF_HUB_DISABLE_XET=1`); Xet is not imitated.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_secret_of_the_tests"
LARGE = (".safetensors", ".gguf")


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    commits: list[tuple[str, str, str]] = field(default_factory=lambda: [("0" * 40, "initial commit", "")])
    """Id, title and text of each, the newest last."""
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return self.commits[-1][0]

    @property
    def card(self) -> dict[str, Any]:
        text = self.files.get("README.md", b"").decode()
        return yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}


@dataclass
class FakeHub:
    endpoint: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    """Content by SHA-256, as git-lfs keeps it."""
    faults: list[tuple[str, int]] = field(default_factory=list)
    """Part of an address and the status with which the next request there is answered."""
    requests: list[str] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """Variables with which the hub's own client talks to this one."""
        online = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": TOKEN, **online}


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def faults_of_card(text: str) -> list[dict[str, str]]:
    """Faults of a card by the schema that the hub has for metrics, and by the keys that it documents."""
    from huggingface_hub.repocard_data import model_index_to_eval_results

    front = yaml.safe_load(text.split("---")[1])
    found = [f'"{key}" is not allowed to be empty' for key, value in front.items() if value in (None, "", [])]
    if front.get("license") == "other" and not front.get("license_name"):
        found.append('"license_name" is required')
    if (index := front.get("model-index")) is not None:
        _, results = model_index_to_eval_results(index)
        found += [f"{one.metric_name} has no value" for one in results if one.metric_value is None]
    return [{"message": one} for one in found]


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: Any = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {path}")
        for index, (part, status) in enumerate(self.hub.faults):
            if part in path:
                del self.hub.faults[index]
                return self.answer(status, {"error": "planted"})
        if path.startswith("/upload/"):
            # An address that the hub signed; no token is sent there.
            digest = hashlib.sha256(body).hexdigest()
            self.hub.large[digest] = body
            return self.answer(200 if digest == path.rpartition("/")[2] else 400, {})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if "/resolve/" in path:
            return self.content(path)
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": faults_of_card(json.loads(body)["content"]), "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(json.loads(body))
        return self.of_repository(path.removeprefix("/api/models/").split("/"), body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def content(self, path: str) -> None:
        """A file that git holds, as it is at the head."""
        name, _, at = path.removeprefix("/").partition("/resolve/")
        found = self.hub.repositories[name]
        revision, _, file = at.partition("/")
        assert revision == found.head, at
        data = found.files[file]
        self.send_response(200)
        self.send_header("X-Repo-Commit", found.head)
        self.send_header("ETag", f'"{git_hash(data)}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            url = f"{self.hub.endpoint}/{name}"
            return self.answer(409, {"error": "You already created this model repo", "url": url})
        self.hub.repositories[name] = Repository(private=asked.get("visibility") == "private")
        return self.answer(200, {"url": f"{self.hub.endpoint}/{name}"})

    def batch(self, asked: dict[str, Any]) -> None:
        found = []
        for one in asked["objects"]:
            href = {"href": f"{self.hub.endpoint}/upload/{one['oid']}"}
            there = one["oid"] in self.hub.large
            found.append({**one} if there else {**one, "actions": {"upload": href}})
        return self.answer(200, {"transfer": "basic", "objects": found})

    def of_repository(self, parts: list[str], body: bytes) -> None:
        name, rest = "/".join(parts[:2]), parts[2:]
        found = self.hub.repositories.get(name)
        if found is None:
            return self.answer(404, {"error": "Repository not found"})
        if not rest or rest[0] == "revision":
            return self.answer(200, self.shown(name, found))
        if rest == ["refs"]:
            tags = [
                {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": at} for tag, at in found.tags.items()
            ]
            branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": found.head}
            return self.answer(200, {"branches": [branch], "tags": tags, "converts": []})
        if rest[0] == "preupload":
            return self.answer(200, {"files": [self.mode(found, one) for one in json.loads(body)["files"]]})
        if rest[0] == "tag":
            tag = json.loads(body)["tag"]
            if tag in found.tags:
                return self.answer(409, {"error": "Tag exists"})
            found.tags[tag] = found.head if rest[1] == "main" else rest[1]
            return self.answer(200, {})
        assert rest[0] == "commit", rest
        return self.commit(found, [json.loads(line) for line in body.splitlines()])

    def shown(self, name: str, found: Repository) -> dict[str, Any]:
        siblings = []
        for path, data in sorted(found.files.items()):
            one: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": git_hash(data)}
            if path.endswith(LARGE):
                one["lfs"] = {
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "size": len(data),
                    "pointerSize": 134,
                }
            siblings.append(one)
        card = found.card
        return {
            "id": name, "sha": found.head, "private": found.private, "siblings": siblings,
            "cardData": card, "tags": card.get("tags", []),
        }  # fmt: skip

    def mode(self, found: Repository, asked: dict[str, Any]) -> dict[str, Any]:
        path, data = asked["path"], found.files.get(asked["path"])
        is_large = path.endswith(LARGE)
        known = hashlib.sha256(data).hexdigest() if data and is_large else git_hash(data) if data else None
        mode = "lfs" if is_large else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": known}

    def commit(self, found: Repository, lines: list[dict[str, Any]]) -> None:
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, found.head):
            return self.answer(412, {"error": "A commit has happened since."})
        for line in lines[1:]:
            kind, value = line["key"], line["value"]
            if kind == "file":
                assert value["encoding"] == "base64"
                found.files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                found.files[value["path"]] = self.hub.large[value["oid"]]
            else:
                assert kind == "deletedFile", kind
                del found.files[value["path"]]
        made = hashlib.sha1(json.dumps([found.head, header, sorted(found.files)]).encode()).hexdigest()
        found.commits.append((made, header["summary"], header.get("description", "")))
        return self.answer(
            200, {"success": True, "commitOid": made, "commitUrl": f"{self.hub.endpoint}/c/{made}"}
        )


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub on loopback, gone afterwards."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = FakeHub(f"http://127.0.0.1:{server.server_address[1]}")
    server.RequestHandlerClass = type("Handler", (Handler,), {"hub": hub})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
