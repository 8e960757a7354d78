"""The test Hub, used through the real client: in this process, and once from a fresh one."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx2
import huggingface_hub as hf
import pytest
from hub_server import UPLOAD_WARNING, HubServer
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

pytestmark = pytest.mark.filterwarnings(UPLOAD_WARNING)
CARD = b"---\nlicense: mit\nlibrary_name: hubsae\ntags:\n- sae\n---\n# Tiny\n"
WEIGHTS = bytes(range(256)) * 40
FILES = {
    "README.md": CARD,
    "config.json": b'{"d": 4}',
    "layer 1/model.safetensors": WEIGHTS,
    "layer 1/notes.txt": b"x\n",
}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def read(folder: str) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
    return {path: data for path, data in found.items() if path != ".gitattributes"}


def status(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_publish_and_load(alice: HubServer, tmp_path: Path) -> None:
    """Create, upload a folder in one commit, look at it, download it."""
    assert hf.whoami()["name"] == "alice"
    url = hf.create_repo("alice/tiny")
    assert url.repo_id == "alice/tiny"
    assert hf.create_repo("Alice/Tiny", exist_ok=True) == url
    with pytest.raises(HfHubHTTPError) as conflict:
        hf.create_repo("alice/tiny")
    assert status(conflict) == 409

    folder = write(tmp_path / "in", FILES)
    done = hf.upload_folder(repo_id="alice/tiny", folder_path=folder, commit_message="first", commit_description="why")
    assert done.oid == alice.head("alice/tiny")
    assert len(alice.commits("alice/tiny")) == 2
    assert {p: d for p, d in alice.files("alice/tiny").items() if p != ".gitattributes"} == FILES
    assert next((c.title, c.message) for c in hf.list_repo_commits("alice/tiny")) == ("first", "why")
    assert len(alice.seen("PUT /blob/")) == 1  # one LFS object
    again = hf.upload_folder(repo_id="alice/tiny", folder_path=folder)  # nothing changed, nothing committed
    assert again.oid == done.oid
    assert len(alice.seen("POST .*/commit/")) == 1

    info = hf.model_info("alice/tiny", files_metadata=True)
    assert (info.sha, info.library_name, info.private, info.gated) == (done.oid, "hubsae", False, False)
    assert info.card_data
    assert info.card_data.license == "mit"
    assert "sae" in (info.tags or [])
    siblings = {s.rfilename: s for s in info.siblings or []}
    config, weights = siblings["config.json"], siblings["layer 1/model.safetensors"]
    assert config.lfs is None
    assert weights.lfs is not None
    assert weights.lfs.size == weights.size == len(WEIGHTS)
    git = subprocess.run(["git", "hash-object", folder / "config.json"], capture_output=True, text=True)
    assert git.returncode or config.blob_id == git.stdout.strip()
    assert hf.model_info("alice/tiny", expand=["sha"]).sha == done.oid
    assert set(hf.list_repo_files("alice/tiny")) == {*FILES, ".gitattributes"}
    assert [i.path for i in hf.HfApi().list_repo_tree("alice/tiny")] == [
        ".gitattributes",
        "README.md",
        "config.json",
        "layer 1",
    ]
    assert len(list(hf.HfApi().list_repo_tree("alice/tiny", "layer 1"))) == 2
    assert [i.path for i in hf.HfApi().get_paths_info("alice/tiny", ["layer 1", "config.json", "no"])] == [
        "layer 1",
        "config.json",
    ]

    for path in ("config.json", "layer 1/model.safetensors"):
        assert Path(hf.hf_hub_download("alice/tiny", path)).read_bytes() == FILES[path]
    assert read(hf.snapshot_download("alice/tiny")) == FILES
    with pytest.raises(EntryNotFoundError):
        hf.hf_hub_download("alice/tiny", "missing.json")
    hf.delete_repo("alice/tiny")
    with pytest.raises(RepositoryNotFoundError):
        hf.model_info("alice/tiny")


def test_revisions(alice: HubServer) -> None:
    first = alice.put("alice/tiny", FILES)
    assert alice.put("alice/tiny", FILES) == first  # as with git: no change, no commit
    hf.create_tag("alice/tiny", tag="v1.0")
    hf.create_branch("alice/tiny", branch="dev/x")
    second = alice.put("alice/tiny", {"config.json": b'{"d": 8}', "layer 1/notes.txt": None})
    resolved = {rev: hf.resolve_revision("alice/tiny", revision=rev).resolved for rev in (None, "v1.0", "dev/x", first)}
    assert resolved == {None: second, "v1.0": first, "dev/x": first, first: first}
    assert (
        hf.model_info("alice/tiny", revision="v1.0").sha == hf.model_info("alice/tiny", revision=first[:8]).sha == first
    )
    for revision in (first, "v1.0", "dev/x"):
        assert Path(hf.hf_hub_download("alice/tiny", "config.json", revision=revision)).read_bytes() == b'{"d": 4}'
    assert (
        read(hf.snapshot_download("alice/tiny", revision=hf.resolve_revision("alice/tiny", revision="v1.0"))) == FILES
    )
    assert set(read(hf.snapshot_download("alice/tiny"))) == {*FILES} - {"layer 1/notes.txt"}
    with pytest.raises(RevisionNotFoundError):
        hf.hf_hub_download("alice/tiny", "config.json", revision="v9")
    with pytest.raises(HfHubHTTPError) as conflict:
        hf.create_tag("alice/tiny", tag="v1.0")
    assert status(conflict) == 409

    done = hf.upload_file(repo_id="alice/tiny", path_in_repo="a.txt", path_or_fileobj=b"a", revision="dev/x")
    assert alice.head("alice/tiny", "dev/x") == done.oid
    assert alice.head("alice/tiny") == second
    pull = hf.upload_file(repo_id="alice/tiny", path_in_repo="b.txt", path_or_fileobj=b"b", create_pr=True)
    assert pull.pr_revision == "refs/pr/1"
    assert pull.pr_num == 1
    assert alice.head("alice/tiny") == second
    assert Path(hf.hf_hub_download("alice/tiny", "b.txt", revision="refs/pr/1")).read_bytes() == b"b"
    refs = hf.list_repo_refs("alice/tiny", include_pull_requests=True)
    assert {r.name: r.target_commit for r in refs.branches} == {"main": second, "dev/x": done.oid}
    assert [(r.name, r.target_commit) for r in refs.tags] == [("v1.0", first)]
    assert [(r.ref, r.target_commit) for r in refs.pull_requests or []] == [("refs/pr/1", pull.oid)]
    hf.delete_branch("alice/tiny", branch="dev/x")
    hf.delete_tag("alice/tiny", tag="v1.0")
    hf.HfApi().delete_files("alice/tiny", ["config.json", "layer 1/"])
    assert set(alice.files("alice/tiny")) == {".gitattributes", "README.md"}


def test_stale_parent_and_bad_card(alice: HubServer) -> None:
    first = alice.put("alice/tiny", {"a.txt": b"1"})
    alice.put("alice/tiny", {"a.txt": b"2"})
    add = [hf.CommitOperationAdd("a.txt", b"3")]
    with pytest.raises(HfHubHTTPError) as stale:
        hf.create_commit("alice/tiny", add, commit_message="mine", parent_commit=first)
    assert status(stale) == 412
    assert alice.files("alice/tiny")["a.txt"] == b"2"
    hf.create_commit("alice/tiny", add, commit_message="mine", parent_commit=alice.head("alice/tiny"))
    assert alice.files("alice/tiny")["a.txt"] == b"3"
    with pytest.raises(ValueError, match="license"):
        hf.upload_file(repo_id="alice/tiny", path_in_repo="README.md", path_or_fileobj=b"---\nlicense: 3\n---\n")
    with pytest.raises(ValueError, match="base_model"):
        hf.ModelCard("---\nbase_model: {a: 1}\n---\n").validate()
    hf.ModelCard(CARD.decode()).push_to_hub("alice/tiny")
    assert hf.ModelCard.load("alice/tiny").data.to_dict()["license"] == "mit"


def test_access(hub: HubServer, tmp_path: Path) -> None:
    hub.put("alice/secret", FILES, private=True)
    hub.put("alice/gated", FILES, gated=True)
    hub.put("alice/data", {"x.parquet": WEIGHTS}, repo_type="dataset")
    for user in (None, "bob"):
        with hub.patched(tmp_path / str(user), user):
            with pytest.raises(RepositoryNotFoundError):
                hf.model_info("alice/secret")
            with pytest.raises(RepositoryNotFoundError):
                hf.hf_hub_download("alice/secret", "config.json")
            assert hf.model_info("alice/gated").gated == "auto"
            with pytest.raises(GatedRepoError):
                hf.hf_hub_download("alice/gated", "config.json")
            with pytest.raises(GatedRepoError):
                hf.snapshot_download("alice/gated")
            with pytest.raises(HfHubHTTPError) as refused:
                hf.upload_file(repo_id="alice/gated", path_in_repo="a.txt", path_or_fileobj=b"a")
            assert status(refused) == (403 if user else 401)
            path = hf.hf_hub_download("alice/data", "x.parquet", repo_type="dataset")
            assert Path(path).read_bytes() == WEIGHTS
            with pytest.raises(HfHubHTTPError) as bad:
                hf.model_info("alice/gated", token="hf_unknown")
            assert status(bad) == 401
            assert type(bad.value) is HfHubHTTPError
    with hub.patched(tmp_path / "bob"):
        assert hf.hf_hub_download("alice/secret", "config.json")
    hub.repo("alice/gated").granted.add("bob")
    with hub.patched(tmp_path / "bob", "bob"):
        assert hf.hf_hub_download("alice/gated", "config.json")
        assert hf.upload_file(repo_id="alice/gated", path_in_repo="a", path_or_fileobj=b"a", create_pr=True).pr_num == 1
    with hub.patched(tmp_path / "reader", "alice", role="read"):
        assert hf.model_info("alice/secret").private
        with pytest.raises(HfHubHTTPError) as refused:
            hf.upload_file(repo_id="alice/secret", path_in_repo="a.txt", path_or_fileobj=b"a")
        assert status(refused) == 403
        with pytest.raises(HfHubHTTPError) as refused:
            hf.create_repo("alice/new")
        assert status(refused) == 403


def test_storage_takes_no_credentials(alice: HubServer) -> None:
    alice.put("alice/tiny", FILES)
    url = hf.hf_hub_url("alice/tiny", "layer 1/model.safetensors")
    auth = {"Authorization": f"Bearer {alice.token('alice')}"}
    with httpx2.Client() as client:
        hop = client.get(url, headers=auth)
        assert hop.status_code == 302
        assert hop.headers["Location"].startswith(alice.cdn)
        assert client.get(hop.headers["Location"]).content == WEIGHTS
        assert client.get(hop.headers["Location"], headers=auth).status_code == 400
        assert client.put(f"{alice.cdn}/blob/{'0' * 64}", content=b"other").status_code == 400
        small = hf.hf_hub_url("alice/tiny", "config.json")
        for address, data in ((url, WEIGHTS), (small, FILES["config.json"])):
            part = client.get(address, headers={"Range": "bytes=2-5"}, follow_redirects=True)
            assert (part.status_code, part.content) == (206, data[2:6])
            assert client.get(address, headers={"Range": "bytes=-3"}, follow_redirects=True).content == data[-3:]
            assert client.get(address, headers={"Range": "bytes=99999-"}, follow_redirects=True).status_code == 416
        assert client.post(f"{alice.endpoint}/api/unknown").status_code == 404
    alice.requests[:] = [r for r in alice.requests if not (r.origin == "cdn" and r.status == 400)]
    assert Path(hf.hf_hub_download("alice/tiny", "layer 1/model.safetensors")).read_bytes() == WEIGHTS
    assert [r for r in alice.seen("GET /alice/tiny/resolve/") if r.auth]
    assert alice.seen("GET /blob/")


def test_faults(alice: HubServer) -> None:
    alice.put("alice/tiny", FILES)
    alice.fail("GET /api/models/alice/tiny/revision", 503)
    with pytest.raises(HfHubHTTPError) as down:
        hf.model_info("alice/tiny", revision="main")
    assert status(down) == 503
    assert hf.model_info("alice/tiny", revision="main").sha
    alice.fail("GET .*/config.json", 503)
    with pytest.raises(HfHubHTTPError) as down:
        hf.hf_hub_download("alice/tiny", "config.json")
    assert status(down) == 503
    assert Path(hf.hf_hub_download("alice/tiny", "config.json")).read_bytes() == FILES["config.json"]
    assert [r.status for r in alice.seen("GET .*/config.json")] == [503, 200]
    alice.fail("POST .*/preupload/", 503)  # the client tries again after a second
    hf.upload_file(repo_id="alice/tiny", path_in_repo="new.bin", path_or_fileobj=WEIGHTS[:9])
    assert [r.status for r in alice.seen("POST .*/preupload/")] == [503, 200]

    alice.fail("POST .*/commit/", drop=True)  # done, but the client cannot know
    with pytest.raises(httpx2.RemoteProtocolError):
        hf.upload_file(repo_id="alice/tiny", path_in_repo="late.txt", path_or_fileobj=b"late")
    assert alice.files("alice/tiny")["late.txt"] == b"late"
    assert alice.seen("/commit/")[-1].status == 0
    count = len(alice.commits("alice/tiny"))
    hf.upload_file(repo_id="alice/tiny", path_in_repo="late.txt", path_or_fileobj=b"late")
    assert len(alice.commits("alice/tiny")) == count


def test_offline_asks_nothing(alice: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sha = alice.put("alice/tiny", FILES)
    hf.snapshot_download("alice/tiny")
    count = len(alice.requests)
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        assert read(hf.snapshot_download("alice/tiny")) == FILES
        assert hf.resolve_revision("alice/tiny").resolved == sha
        assert Path(hf.hf_hub_download("alice/tiny", "config.json")).read_bytes() == FILES["config.json"]
        with pytest.raises(LocalEntryNotFoundError):
            hf.hf_hub_download("alice/tiny", "other.json")
    with alice.patched(tmp_path / "alice", offline=True), pytest.raises(OfflineModeIsEnabled):
        hf.model_info("alice/tiny")
    assert len(alice.requests) == count
    assert hf.model_info("alice/tiny").sha == sha


def test_patched_leaves_no_trace(hub: HubServer, tmp_path: Path) -> None:
    def settings() -> dict[str, object]:
        modules = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "huggingface_hub"}
        plain = (str, bool, int, frozenset)
        found = {f"{n}.{k}": v for n, m in modules.items() for k, v in vars(m).items() if isinstance(v, plain)}
        return {**found, "api": hf.HfApi().endpoint, "module": hf.hf_api.api.endpoint, **os.environ}

    before = settings()
    with contextlib.suppress(KeyError), hub.patched(tmp_path):
        import huggingface_hub.utils._cache_assets
        import huggingface_hub.utils._git_credential  # noqa: F401

        during = settings()
        assert during["huggingface_hub.constants.ENDPOINT"] == hub.endpoint
        assert not [k for k in before if k.startswith("hugging") and k.endswith("_CACHE") and during[k] == before[k]]
        raise KeyError
    after = settings()
    assert {k: after[k] for k in before} == before
    assert not [k for k, v in after.items() if isinstance(v, str) and hub.endpoint in v]


def test_this_file_in_a_fresh_process(hub: HubServer, tmp_path: Path) -> None:
    """Only environment variables: publish and load as another program would."""
    code = """
import sys, huggingface_hub as hf
from pathlib import Path
hf.create_repo("alice/sub", private=True)
done = hf.upload_folder(repo_id="alice/sub", folder_path=sys.argv[1])
assert hf.model_info("alice/sub").sha == done.oid == hf.resolve_revision("alice/sub").resolved
folder = Path(hf.snapshot_download("alice/sub"))
assert (folder / "layer 1/model.safetensors").stat().st_size == int(sys.argv[2])
print(folder)
"""
    command = [
        sys.executable,
        "-W",
        "error",
        "-W",
        UPLOAD_WARNING,
        "-c",
        code,
        str(write(tmp_path / "in", FILES)),
        str(len(WEIGHTS)),
    ]
    run = subprocess.run(command, env=hub.env(tmp_path / "home"), capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).is_relative_to(tmp_path / "home")
    assert read(run.stdout.strip()) == FILES
    assert hub.repo("alice/sub").private
    assert {r.auth for r in hub.seen("POST /api/models/")} == {True}
    offline = "import huggingface_hub as hf; print(hf.snapshot_download('alice/sub'))"
    count = len(hub.requests)
    env = hub.env(tmp_path / "home", user=None, offline=True)
    cached = subprocess.run([sys.executable, "-c", offline], env=env, capture_output=True, text=True, timeout=120)
    assert cached.stdout == run.stdout
    assert len(hub.requests) == count


def test_collections_group_repositories_in_an_order(alice: HubServer) -> None:
    """Made twice, they are found again; what is in them is kept in order, with notes."""
    for name in ("one", "two"):
        alice.put(f"alice/{name}", FILES)
    alice.put("alice/pairs", FILES, repo_type="dataset")
    made = hf.create_collection("Dictionaries: Tiny, all layers", description="d" * 150)
    assert re.fullmatch("alice/dictionaries-tiny-all-layers-[0-9a-f]{24}", made.slug)
    assert hf.create_collection("Dictionaries: Tiny, all layers", exists_ok=True) == made
    with pytest.raises(HfHubHTTPError) as conflict:
        hf.create_collection("Dictionaries: Tiny, all layers")
    assert status(conflict) == 409
    for item in ("alice/one", "alice/two", "alice/pairs"):
        hf.add_collection_item(made.slug, item, "dataset" if item == "alice/pairs" else "model", note=f"note on {item}")
    hf.add_collection_item(made.slug, "2406.04093", "paper")
    full = hf.add_collection_item(made.slug, "alice/one", "model", exists_ok=True)
    assert [(i.item_type, i.note) for i in full.items[2:]] == [("dataset", "note on alice/pairs"), ("paper", None)]
    with pytest.raises(HfHubHTTPError) as conflict:
        hf.add_collection_item(made.slug, "alice/one", "model")
    assert status(conflict) == 409
    with pytest.raises(HfHubHTTPError) as missing:
        hf.add_collection_item(made.slug, "alice/three", "model")
    assert status(missing) == 404

    last, first = full.items[-1], full.items[0]
    hf.update_collection_item(made.slug, last.item_object_id, position=0, note="read this first")
    hf.delete_collection_item(made.slug, first.item_object_id)
    hf.delete_collection_item(made.slug, first.item_object_id, missing_ok=True)
    now = hf.get_collection(made.slug)
    assert [(i.position, i.item_id) for i in now.items] == [(0, "2406.04093"), (1, "alice/two"), (2, "alice/pairs")]
    assert now.items[0].note == "read this first"

    renamed = hf.update_collection_metadata(made.slug, title="Tiny", description="", private=True)
    assert renamed.slug == f"alice/tiny-{made.slug[-24:]}"
    assert hf.get_collection(made.slug) == hf.get_collection(renamed.slug) == renamed
    hf.create_collection("Other")
    for name in "abc":
        alice.put(f"alice/{name}", {})
        hf.add_collection_item(renamed.slug, f"alice/{name}", "model")
    assert [len(c.items) for c in hf.list_collections(owner="alice")] == [4, 0]  # at most four of each are listed
    assert [c.title for c in hf.list_collections(item="datasets/alice/pairs")] == ["Tiny"]
    hf.delete_collection(renamed.slug)
    hf.delete_collection(renamed.slug, missing_ok=True)
    assert [c.title for c in hf.list_collections(owner="alice")] == ["Other"]


def test_collections_take_texts_up_to_a_limit(alice: HubServer) -> None:
    alice.put("alice/one", FILES)
    made = hf.create_collection("t" * 59)
    for refused in (
        lambda: hf.create_collection("t" * 60),
        lambda: hf.create_collection("Other", description="d" * 151),
        lambda: hf.update_collection_metadata(made.slug, description="d" * 151),
        lambda: hf.add_collection_item(made.slug, "alice/one", "model", note="n" * 501),
    ):
        with pytest.raises(HfHubHTTPError) as long:
            refused()
        assert status(long) == 400
    hf.add_collection_item(made.slug, "alice/one", "model", note="n" * 500)


def test_only_the_owner_changes_a_collection_and_sees_what_is_private(hub: HubServer, tmp_path: Path) -> None:
    hub.put("alice/one", FILES)
    hub.put("alice/secret", FILES, private=True)
    with hub.patched(tmp_path / "alice"):
        public, private = hf.create_collection("Public"), hf.create_collection("Private", private=True)
        for item in ("alice/secret", "alice/one"):
            hf.add_collection_item(public.slug, item, "model")
        assert len(hf.get_collection(public.slug).items) == 2
    for user, role, write in (("alice", "read", 403), ("bob", "write", 403), (None, "write", 401)):
        with hub.patched(tmp_path / f"{user} {role}", user, role):
            owner = user == "alice"
            assert [c.title for c in hf.list_collections()] == ["Public", "Private"][: 1 + owner]
            assert [i.item_id for i in hf.get_collection(public.slug).items][-1 - owner :] == (
                ["alice/secret", "alice/one"] if owner else ["alice/one"]
            )
            item = hf.get_collection(public.slug).items[0]
            for refused in (
                lambda: hf.create_collection("Mine", namespace="alice"),
                lambda: hf.add_collection_item(public.slug, "alice/one", "model"),
                lambda: hf.update_collection_metadata(public.slug, title="Other"),
                lambda item=item: hf.update_collection_item(public.slug, item.item_object_id, position=0),
                lambda item=item: hf.delete_collection_item(public.slug, item.item_object_id),
                lambda: hf.delete_collection(public.slug),
            ):
                with pytest.raises(HfHubHTTPError) as error:
                    refused()
                assert status(error) == write
            if not owner:
                with pytest.raises(HfHubHTTPError) as unseen:
                    hf.get_collection(private.slug)
                assert status(unseen) == 404
