"""Every turn that a push or a load can take, with Xet and without: what arrives, what is said, what is left behind.

`main_cases` uses nothing but the Hub's own routes, so that it also runs against a second server.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub as hf
import mlx.core as mx
import pytest
from conftest import random_sae
from hub_server import UPLOAD_WARNING, HubServer

from hubsae import load_sae
from hubsae.api import SAE
from hubsae.errors import HubError, HubsaeWarning

pytestmark = pytest.mark.filterwarnings(UPLOAD_WARNING)
REPO = "alice/tiny-sae"
OTHER_SERVER = Path(__file__).parents[2] / "shared" / "localhub" / "localhub.py"


def changed(sae: SAE, by: float = 1) -> SAE:
    return SAE(sae.config, {**sae.arrays(), "b_dec": sae.b_dec + by})


def same(a: SAE, b: SAE) -> bool:
    return a.config == b.config and all(mx.array_equal(array, b.arrays()[name]) for name, array in a.arrays().items())


def short_card(template: str, values: dict) -> str:
    return f"# {values['repo_id']}\n"


def main_cases(repo: str) -> None:
    """What everybody does: publish, change, branch, propose, tag, pin, and ask for what is not there."""

    def titles(revision: str | None = None) -> list[str]:
        return [commit.title for commit in hf.list_repo_commits(repo, revision=revision)]

    sae = random_sae()
    other = changed(sae)
    first = sae.push_to_hub(repo, commit_message="first", tag="v1").oid
    assert titles() == ["first", "initial commit"]
    assert sae.push_to_hub(repo, commit_message="unchanged").oid == first
    assert sae.push_to_hub(repo, branch="next").oid == first  # a new branch with nothing new on it
    other.push_to_hub(repo, branch="next", commit_message="second")  # on a branch that exists
    request = other.push_to_hub(repo, create_pr=True, commit_message="proposed")
    assert titles() == ["first", "initial commit"]
    assert titles("next") == ["second", "first", "initial commit"]
    assert request.pr_revision
    assert titles(request.pr_revision)[0] == "proposed"
    for revision, wanted in ((None, sae), ("v1", sae), (first, sae), ("next", other), (request.pr_revision, other)):
        assert same(load_sae(repo, revision=revision), wanted)
    with pytest.raises(HubError, match="is there, but not tagged 'v1'"):
        other.push_to_hub(repo, commit_message="third", tag="v1")
    assert titles() == ["third", "first", "initial commit"]
    assert same(load_sae(repo, revision="v1"), sae)
    sae.push_to_hub(f"{repo}-private", private=True)
    assert hf.model_info(f"{repo}-private").private
    with pytest.raises(HubError, match="no such repository, or it is private"):
        load_sae(f"{repo}-nothing")
    with pytest.raises(HubError, match="it has no revision 'v9'"):
        load_sae(repo, revision="v9")
    with pytest.raises(HubError, match="does not accept this token"):
        load_sae(f"{repo}-private", token="hf_wrong")
    with pytest.raises(HubError, match="neither an existing folder"):
        load_sae("a/b/c")


@pytest.fixture(scope="module", autouse=True)
def no_waiting() -> Iterator[None]:
    """The client does not wait before it tries again, and cards are short: a full one takes longer than a push."""
    hasty = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    with pytest.MonkeyPatch.context() as patch:
        for module in ("utils._http", "file_download"):
            patch.setattr(f"huggingface_hub.{module}.time", hasty)
        patch.setattr("hubsae.render.fill", short_card)
        yield


@pytest.fixture(scope="module", params=["with Xet", "without Xet"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, no_waiting: None
) -> Iterator[HubServer]:
    """One Hub for all of these tests.

    Whatever they do, no request to the storage may carry a token, nor Xet be used where it is not there.
    """
    with_xet = request.param == "with Xet"
    with HubServer(tmp_path_factory.mktemp("storage") if with_xet else None) as server:
        with server.patched(tmp_path_factory.mktemp("first")):
            random_sae().push_to_hub(REPO)  # from then on its weights are in the storage
        yield server
        assert not [r for r in server.requests if r.status == 501], "the test server itself failed"
        assert not [r for r in server.requests if r.origin == "cdn" and r.auth], "a token left the Hub"
        assert {r.auth for r in server.seen("GET .*/xet-.*-token/")} == ({True} if with_xet else set())
        assert bool(server.seen("PUT /blob/")) is not with_xet


@pytest.fixture
def hub(server: HubServer) -> HubServer:
    for kept in (server.faults, server.repos, server.lfs):
        kept.clear()
    return server


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, no_waiting: None) -> dict[str, bytes | None]:
    """What a push of `sae` writes."""
    folder = tmp_path_factory.mktemp("files")
    random_sae().save_pretrained(folder, repo_id=REPO)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def published(alice: HubServer, files: dict[str, bytes | None]) -> HubServer:
    alice.put(REPO, files, message="first")
    return alice


def state(hub: HubServer) -> dict:
    """All references of all repositories."""
    return {repo.id: {ref: commit.oid for ref, commit in repo.refs.items()} for repo in hub.repos.values()}


@contextlib.contextmanager
def refused(hub: HubServer, home: Path, match: str) -> Iterator[None]:
    """Context whose content fails with a `HubError` that says so, and leaves nothing behind, here or there."""
    before = state(hub)
    with pytest.raises(HubError, match=match):
        yield
    assert state(hub) == before
    assert not [path.name for path in home.rglob("*.incomplete")]


def test_the_main_cases(alice):
    main_cases(REPO)


def test_a_push_in_the_middle_of_a_load_is_not_mixed_into_it(published, sae, tmp_path):
    asked, old = len(published.requests), published.head(REPO)
    load_sae(REPO, cache_dir=tmp_path / "0")
    steps = [r for r in published.requests[asked:] if r.origin == "hub" and "-token/" not in r.path]  # kept for long
    later = changed(sae)
    later.save(tmp_path / "later")
    new: dict[str, bytes | None] = {path.name: path.read_bytes() for path in (tmp_path / "later").iterdir()}
    seen = []
    for number, step in enumerate(steps, start=1):
        published.repo(REPO).refs["refs/heads/main"] = next(c for c in published.repo(REPO).log if c.oid == old)
        published.meanwhile(f"{step.method} {step.path}", lambda: published.put(REPO, new))
        got = load_sae(REPO, cache_dir=tmp_path / str(number))
        assert published.head(REPO) != old
        seen.append(got.source.revision != old)
        assert same(got, later if seen[-1] else sae)
    assert len(steps) > 3
    assert seen == sorted(seen, reverse=True)  # whoever asks which commit it is after the push gets the later one


def test_who_may_not_see_or_write_is_told_so(hub, sae, files, tmp_path):
    hub.put(REPO, files)
    hub.put("alice/private", files, private=True)
    hub.put("alice/gated", files, gated=True)
    for user, role in (("bob", "write"), ("alice", "read"), (None, "")):
        home = tmp_path / f"{user} {role}"
        with hub.patched(home, user, role):
            owner = user == "alice"
            for name, message in (("alice/private", "no such repository, or it is private"), ("alice/gated", "gated")):
                with contextlib.nullcontext() if owner else refused(hub, home, message):
                    assert same(load_sae(name), sae)
            for name, branch in ((REPO, None), (REPO, "next"), ("alice/new", None))[0 if user else 1 :]:
                with refused(hub, home, "write access" if user else "does not accept this token"):
                    changed(sae).push_to_hub(name, branch=branch)
            with refused(hub, home, "does not accept this token"):
                sae.push_to_hub(REPO, token="hf_wrong")


def test_what_changed_since_is_not_overwritten(published, sae, tmp_path):
    published.meanwhile("POST .*/commit/main", lambda: published.put(REPO, {"notes.txt": b"theirs"}))
    with pytest.raises(HubError, match="changed while this was being sent"):
        changed(sae).push_to_hub(REPO)
    assert [c.title for c in published.commits(REPO)] == ["update", "first", "initial commit"]
    assert same(load_sae(REPO), sae)
    changed(sae).push_to_hub(REPO)
    assert published.files(REPO)["notes.txt"] == b"theirs"


def test_a_hub_that_is_busy_at_any_step_of_a_push_is_an_error_that_changes_nothing(published, sae, tmp_path):
    other = changed(sae)
    other.statistics = {"rows": 3}
    steps = ("POST .*/repos/create", f"GET /api/models/{REPO}$", "POST .*/commit/", "POST .*/commit/")
    for step, status in zip(steps, (429, 503, 429, 503), strict=True):
        published.fail(step, status, times=6)
        with refused(published, tmp_path, str(status)):
            other.push_to_hub(REPO, license="mit")
        published.faults.clear()
    assert other.statistics == {"rows": 3}
    other.push_to_hub(REPO, commit_message="second")
    assert [c.title for c in published.commits(REPO)] == ["second", "first", "initial commit"]


def test_a_hub_that_is_busy_at_any_step_of_a_load_is_an_error(published, sae, tmp_path):
    for step in ("GET /api/models/", "GET .*/config.json"):
        for status in (429, 503):
            published.fail(step, status, times=20)
            with refused(published, tmp_path, "Hub"):
                load_sae(REPO)
            published.faults.clear()
    assert same(load_sae(REPO), sae)


def test_a_hub_that_is_down_leaves_what_the_cache_has_and_says_so(published, sae):
    load_sae(REPO)
    old = published.head(REPO)
    changed(sae).push_to_hub(REPO)
    published.fail("GET /api/models/", 503, times=9)
    with pytest.warns(HubsaeWarning, match=rf"503.*using commit {old[:8]} of the cache, which may not be the newest"):
        assert same(load_sae(REPO), sae)
    published.faults.clear()
    published.fail("GET /api/models/", 429, times=9)  # it answers, so nothing old is used
    with pytest.raises(HubError, match="slow down"):
        load_sae(REPO)


def test_half_an_answer_is_not_taken_for_a_bad_card(published, sae):
    published.fail("POST .*/commit/", short=10)
    with pytest.raises(HubError, match="half an answer"):
        changed(sae).push_to_hub(REPO)


@pytest.mark.parametrize("how", [{"drop": True}, {"cut": 20}], ids=["no answer", "half an answer"])
def test_an_answer_that_is_lost_after_the_commit_makes_no_second_one(published, sae, how):
    other = changed(sae)
    published.fail("POST .*/commit/", **how)
    with pytest.raises(HubError, match="an unchanged push makes no commit"):
        other.push_to_hub(REPO, commit_message="second")
    other.push_to_hub(REPO, commit_message="third")
    assert [c.title for c in published.commits(REPO)] == ["second", "first", "initial commit"]
    assert same(load_sae(REPO), other)


def test_an_answer_that_is_lost_after_a_pull_request_leaves_main_alone(published, sae, tmp_path):
    head = published.head(REPO)
    published.fail("POST .*(/commit/|/discussions)", drop=True)
    with pytest.raises(HubError, match="may have arrived"):
        changed(sae).push_to_hub(REPO, create_pr=True)
    assert published.head(REPO) == head


@contextlib.contextmanager
def broken_upload(hub: HubServer) -> Iterator[None]:
    hub.fail("GET .*/xet-write-token/", 403, times=9)
    hub.fail("PUT /blob/", 400, times=9)
    yield
    hub.faults.clear()


@contextlib.contextmanager
def broken_download(hub: HubServer) -> Iterator[None]:
    """The storage holds, or sends, only a part of the weights."""
    hub.fail("GET /blob/", short=1000, times=20)
    kept = {path: path.read_bytes() for path in hub.xet.folder.rglob("xorbs/default.*")} if hub.xet else {}
    for path, data in kept.items():
        path.chmod(0o600)
        path.write_bytes(data[: len(data) // 2])
    yield
    for path, data in kept.items():
        path.write_bytes(data)
    hub.faults.clear()


def test_a_push_whose_weights_do_not_arrive_changes_nothing(published, sae):
    before, other = state(published), changed(sae)
    with broken_upload(published), pytest.raises(HubError, match=r"no part of it is used|may not do that"):
        other.push_to_hub(REPO)
    assert state(published) == before
    other.push_to_hub(REPO, commit_message="second")
    assert [c.title for c in published.commits(REPO)] == ["second", "first", "initial commit"]
    assert same(load_sae(REPO), other)


def test_weights_that_arrive_in_part_are_not_used(published, sae, tmp_path):
    with broken_download(published):
        for _ in range(2):
            with pytest.raises(HubError, match="no part of it is used"):
                load_sae(REPO)
            assert not list(tmp_path.rglob("model.safetensors"))
            assert not list(tmp_path.rglob("*.incomplete"))
    assert same(load_sae(REPO), sae)


def test_a_connection_that_breaks_is_taken_up_again_or_is_an_error(published, sae, tmp_path):
    for number, step in enumerate(["GET .*/config.json"] if published.xet else ["GET .*/config.json", "GET /blob/"]):
        published.fail(step, cut=100)
        assert same(load_sae(REPO, cache_dir=tmp_path / f"once {number}"), sae)
        published.fail(step, cut=100, times=20)
        with refused(published, tmp_path, "no answer from the Hub"):
            load_sae(REPO, cache_dir=tmp_path / f"often {number}")
        published.faults.clear()
        assert same(load_sae(REPO, cache_dir=tmp_path / f"often {number}"), sae)


def test_offline_nobody_is_asked(hub, published, sae, tmp_path):
    load_sae(REPO)
    with hub.patched(tmp_path / "alice", offline=True):
        asked = len(hub.requests)
        assert same(load_sae(REPO), sae)
        for refuses in (lambda: load_sae("alice/never-seen"), lambda: load_sae(REPO, revision="v9")):
            with refused(hub, tmp_path, "not in the local cache"):
                refuses()
        with refused(hub, tmp_path, "not asked"):
            sae.push_to_hub(REPO)
        assert len(hub.requests) == asked


@pytest.mark.skipif(not OTHER_SERVER.is_file(), reason="a second server is not here")
def test_the_main_cases_on_a_second_server(tmp_path, monkeypatch):
    """In a process of its own, with nothing but the environment: first with Xet, then without."""
    code = """
import warnings
import huggingface_hub as hf
from hubsae import render
from test_protocol import main_cases, short_card
warnings.simplefilter("ignore", DeprecationWarning)
render.fill = short_card
main_cases("alice/with-xet")
hf.constants.HF_HUB_DISABLE_XET = True
main_cases("alice/without-xet")
"""
    spec = importlib.util.spec_from_file_location("localhub", OTHER_SERVER)
    assert spec
    assert spec.loader
    localhub: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "localhub", localhub)
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet"))  # of the server, which is in this process
    spec.loader.exec_module(localhub)
    localhub.HubHandler.disable_nagle_algorithm = True  # or every answer takes 40 ms
    with localhub.LocalHub(root=tmp_path / "root") as server:
        env = {**os.environ, **server.env("alice"), "HF_HOME": str(tmp_path / "home")}
        env["PYTHONPATH"] = str(Path(__file__).parent)
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not [r for r in server.log if r["server"] == "cdn" and r["token"]]
