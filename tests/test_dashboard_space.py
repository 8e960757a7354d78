"""A dashboard becomes a static Space in one commit, with links both ways."""

import json

import pytest
import yaml
from conftest import random_sae
from hub_server import UPLOAD_WARNING
from site_parts import HOSTILE, hostile

from hubsae import SAE, load_sae
from hubsae.cli import main
from hubsae.dashboard import space
from hubsae.dashboard.build import Dashboard
from hubsae.dashboard.page_data import Side
from hubsae.errors import ConfigError, HubError, HubsaeWarning
from hubsae.render import split

pytestmark = pytest.mark.filterwarnings(UPLOAD_WARNING)


@pytest.fixture(scope="module")
def sae(demo_model, demo_texts):
    found = random_sae(128, 130, {"name": "topk", "k": 6}, base_models=(demo_model.identity.to_dict(),))
    found.bind(demo_model)
    found.feature_statistics(demo_texts[:40], dataset_name="the atlas")
    return found


@pytest.fixture
def published(sae, alice) -> SAE:
    """The dictionary as it was published and loaded again."""
    SAE.taken_from(sae).push_to_hub("alice/words")
    return load_sae("alice/words")


def front(text):
    return yaml.safe_load(split(text)[0].strip().strip("-"))


def test_a_push_is_one_commit_with_all_files_and_a_card(published, alice):
    commit = published.push_dashboard("alice/words-dashboard")
    files = alice.files("alice/words-dashboard", repo_type="space")
    site = published.make_dashboard()
    assert set(files) == {*site.files, "README.md", ".gitattributes", "style.css"}  # the last is the Hub's
    assert all(files[path] == make() for path, make in site.files.items())
    titles = [c.title for c in alice.commits("alice/words-dashboard", repo_type="space")]
    assert titles == ["Push a dashboard with hubsae", "initial commit", "initial commit"]
    assert commit.oid == alice.head("alice/words-dashboard", repo_type="space")
    card = files["README.md"].decode()
    data = front(card)
    assert (data["sdk"], data["app_file"], data["models"]) == ("static", "index.html", ["alice/words"])
    assert data["title"] == "words"
    assert f"https://huggingface.co/alice/words/tree/{published.source.revision}" in card
    assert "the atlas" in card
    assert "variance unexplained" not in card  # it was not judged
    trained = SAE.taken_from(published)
    trained.metrics = {"fvu": 0.0625, "ce_recovered": 0.9876}
    assert "| 0.0625 | 98.76 % |" in space.make_card(trained.make_dashboard())


def test_the_dictionary_gets_the_link_in_a_commit_of_its_own(published, alice):
    before = alice.files("alice/words")
    published.push_dashboard("alice/words-dashboard")
    after = alice.files("alice/words")
    assert {path for path in after if after[path] != before.get(path)} == {"README.md", "statistics.json"}
    assert "https://huggingface.co/spaces/alice/words-dashboard" in after["README.md"].decode()
    assert alice.commits("alice/words")[0].title == "Link the dashboard alice/words-dashboard"
    n = len(alice.commits("alice/words"))
    load_sae("alice/words").push_dashboard("alice/words-dashboard")
    assert len(alice.commits("alice/words")) == n  # it is there already


def test_a_dictionary_that_was_not_published_gets_the_link_when_it_is(sae, alice):
    own = SAE.taken_from(sae)
    own.push_dashboard("alice/first")
    card = alice.files("alice/first", repo_type="space")["README.md"].decode()
    assert "models" not in front(card)
    assert "a local model" in card
    own.push_to_hub("alice/words")
    assert "spaces/alice/first" in alice.files("alice/words")["README.md"].decode()


def test_a_repository_that_holds_something_else_by_now_is_left_alone(published, sae, alice):
    other = random_sae(128, 130, {"name": "topk", "k": 6}, base_models=sae.config.base_models)
    other.W_dec = -other.W_dec
    other.push_to_hub("alice/words")
    before = alice.head("alice/words")
    with pytest.warns(HubsaeWarning, match=r"no link to it: another dictionary"):
        published.push_dashboard("alice/words-dashboard")
    assert alice.head("alice/words") == before
    assert "README.md" in alice.files("alice/words-dashboard", repo_type="space")


def test_a_second_push_takes_away_what_a_larger_site_had_and_keeps_an_edited_card(published, alice):
    published.push_dashboard("alice/dash")
    card = alice.files("alice/dash", repo_type="space")["README.md"].decode()
    edited = card.replace("A site to look at", "My favourite site")
    larger = {"data/0/features-99.js": b"of a larger dictionary", "README.md": edited.encode(), "notes.txt": b"mine"}
    alice.put("alice/dash", larger, repo_type="space")
    with pytest.warns(HubsaeWarning, match="edited by hand"):
        published.push_dashboard("alice/dash")
    files = alice.files("alice/dash", repo_type="space")
    assert "data/0/features-99.js" not in files
    assert files["notes.txt"] == b"mine"
    assert "My favourite site" in files["README.md"].decode()
    n = len(alice.commits("alice/dash", repo_type="space"))
    space.push(published.make_dashboard(), "alice/dash", card="keep")
    assert len(alice.commits("alice/dash", repo_type="space")) == n  # unchanged: no commit


def test_other_sites_are_not_overwritten(sae, alice):
    site = sae.make_dashboard()
    for name, files in (
        ("cv", {"README.md": b"---\nsdk: static\n---\nMy CV", "index.html": b"<h1>me</h1>", "style.css": b"mine"}),
        (
            "app",
            {"index.html": b"<h1>points</h1>", "site.css": b"mine", "data/points.csv": b"1", "data/deep/x.json": b"2"},
        ),
        ("files", {"README.md": b"---\nsdk: static\n---\n", "data/points.csv": b"1"}),
    ):
        alice.put(f"alice/{name}", files, repo_type="space")
        with pytest.raises(HubError, match="Nothing was sent"):
            space.push(site, f"alice/{name}")
        now = alice.files(f"alice/{name}", repo_type="space")
        assert {path: now[path] for path in files} == files
    space.push(site, "alice/dash")
    alice.put("alice/dash", {"data/points.csv": b"1", "data/0/mine.js": b"2"}, repo_type="space")
    space.push(site, "alice/dash")
    assert {"data/points.csv", "data/0/mine.js"} <= set(alice.files("alice/dash", repo_type="space"))


@pytest.mark.filterwarnings("ignore:the card was edited by hand")
def test_a_card_that_was_written_before_the_first_push_is_kept(sae, alice):
    from huggingface_hub import create_repo

    site, card = sae.make_dashboard(), b"---\nsdk: static\nlicense: mit\n---\nMy own words"
    alice.put("alice/empty", {"README.md": card}, repo_type="space")
    create_repo("alice/new", repo_type="space", space_sdk="static")
    alice.put("alice/new", {"README.md": card, "style.css": b"mine"}, repo_type="space")
    for name in ("empty", "new"):
        space.push(site, f"alice/{name}")
        files = alice.files(f"alice/{name}", repo_type="space")
        assert "My own words" in files["README.md"].decode()
        assert front(files["README.md"].decode())["license"] == "mit"
        assert files["index.html"] == site.files["index.html"]()
    assert files["style.css"] == b"mine"
    alice.put("alice/kept", {"README.md": card}, repo_type="space")
    space.push(site, "alice/kept", card="keep")
    assert alice.files("alice/kept", repo_type="space")["README.md"] == card


def test_what_the_hub_puts_into_a_new_space_is_replaced_whatever_it_says(sae, alice, monkeypatch):
    monkeypatch.setattr(space, "_FIRST_PAGE", "words of another time")
    monkeypatch.setattr(space, "_FIRST_CARD", "words of another time")
    site = sae.make_dashboard()
    space.push(site, "alice/new")
    files = alice.files("alice/new", repo_type="space")
    assert files["index.html"] == site.files["index.html"]()
    assert files["README.md"].decode() == space.make_card(site)


def test_a_site_that_cannot_be_made_creates_no_space(sae, alice):
    site = sae.make_dashboard()
    broken = Dashboard(
        site.title, site.sides, {**site.files, "data/about.js": lambda: space.check_repo_id("").encode()}
    )
    with pytest.raises(ConfigError):
        space.push(broken, "alice/never")
    assert ("space", "alice/never") not in alice.repos


def test_what_not_everybody_sees_is_linked_from_nowhere(published, alice):
    before = alice.head("alice/words")
    published.push_dashboard("alice/secret", private=True)
    published.push_dashboard("alice/proposed", create_pr=True)
    assert alice.head("alice/words") == before
    assert "dashboard" not in published.statistics
    assert "index.html" in alice.files(
        "alice/proposed", repo_type="space"
    )  # the Hub's own: the site waits in a request
    assert b"hubsae" not in alice.files("alice/proposed", repo_type="space")["index.html"]
    assert b"hubsae" in alice.files("alice/proposed", "refs/pr/1", repo_type="space")["index.html"]


def test_spaces_of_another_kind_and_public_ones_are_not_touched(sae, alice):
    site = sae.make_dashboard()
    alice.put("alice/app", {"README.md": b"---\nsdk: gradio\n---\n", "app.py": b"run()"}, repo_type="space")
    before = alice.head("alice/app", repo_type="space")
    with pytest.raises(HubError, match="is a gradio Space"):
        space.push(site, "alice/app")
    assert alice.head("alice/app", repo_type="space") == before
    space.push(site, "alice/open")
    with pytest.raises(HubError, match="is public"):
        space.push(site, "alice/open", private=True)
    space.push(site, "alice/closed", private=True)
    assert alice.repo("alice/closed", "space").private
    with pytest.raises(HubError):
        space.push(site, "bob/not-mine")
    with pytest.raises(ConfigError, match="name of a Space"):
        sae.push_dashboard("")


def test_whatever_names_hold_the_card_is_text(sae):
    side = Side(sae, hostile(sae.features), "[x](javascript:1) | `a`")
    card = space.make_card(Dashboard.of([side], title=f"{HOSTILE[2]}\n---\nsdk: docker"))
    assert front(card)["sdk"] == "static"
    assert "<script" not in split(card)[1]
    assert "\\[x\\](javascript:1)" in split(card)[1]  # no link: its brackets are escaped


def test_the_command_line_exports_and_publishes(sae, alice, tmp_path, capsys):
    sae.save(tmp_path / "words")
    assert main(["dashboard", str(tmp_path / "words"), "--export", str(tmp_path / "site"), "--title", "Words"]) == 0
    assert (tmp_path / "site" / "index.html").is_file()
    assert main(["dashboard", str(tmp_path / "words"), "--push", "alice/cli", "--private"]) == 0
    assert "/commit/" in capsys.readouterr().out
    assert alice.repo("alice/cli", "space").private
    (tmp_path / "words" / "features.parquet").unlink()
    assert main(["dashboard", str(tmp_path / "words"), "--export", str(tmp_path / "site")]) == 1
    assert "nothing is known of its features" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--export", "afile"], ["--port", "99999"], ["--push", "/"]])
def test_the_command_line_looks_before_it_analyses(sae, demo_folder, tmp_path, capsys, monkeypatch, wrong):
    sae.save(tmp_path / "words")
    (tmp_path / "afile").write_text("a file")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SAE, "feature_statistics", lambda *_, **__: pytest.fail("it analysed"))
    texts = ["--texts", "afile", "--model", str(demo_folder)]
    assert main(["dashboard", str(tmp_path / "words"), *texts, *wrong]) == 1
    assert "hubsae: " in capsys.readouterr().err


def test_the_command_line_analyses_where_texts_are_given(sae, demo_folder, demo_texts, tmp_path, capsys):
    sae.save(tmp_path / "words")
    (tmp_path / "words" / "features.parquet").unlink()
    (tmp_path / "texts.txt").write_text("\n".join(demo_texts[:60]))
    arguments = ["dashboard", str(tmp_path / "words"), "--texts", str(tmp_path / "texts.txt")]
    arguments += ["--model", str(demo_folder), "--text", "Paris is the capital of France."]
    assert main([*arguments, "--export", str(tmp_path / "site")]) == 0
    assert (tmp_path / "words" / "features.parquet").is_file()  # kept: the next time no texts are needed
    assert (tmp_path / "site" / "data" / "texts.js").is_file()
    assert json.loads((tmp_path / "words" / "config.json").read_text())["n_features"] == 130
