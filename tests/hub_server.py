"""A small Hugging Face Hub on loopback, for tests that use the unmodified client without a network.

Repositories live in memory. One port plays the Hub, a second one the storage behind it: LFS objects go to and come
from the second, which refuses every request that carries credentials. With `xet`, a folder, large files go there as
they do to Xet; without it, clients must set HF_HUB_DISABLE_XET=1. Discussions (of a pull request, only its opening),
multi-part uploads, paged listings and renamed repositories are not there.

    with HubServer() as hub:
        hub.put("alice/tiny", {"config.json": b"{}"})
        with hub.patched(tmp_path, user="alice"):
            huggingface_hub.snapshot_download("alice/tiny")
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socketserver
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml
from hub_xet import XetStorage

LFS_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".npy",
    ".npz",
    ".parquet",
    ".arrow",
    ".png",
    ".jpg",
    ".gz",
    ".zip",
    ".pt",
    ".gguf",
)
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()

# Without Xet, the client warns about its own way to send an LFS object: for pytest.mark.filterwarnings and for -W.
UPLOAD_WARNING = "ignore:Use 'content=<...>' to upload:DeprecationWarning"


def git_sha1(kind: str, data: bytes) -> str:
    return hashlib.sha1(b"%s %d\0" % (kind.encode(), len(data)) + data).hexdigest()


def is_lfs(path: str, sample: bytes, size: int) -> bool:
    return size > 0 and (path.endswith(LFS_SUFFIXES) or b"\0" in sample or size > 10_000_000)


class File:
    def __init__(self, data: bytes, lfs: bool, xet: str | None = None) -> None:
        self.data, self.lfs, self.xet, self.sha256 = data, lfs, xet, hashlib.sha256(data).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(data)}\n".encode()
        self.blob_id = git_sha1("blob", pointer if lfs else data)
        self.etag = self.sha256 if lfs else self.blob_id
        self.pointer_size = len(pointer)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, File) and self.blob_id == other.blob_id

    def json(self, path_key: str, path: str, id_key: str, sha_key: str) -> dict[str, Any]:
        """The routes agree on the content but not on the names."""
        entry = {path_key: path, id_key: self.blob_id, "size": len(self.data)}
        lfs = {sha_key: self.sha256, "size": len(self.data), "pointerSize": self.pointer_size}
        xet = {"xetHash": self.xet} if self.xet else {}
        return {**entry, "lfs": lfs, **xet} if self.lfs else entry


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    message: str
    author: str
    date: str
    parent: Commit | None
    files: dict[str, File]

    def history(self) -> list[Commit]:
        return [self, *(self.parent.history() if self.parent else [])]


@dataclass
class Repo:
    id: str
    type: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)  # users let into a gated repository
    refs: dict[str, Commit] = field(default_factory=dict)  # by full name: refs/heads/main
    log: list[Commit] = field(default_factory=list)

    @property
    def web(self) -> str:
        return self.id if self.type == "model" else f"{self.type}s/{self.id}"

    def find(self, revision: str) -> Commit | None:
        revision = "main" if revision == "HEAD" else revision
        for ref in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if ref in self.refs:
                return self.refs[ref]
        short = re.fullmatch("[0-9a-f]{5,40}", revision)
        return next((c for c in self.log if short and c.oid.startswith(revision)), None)

    @property
    def next_pull_request(self) -> int:
        return 1 + sum(name.startswith("refs/pr/") for name in self.refs)

    def commit(
        self, ref: str, base: Commit | None, files: dict[str, File], title: str, message: str, who: str
    ) -> Commit:
        """Move `ref` to a new commit on top of `base`, or to `base` itself when the files are the same."""
        if base is None or files != base.files:
            ids = "".join(f"{path} {file.blob_id}\n" for path, file in sorted(files.items()))
            oid = git_sha1("commit", f"{self.web} {len(self.log)} {base and base.oid} {title}\n{ids}".encode())
            date = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
            base = Commit(oid, title, message, who, date, base, files)
            self.log.append(base)
        self.refs[ref] = base
        return base


@dataclass
class Collection:
    id: str
    owner: str
    title: str
    description: str | None = None
    private: bool = False
    theme: str = "blue"
    items: list[dict[str, Any]] = field(default_factory=list)

    @property
    def slug(self) -> str:
        """Follows the title; only the id at its end stays."""
        return f"{self.owner}/{re.sub('[^a-z0-9]+', '-', self.title.lower()).strip('-')}-{self.id}"


@dataclass(frozen=True)
class Request:
    """One line of `HubServer.requests`. Status 0: the request was handled but its answer was dropped."""

    method: str
    path: str
    status: int
    query: str
    auth: bool  # whether an Authorization header came with it
    origin: str  # hub or cdn
    agent: str


@dataclass
class Reply:
    body: Any = ""  # bytes and str as they are, anything else as JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # the connection breaks after so many bytes of the body
    short: int | None = None  # the body is only so many bytes


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None, **body: str):
        text = message.encode("ascii", "replace").decode()  # the client reads the reason from headers
        headers = {"X-Error-Message": text, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self.reply = Reply({"error": message, **body}, status, headers)


Route = Callable[["Call"], Any]
ROUTES: list[tuple[str, str, re.Pattern[str], Route]] = []
SYNTAX = {
    "REPO": r"(?P<type>model|dataset|space)s/(?P<id>[^/]+(?:/[^/]+)?)",
    "WEB": r"/(?:(?P<type>dataset|space)s/)?(?P<id>[^/]+(?:/[^/]+)?)",
    "REV": r"(?P<rev>refs/[^/]+/[^/]+|[^/]+)",
    "NAME": r"(?P<name>[^/]+)",
    "PATH": r"(?P<path>.+)",
    "COLLECTION": r"(?P<owner>[^/]+)/(?P<slug>[^/]+)",
}
LIMITS = {"title": 59, "description": 150, "note": 500}  # characters, in a collection


def route(method: str, pattern: str, origin: str = "hub") -> Callable[[Route], Route]:
    regex = re.compile(re.sub("[A-Z]{3,}", lambda word: SYNTAX[word[0]], pattern))

    def add(function: Route) -> Route:
        ROUTES.append((origin, method, regex, function))
        return function

    return add


def front_matter(readme: bytes) -> Any:
    match = re.match(r"---\s*\n(.*?)^---\s*$", readme.decode(errors="replace"), re.DOTALL | re.MULTILINE)
    return (yaml.safe_load(match[1]) if match else None) or {}


def bad_configs(configs: Any) -> list[str]:
    """What the Hub's viewer would not read of a dataset card's `configs`."""
    if not isinstance(configs, list) or not all(isinstance(entry, dict) for entry in configs):
        return ['"configs" must be a list of tables']
    names = [entry.get("config_name") for entry in configs]
    problems = [f'"configs[{i}].config_name" must be a string' for i, name in enumerate(names) if type(name) is not str]
    files = [entry.get("data_files") for entry in configs]
    problems += [f'"configs[{i}].data_files" must be a path or a list' for i, f in enumerate(files) if not f]
    return problems + (['"configs" must have names that differ'] if len(names) != len({*map(str, names)}) else [])


def tree_entries(commit: Commit) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path, file in sorted(commit.files.items()):
        for folder in [parent.as_posix() for parent in Path(path).parents][-2::-1]:
            oid = git_sha1("tree", f"{commit.oid} {folder}".encode())
            found.setdefault(folder, {"type": "directory", "oid": oid, "size": 0, "path": folder})
        found[path] = {"type": "file", **file.json("path", path, "oid", "oid")}
    return found


@dataclass
class Call:
    """A request on its way through a route, with the checks that the routes share."""

    hub: HubServer
    method: str
    query: dict[str, list[str]]
    headers: Message
    body: bytes
    args: dict[str, str]  # from the path, decoded
    user: str | None = None
    role: str = ""

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["0"])[0].lower() in ("1", "true")

    def owns(self, namespace: str) -> bool:
        return self.user is not None and self.user.lower() == namespace.lower()

    def must_write(self, namespace: str | None) -> None:
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        if self.role != "write" or (namespace is not None and not self.owns(namespace)):
            raise Refusal(403, "This token does not have the right to write here")

    def visible(self, kind: str, repo_id: str) -> Repo | None:
        repo = self.hub.repos.get((kind, repo_id.lower()))
        return None if repo is None or (repo.private and not self.owns(repo_id.split("/")[0])) else repo

    def repo(self, write: bool = False, propose: bool = False, content: bool = False) -> Repo:
        """The repository of the path. Whoever sees it may propose a change; content is what a gate protects."""
        repo = self.visible(self.args.get("type") or "model", self.args["id"])
        owner = self.owns(self.args["id"].split("/")[0])
        if repo is None:
            status, message = (404, "Repository not found") if self.user else (401, "Invalid username or password.")
            raise Refusal(status, message, "RepoNotFound")
        if write:
            self.must_write(None if propose else repo.id.split("/")[0])
        if content and repo.gated and not owner and self.user not in repo.granted:
            raise Refusal(403 if self.user else 401, f"Access to {repo.id} is restricted", "GatedRepo")
        return repo

    def collection(self, write: bool = False) -> Collection:
        """The collection of the path, whatever stands before the id in its slug."""
        found = self.hub.collections.get(self.args["slug"].rpartition("-")[2])
        if found is None or (found.private and not self.owns(found.owner)):
            raise Refusal(404, "Collection not found")
        if write:
            self.must_write(found.owner)
        return found

    def collection_json(self, of: Collection, most: int | None = None) -> dict[str, Any]:
        """As this user sees it: without repositories that are private, of a listing only the first items."""
        items = [i for i in of.items if i["type"] == "paper" or self.visible(i["type"], i["id"])][:most]
        plain = {name: getattr(of, name) for name in ("slug", "title", "description", "private", "theme")}
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        return {
            **{**plain, "owner": {"name": of.owner}, "lastUpdated": now, "upvotes": 0},
            "items": [{**item, "position": place} for place, item in enumerate(items)],
        }

    def given(self, *names: str) -> dict[str, Any]:
        """Those entries of the body, where they are there."""
        for name in LIMITS.keys() & self.json.keys():
            if len(self.json[name]) > LIMITS[name]:
                raise Refusal(400, f"Too big: expected string to have <={LIMITS[name]} characters at {name}")
        return {name: self.json[name] for name in names if name in self.json}

    def at(self, repo: Repo, revision: str | None = None) -> Commit:
        revision = revision or self.args.get("rev", "main")
        if found := repo.find(revision):
            return found
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def content(self, data: bytes, headers: dict[str, str]) -> Reply:
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if wanted is None or not (wanted[1] or wanted[2]):
            return Reply(data, 200, headers)
        start = int(wanted[1]) if wanted[1] else max(0, len(data) - int(wanted[2]))
        stop = min(len(data), int(wanted[2]) + 1) if wanted[1] and wanted[2] else len(data)
        if start >= stop:
            return Reply(b"", 416, {**headers, "Content-Range": f"bytes */{len(data)}"})
        return Reply(data[start:stop], 206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

    @route("GET", "/api/agent-harnesses")
    def agent_harnesses(self) -> Any:
        return {"standardEnvVars": [], "harnesses": {}}

    @route("GET", "/api/whoami-v2")
    def whoami(self) -> Any:
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": self.role}}
        return {"type": "user", **dict.fromkeys(("id", "name", "fullname"), self.user), "orgs": [], "auth": auth}

    @route("POST", "/api/repos/create")
    def create_repo(self) -> Any:
        namespace, kind = self.json.get("organization") or self.user, self.json.get("type") or "model"
        self.must_write(namespace)
        repo_id = f"{namespace}/{self.json['name']}"
        if old := self.hub.repos.get((kind, repo_id.lower())):
            raise Refusal(409, "You already created this repo", url=f"{self.hub.endpoint}/{old.web}")
        if kind == "space" and self.json.get("sdk") not in ("static", "gradio", "docker"):
            raise Refusal(400, "A Space needs an sdk")
        repo = self.hub.add_repo(repo_id, kind, private=self.json.get("visibility") == "private")
        if kind == "space":
            card = f"---\ntitle: New\nsdk: {self.json['sdk']}\n---\n\nCheck out the configuration reference at ...\n"
            first = {"README.md": card.encode()}
            if self.json["sdk"] == "static":
                first |= {"index.html": b"<p>Welcome to your static Space!</p>", "style.css": b"p { color: red }"}
            self.hub.put(repo_id, first, repo_type="space", message="initial commit")
        return {"url": f"{self.hub.endpoint}/{repo.web}", "name": repo.id}

    @route("DELETE", "/api/repos/delete")
    def delete_repo(self) -> Any:
        self.args = {**self.json, "id": f"{self.json.get('organization') or self.user}/{self.json['name']}"}
        repo = self.repo(write=True)
        del self.hub.repos[repo.type, repo.id.lower()]
        return Reply()

    @route("GET", "/api/REPO(?:/revision/REV)?")
    def repo_info(self) -> Any:
        repo = self.repo()
        commit = self.at(repo)
        try:
            card = front_matter(commit.files["README.md"].data) if "README.md" in commit.files else {}
        except yaml.YAMLError:
            card = {}
        card = card if isinstance(card, dict) else {}
        keys = ("library_name", "pipeline_tag") if repo.type == "model" else ()
        top = {key: card[key] for key in keys if isinstance(card.get(key), str)}
        tags = [*top.values(), *(card.get("tags") or [])]
        tags += [f"{key}:{card[key]}" for key in ("license", "base_model") if isinstance(card.get(key), str)]
        siblings = [file.json("rfilename", path, "blobId", "sha256") for path, file in sorted(commit.files.items())]
        info = {
            **{"_id": git_sha1("repo", repo.web.encode())[:24], "id": repo.id, "author": repo.id.split("/")[0]},
            **{"sha": commit.oid, "lastModified": commit.date, "createdAt": repo.log[0].date},
            **{"private": repo.private, "gated": "auto" if repo.gated else False, "disabled": False},
            **{"downloads": 0, "likes": 0, "tags": list(dict.fromkeys(tags)), "cardData": card or None, **top},
            "siblings": siblings if self.flag("blobs") else [{"rfilename": entry["rfilename"]} for entry in siblings],
        }
        info |= {"sdk": card.get("sdk")} if repo.type == "space" else {}
        expand = self.query.get("expand")
        return {key: value for key, value in info.items() if not expand or key in {"_id", "id", *expand}}

    @route("GET", "/api/REPO/tree/REV(?:/PATH)?")
    def tree(self) -> Any:
        found, root = tree_entries(self.at(self.repo())), self.args.get("path", "")
        if root and found.get(root, {}).get("type") != "directory":
            raise Refusal(404, f"{root} does not exist", "EntryNotFound")
        start = f"{root}/" if root else ""
        below = [entry for path, entry in found.items() if path.startswith(start)]
        return Reply([entry for entry in below if self.flag("recursive") or "/" not in entry["path"][len(start) :]])

    @route("POST", "/api/REPO/paths-info/REV")
    def paths_info(self) -> Any:
        found = tree_entries(self.at(self.repo()))
        return Reply([found[path] for path in parse_qs(self.body.decode()).get("paths", []) if path in found])

    @route("GET", "/api/REPO/refs")
    def list_refs(self) -> Any:
        answer: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
        for ref, commit in self.repo().refs.items():
            kind, name = ref.split("/", 2)[1:]
            group = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}[kind]
            answer[group].append({"name": ref if kind == "pr" else name, "ref": ref, "targetCommit": commit.oid})
        return {key: refs for key, refs in answer.items() if key != "pullRequests" or self.flag("include_prs")}

    @route("GET", "/api/REPO/commits/REV")
    def list_commits(self) -> Any:
        history = self.at(self.repo()).history()
        names = ("title", "message", "date")
        return [{"id": c.oid, "authors": [{"user": c.author}], **{n: getattr(c, n) for n in names}} for c in history]

    @route("POST", "/api/REPO/(?P<kind>branch)/NAME")
    @route("POST", "/api/REPO/(?P<kind>tag)/REV")
    @route("DELETE", "/api/REPO/(?P<kind>branch|tag)/NAME")
    def change_ref(self) -> Any:
        repo, want = self.repo(write=True), self.json
        ref = f"refs/{'heads' if self.args['kind'] == 'branch' else 'tags'}/{self.args.get('name') or want['tag']}"
        if self.method == "POST" and ref in repo.refs:
            raise Refusal(409, f"Reference already exists: {ref}")
        if self.method == "POST":
            repo.refs[ref] = self.at(repo, want.get("startingPoint"))
        elif repo.refs.pop(ref, None) is None:
            raise Refusal(404, f"{ref} does not exist", "RevisionNotFound")
        return Reply()

    @route("POST", "/api/collections")
    def create_collection(self) -> Any:
        owner, want = self.json["namespace"], self.given("title", "description", "private")
        self.must_write(owner)
        for old in self.hub.collections.values():
            if (old.owner, old.title) == (owner, want["title"]):
                raise Refusal(409, "This collection already exists", slug=old.slug)
        number = git_sha1("collection", f"{len(self.hub.requests)} {owner} {want['title']}".encode())[:24]
        self.hub.collections[number] = Collection(number, owner, **want)
        return self.collection_json(self.hub.collections[number]) | {"position": 0}

    @route("GET", "/api/collections")
    def list_collections(self) -> Any:
        owners, items = (self.query.get(name, []) for name in ("owner", "item"))
        return [
            self.collection_json(c, 4)
            for c in self.hub.collections.values()
            if (not owners or c.owner in owners) and (not c.private or self.owns(c.owner))
            if not items or {f"{i['type']}s/{i['id']}" for i in c.items} & {*items}
        ]

    @route("GET", "/api/collections/COLLECTION")
    @route("PATCH", "/api/collections/COLLECTION")
    @route("DELETE", "/api/collections/COLLECTION")
    def one_collection(self) -> Any:
        found = self.collection(write=self.method in ("PATCH", "DELETE"))
        if self.method == "DELETE":
            del self.hub.collections[found.id]
            return {}
        if self.method == "PATCH":
            for name, value in self.given("title", "description", "private", "theme").items():
                setattr(found, name, value)
        answer = self.collection_json(found) | {"position": 0}
        return {"success": True, "data": answer} if self.method == "PATCH" else answer

    @route("POST", "/api/collections/COLLECTION/items")
    def add_item(self) -> Any:
        found, item = self.collection(write=True), self.json["item"]
        note = self.given("note").get("note")
        is_paper = item["type"] == "paper" and re.fullmatch(r"\d{4}\.\d{4,5}", item["id"])
        if not is_paper and self.visible(item["type"], item["id"]) is None:
            raise Refusal(404, f"{item['type']} {item['id']} does not exist")
        if any(item.items() <= old.items() for old in found.items):
            raise Refusal(409, "Item already in the collection")
        number = git_sha1("item", f"{len(self.hub.requests)} {found.id}".encode())[:24]
        found.items.append({"_id": number, **item, **({"note": {"text": note, "html": note}} if note else {})})
        return self.collection_json(found) | {"position": 0}

    @route("PATCH", "/api/collections/COLLECTION/items/NAME")
    @route("DELETE", "/api/collections/COLLECTION/items/NAME")
    def change_item(self) -> Any:
        items = self.collection(write=True).items
        item = next((i for i in items if i["_id"] == self.args["name"]), None)
        if item is None:
            raise Refusal(404, "Item not found")
        new = self.given("note", "position") if self.method == "PATCH" else {}
        if "note" in new:
            item["note"] = {"text": new["note"], "html": new["note"]}
        if "position" in new or self.method == "DELETE":
            items.remove(item)
        if "position" in new:
            items.insert(new["position"], item)
        return {"success": True}

    @route("POST", "/api/REPO/discussions")
    def open_pull_request(self) -> Any:
        """As with Xet, where commits go to a pull request that is opened before."""
        repo = self.repo(write=True, propose=True)
        if not self.json["pullRequest"]:
            raise Refusal(501, "This test server has no discussions")
        number = repo.next_pull_request
        repo.refs[f"refs/pr/{number}"] = self.at(repo)
        return {"num": number}

    @route("GET", "/api/REPO/discussions/NAME")
    def pull_request(self) -> Any:
        repo, number = self.repo(), self.args["name"]
        self.at(repo, f"refs/pr/{number}")
        return {
            **{"num": int(number), "title": "", "status": "draft", "isPullRequest": True, "events": []},
            **{"createdAt": repo.log[0].date, "repo": {"name": repo.id, "type": repo.type}},
            **{"changes": {"base": "refs/heads/main"}, "filesWithConflicts": []},
        }

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self) -> Any:
        try:
            card = front_matter(self.json["content"].encode())
            bad = [k for k in ("license", "base_model") if not isinstance(dict(card).get(k, ""), (str, list))]
            problems = [f'"{key}" must be a string or a list' for key in bad]
            if self.json.get("repoType") == "dataset":
                problems += bad_configs(dict(card).get("configs", []))
        except (yaml.YAMLError, TypeError, ValueError) as error:
            problems = [f"the metadata cannot be read: {error}"]
        if "text/plain" in self.headers.get("Accept", ""):
            return Reply("\n".join(f"- Error: {text}" for text in problems), 400 if problems else 200)
        return Reply({"errors": [{"message": text} for text in problems], "warnings": []}, 400 if problems else 200)

    @route("POST", "/api/REPO/preupload/REV")
    def preupload(self) -> Any:
        present = self.at(self.repo(write=True, propose=self.flag("create_pr"))).files
        answer = []
        for want in self.json["files"]:
            lfs = is_lfs(want["path"], base64.b64decode(want["sample"]), want["size"])
            answer.append({"path": want["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False})
            if want["path"] in present:  # lets the client leave out what has not changed
                answer[-1]["oid"] = present[want["path"]].etag
        return {"files": answer}

    @route("POST", r"WEB\.git/info/lfs/objects/batch")
    def lfs_batch(self) -> Any:
        repo, hub = self.repo(write=True, propose=True), self.hub
        objects = []
        for want in self.json["objects"]:
            objects.append({"oid": want["oid"], "size": want["size"]})
            if want["oid"] not in hub.lfs:
                verify = {"href": f"{hub.endpoint}/{repo.web}.git/info/lfs/objects/verify"}
                objects[-1]["actions"] = {"upload": {"href": f"{hub.cdn}/blob/{want['oid']}"}, "verify": verify}
        return {"transfer": "basic", "objects": objects}

    @route("POST", r"WEB\.git/info/lfs/objects/verify")
    def lfs_verify(self) -> Any:
        self.repo(write=True, propose=True)
        if len(self.hub.lfs.get(self.json["oid"], b"")) != self.json["size"]:
            raise Refusal(404, "The object was not uploaded")
        return {}

    @route("GET", "/api/REPO/xet-(?P<right>read|write)-token/REV")
    def xet_token(self) -> Any:
        writes, storage = self.args["right"] == "write", self.hub.xet
        propose = self.flag("create_pr") or self.args["rev"].startswith("refs/pr/")
        self.repo(write=writes, propose=propose, content=not writes)
        if storage is None:
            raise Refusal(404, "This Hub has no Xet storage")
        token, until = f"xet-{self.args['right']}", int(time.time()) + 900
        names = {"Cas-Url": storage.url, "Access-Token": token, "Token-Expiration": str(until)}
        headers = {f"X-Xet-{name}": value for name, value in names.items()}  # that Python reads, and JSON for hf_xet
        return Reply({"accessToken": token, "exp": until, "casUrl": storage.url}, 200, headers)

    @route("PUT", "/blob/NAME", origin="cdn")
    def store_object(self) -> Any:
        if hashlib.sha256(self.body).hexdigest() != self.args["name"]:
            raise Refusal(400, "The content does not have the announced sha256")
        self.hub.lfs[self.args["name"]] = self.body
        return Reply()

    @route("GET", "/blob/NAME", origin="cdn")
    def serve_object(self) -> Any:
        if self.args["name"] not in self.hub.lfs:
            raise Refusal(404, "No such object")
        return self.content(self.hub.lfs[self.args["name"]], {"ETag": f'"{self.args["name"]}"'})

    @route("POST", "/api/REPO/commit/REV")
    def create_commit(self) -> Any:
        create_pr = self.flag("create_pr")
        repo = self.repo(write=True, propose=create_pr or self.args["rev"].startswith("refs/pr/"))
        (_, header), *operations = [(line["key"], line["value"]) for line in map(json.loads, self.body.splitlines())]
        ref = self.args["rev"] if self.args["rev"].startswith("refs/") else f"refs/heads/{self.args['rev']}"
        base, parent, number = self.at(repo, ref), header.get("parentCommit"), 0
        if create_pr:
            base, number = self.at(repo, parent or ref), repo.next_pull_request
            ref = f"refs/pr/{number}"
        elif parent and not base.oid.startswith(parent):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(base.files)
        for key, value in operations:
            path = value["path"].rstrip("/")
            if {"", ".", "..", ".git"} & set(path.split("/")):
                raise Refusal(422, f"Invalid path: {path}")
            if key == "file":
                files[path] = File(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                files[path] = self.hub.large_file(value["oid"], value["size"])
            else:  # deletedFile or deletedFolder: either may name a folder
                kept = {p: file for p, file in files.items() if p != path and not p.startswith(path + "/")}
                if kept == files:
                    raise Refusal(404, f"{path} does not exist", "EntryNotFound")
                files = kept
        commit = repo.commit(ref, base, files, header["summary"], header.get("description", ""), self.user or "")
        url = f"{self.hub.endpoint}/{repo.web}"
        answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{url}/commit/{commit.oid}", "hookOutput": ""}
        return Reply({**answer, "pullRequestUrl": f"{url}/discussions/{number}"} if create_pr else answer)

    @route("GET", "(?P<cache>/api/resolve-cache)/REPO/REV/PATH")
    @route("GET", "WEB/resolve/REV/PATH")
    def resolve(self) -> Any:
        repo, path = self.repo(content=True), self.args["path"]
        commit = self.at(repo)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound", headers)
        file = commit.files[path]
        if not file.lfs and "cache" in self.args:
            return self.content(file.data, {**headers, "ETag": f'"{file.etag}"'})
        headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.data))}
        here = f"/api/resolve-cache/{repo.type}s/{repo.id}/{commit.oid}/{quote(path)}"
        headers["Location"] = f"{self.hub.cdn}/blob/{file.sha256}" if file.lfs else here
        if file.xet:
            tokens = f"{self.hub.endpoint}/api/{repo.type}s/{repo.id}/xet-read-token/{commit.oid}"
            headers |= {"X-Xet-Hash": file.xet, "Link": f'<{tokens}>; rel="xet-auth"'}
        return Reply("", 302 if file.lfs else 307, headers)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def answer(self) -> None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):  # the client announces the length of every body
            raise NotImplementedError("chunked request body")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.close_connection = True
        origin: Any = self.server
        reply = origin.hub.handle(origin.name, self.command, self.path, self.headers, body)
        if reply is None:
            return
        data = reply.body.encode() if isinstance(reply.body, str) else reply.body
        headers = {"Content-Type": "text/plain; charset=utf-8", **reply.headers}
        if not isinstance(data, bytes):
            data, headers["Content-Type"] = json.dumps(data, default=str).encode(), "application/json"
        data = data[: reply.short]
        self.send_response(reply.status)
        for name, value in {**headers, "Content-Length": str(len(data)), "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: reply.cut])

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Origin(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: HubServer, name: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub, self.name, self.url = hub, name, f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client may leave early
            traceback.print_exc()


class HubServer:
    def __init__(self, xet: Path | None = None) -> None:
        self.xet = XetStorage(xet) if xet else None
        self.repos: dict[tuple[str, str], Repo] = {}  # by type and lower-case id
        self.tokens: dict[str, tuple[str, str]] = {}  # user and role
        self.lfs: dict[str, bytes] = {}  # objects by sha256
        self.collections: dict[str, Collection] = {}  # by id
        self.requests: list[Request] = []
        self.faults: list[dict[str, Any]] = []
        self._lock = threading.RLock()

    def __enter__(self) -> HubServer:
        self._origins = [Origin(self, "hub"), Origin(self, "cdn")]
        self.endpoint, self.cdn = (origin.url for origin in self._origins)
        for origin in self._origins:
            threading.Thread(target=origin.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        for origin in self._origins:
            origin.shutdown()
            origin.server_close()

    # What a test does behind the client's back

    def token(self, user: str, role: str = "write") -> str:
        self.tokens[f"hf_{user}_{role}"] = (user, role)
        return f"hf_{user}_{role}"

    def add_repo(self, repo_id: str, repo_type: str = "model", private: bool = False, gated: bool = False) -> Repo:
        repo = self.repos[repo_type, repo_id.lower()] = Repo(repo_id, repo_type, private, gated)
        first = {".gitattributes": File(GITATTRIBUTES, False)}  # as on the real Hub
        repo.commit("refs/heads/main", None, first, "initial commit", "", repo_id.split("/")[0])
        return repo

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        return self.repos[repo_type, repo_id.lower()]

    def put(
        self,
        repo_id: str,
        files: Mapping[str, bytes | None],
        private: bool | None = None,
        gated: bool | None = None,
        repo_type: str = "model",
        revision: str = "main",
        message: str = "update",
    ) -> str:
        """Create the repository or add a commit to it; None deletes a file. Returns the id of the commit."""
        with self._lock:
            repo = self.repos.get((repo_type, repo_id.lower())) or self.add_repo(repo_id, repo_type)
            repo.private = repo.private if private is None else private
            repo.gated = repo.gated if gated is None else gated
            base = repo.find(revision) or repo.refs["refs/heads/main"]
            changed = {p: File(d, is_lfs(p, d[:512], len(d))) for p, d in files.items() if d is not None}
            for file in changed.values():
                if file.lfs:
                    self.lfs[file.sha256] = file.data
                    file.xet = self.xet.name_of(file.sha256) if self.xet else None
            kept = {path: file for path, file in base.files.items() if files.get(path, b"") is not None}
            ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
            return repo.commit(ref, base, {**kept, **changed}, message, "", repo.id.split("/")[0]).oid

    def large_file(self, sha256: str, size: int) -> File:
        """What was uploaded before the commit that names it, in either way."""
        name = self.xet.name_of(sha256) if self.xet else None
        if self.xet and name and sha256 not in self.lfs:
            data = self.xet.read(name, size)
            self.lfs[hashlib.sha256(data).hexdigest()] = data
        if len(self.lfs.get(sha256, b"")) != size:
            raise Refusal(400, "LFS pointer pointed to a file that does not exist")
        return File(self.lfs[sha256], True, name)

    def head(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> str:
        return self.commits(repo_id, revision, repo_type)[0].oid

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        return {p: file.data for p, file in self.commits(repo_id, revision, repo_type)[0].files.items()}

    def commits(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> list[Commit]:
        """Newest first."""
        commit = self.repo(repo_id, repo_type).find(revision)
        if commit is None:
            raise KeyError(revision)
        return commit.history()

    def fail(
        self,
        pattern: str,
        status: int = 503,
        times: int = 1,
        drop: bool = False,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
        short: int | None = None,
    ) -> None:
        """Refuse the next `times` requests whose "METHOD /path?query" matches.

        With `drop` they are handled but never answered; with `cut` the connection breaks after so many bytes of the
        body, and with `short` the body ends there as if that were all.
        """
        how: dict[str, Any] = {"drop": drop, "cut": cut, "short": short}
        if not drop and cut is None and short is None:
            how = {"status": status, "headers": headers}
        self.faults.append({"pattern": pattern, "times": times, **how})

    def meanwhile(self, pattern: str, action: Callable[[], object]) -> None:
        """Do something just before the next request whose "METHOD /path?query" matches is handled."""
        self.faults.append({"pattern": pattern, "times": 1, "action": action})

    def seen(self, pattern: str) -> list[Request]:
        return [request for request in self.requests if re.search(pattern, f"{request.method} {request.path}")]

    def handle(self, origin: str, method: str, target: str, headers: Message, body: bytes) -> Reply | None:
        url, auth = urlsplit(target), headers.get("Authorization")
        with self._lock:
            fault = next((f for f in self.faults if f["times"] and re.search(f["pattern"], f"{method} {target}")), {})
            drop = fault.get("drop", False)
            try:
                if fault:
                    fault["times"] -= 1
                if "action" in fault:
                    fault["action"]()
                if "status" in fault:
                    raise Refusal(fault["status"], "injected fault", headers=fault["headers"])
                reply = self._route(origin, method, url.path, parse_qs(url.query), headers, body)
                reply.cut, reply.short = fault.get("cut"), fault.get("short")
            except Refusal as refusal:
                reply = refusal.reply
            except Exception:  # a fault of this file: a status that the client does not retry
                reply = Reply(traceback.format_exc(), 501)
            answered = 0 if drop else reply.status
            agent = headers.get("User-Agent", "")
            self.requests.append(Request(method, url.path, answered, url.query, auth is not None, origin, agent))
        return None if drop else reply

    def _route(self, origin: str, method: str, path: str, query: Any, headers: Message, body: bytes) -> Reply:
        user, role, auth = None, "", headers.get("Authorization")
        if auth is not None and origin == "cdn":
            raise Refusal(400, "Only one auth mechanism is allowed")
        if auth is not None:
            if auth.removeprefix("Bearer ") not in self.tokens:
                raise Refusal(401, "Invalid credentials in Authorization header")
            user, role = self.tokens[auth.removeprefix("Bearer ")]
        for where, verb, regex, function in ROUTES:
            found = regex.fullmatch(path)
            if found and (where, verb) == (origin, "GET" if method == "HEAD" else method):
                args = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                result = function(Call(self, method, query, headers, body, args, user, role))
                return result if isinstance(result, Reply) else Reply(result)
        raise Refusal(404, f"This test server has no route for {method} {path}")

    # What the client needs to find this server

    def env(self, home: Path, user: str | None = "alice", role: str = "write", offline: bool = False) -> dict[str, str]:
        """The environment of this process, without its Hub settings, pointed at this server."""
        ours = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_XET_CACHE": str(home / "xet"),
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # `datasets` would ask another host
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            **({"HF_TOKEN": self.token(user, role)} if user else {}),
        }
        for switch in (*([] if self.xet else ["XET"]), "TELEMETRY", "PROGRESS_BARS", "UPDATE_CHECK"):
            ours[f"HF_HUB_DISABLE_{switch}"] = "1"
        foreign = ("HF_", "HUGGING", "TRANSFORMERS_")
        return {**{key: value for key, value in os.environ.items() if not key.startswith(foreign)}, **ours}

    @contextmanager
    def patched(
        self, home: Path, user: str | None = "alice", role: str = "write", offline: bool = False
    ) -> Iterator[HubServer]:
        """Point the client of this very process at this server: most of its settings are read once, at import.

        So does `datasets`, where it is imported already: a test that loads a dataset imports it at its top.
        """
        from huggingface_hub import constants, hf_api, hf_file_system
        from huggingface_hub.utils import _hf_uris, _http, _xet

        home = Path(home)
        paths = {
            "HF_HOME": "",
            **dict.fromkeys(("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "default_cache_path"), "hub"),
            **dict.fromkeys(("HF_ASSETS_CACHE", "HUGGINGFACE_ASSETS_CACHE", "default_assets_cache_path"), "assets"),
            **dict.fromkeys(("HF_XET_CACHE", "default_xet_cache_path"), "xet"),
            **{"HF_TOKEN_PATH": "token", "HF_STORED_TOKENS_PATH": "stored_tokens"},
            "AGENT_HARNESSES_PATH": ".agent_harnesses.json",
            "CHECK_FOR_UPDATE_DONE_PATH": ".check_for_update_done",
            "CHECK_FOR_SKILL_UPDATE_DONE_PATH": ".check_for_skill_update_done",
        }
        new = {
            **{name: str(home / path) for name, path in paths.items()},
            "ENDPOINT": self.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_URL_HOSTS": constants.HF_URL_HOSTS | {"127.0.0.1"},
            **dict.fromkeys(("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"), True),
            "HF_HUB_DISABLE_XET": self.xet is None,
            **{"HF_HUB_DISABLE_IMPLICIT_TOKEN": False, "HF_HUB_OFFLINE": offline},
        }
        old = {name: getattr(constants, name) for name in new}
        holders = (hf_api.api, hf_file_system.hffs, hf_file_system.hffs._api)
        endpoints, origins = [holder.endpoint for holder in holders], _http._HUB_ORIGINS

        def forget() -> None:
            _http.close_session()
            _xet.abort_xet_session()
            _xet.XET_CONNECTION_INFO_CACHE.clear()
            _hf_uris.parse_hf_uri.cache_clear()
            hf_api.api._whoami_cache.clear()
            hf_file_system.hffs.invalidate_cache()
            hf_file_system.HfFileSystem.clear_instance_cache()

        def replace(before: dict[str, Any], after: dict[str, Any]) -> None:
            """In the constants, and in every module that took a copy of one: those imported meanwhile did too."""
            for name, module in list(sys.modules.items()):
                if name.partition(".")[0] == "huggingface_hub":
                    for key in after.keys() & vars(module).keys():
                        if module is constants or vars(module)[key] == before[key]:
                            setattr(module, key, after[key])

        with mock.patch.dict(os.environ), self._datasets_patched(home, offline):
            for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
                os.environ.pop(name, None)
            env = self.env(home, user, role)
            names = ("HF_TOKEN", "HF_XET_CACHE", "NO_PROXY", "no_proxy")
            os.environ.update({key: env[key] for key in names if key in env})
            forget()
            try:
                replace(old, new)
                for holder in holders:
                    holder.endpoint = self.endpoint
                _http._HUB_ORIGINS = origins | {_http._url_origin(self.endpoint)}
                yield self
            finally:
                forget()
                replace(new, old)
                for holder, endpoint in zip(holders, endpoints, strict=True):
                    holder.endpoint = endpoint
                _http._HUB_ORIGINS = origins

    @contextmanager
    def _datasets_patched(self, home: Path, offline: bool) -> Iterator[None]:
        """`datasets`, if it is imported: this server, its caches under `home`, and nothing asked of anybody else."""
        config = sys.modules.get("datasets.config")
        if config is None:
            yield
            return
        caches = {"HF_DATASETS_CACHE": "datasets", "HF_MODULES_CACHE": "modules"}
        caches |= {"DOWNLOADED_DATASETS_PATH": "datasets/downloads", "EXTRACTED_DATASETS_PATH": "datasets/extracted"}
        new = {
            **{name: home / path for name, path in caches.items()},
            **{"HF_ENDPOINT": self.endpoint, "HF_CACHE_HOME": str(home), "HF_HUB_OFFLINE": offline},
            "HUB_DATASETS_URL": self.endpoint + "/datasets/{repo_id}/resolve/{revision}/{path}",
            **dict.fromkeys(("HF_UPDATE_DOWNLOAD_COUNTS", "USE_PARQUET_EXPORT"), False),  # hosts that are not here
        }
        with mock.patch.multiple(config, **new):
            yield
