"""Artifacts that are dataset repositories: saved, published and loaded, and read by `datasets` as the viewer does."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import datasets
import datasets.config
import huggingface_hub as hf
import mlx.core as mx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import UPLOAD_WARNING, HubServer

from hubsae import load_sae, render
from hubsae.errors import ArtifactError, ConfigError, HubError, HubsaeWarning
from hubsae.hub import Artifact, Source
from hubsae.store import ALIGNMENT, MAP

pytestmark = pytest.mark.filterwarnings(UPLOAD_WARNING)
REPO = "alice/tiny-pairs"


@dataclass(frozen=True)
class PairsConfig:
    width: int
    library_name: str = "hubsae"


class Pairs(Artifact, tags=["hubsae-alignment", "mechanistic-interpretability"]):
    """A map, a table of pairs and perhaps a table of notes, as small as an artifact with tables can be."""

    repo_type: ClassVar[str] = "dataset"
    config_file: ClassVar[str] = ALIGNMENT
    arrays_file: ClassVar[str | None] = MAP
    tables: ClassVar[tuple[str, ...]] = ("pairs.parquet", "notes.parquet")
    card_template: ClassVar[str] = "pairs.md"
    config: PairsConfig

    def __init__(self, config: PairsConfig, map: mx.array, rows: dict[str, pa.Table] | None = None):
        super().__init__()
        self.config, self.map, self.rows = config, map, rows or {}

    def arrays(self) -> dict[str, mx.array]:
        return {"map": self.map}

    @classmethod
    def from_parts(cls, config: dict, arrays: dict[str, mx.array]) -> "Pairs":
        if config.get("library_name") != "hubsae" or arrays["map"].shape[0] != config["width"]:
            raise ArtifactError("the map does not fit the config")
        return cls(PairsConfig(**config), arrays["map"])

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        for name, table in self.rows.items():
            pq.write_table(table, save_directory / name)

    def _read_more(self, folder: Path) -> None:
        self.rows = {name: pq.read_table(folder / name) for name in self.tables if (folder / name).is_file()}
        if "pairs.parquet" not in self.rows:
            raise ArtifactError("pairs.parquet is missing")

    def card_metadata(self) -> dict:
        configs = [{"config_name": Path(name).stem, "data_files": name} for name in self.rows]
        return {"license": "mit", "configs": configs, "pretty_name": "Pairs", "tags": [*self.class_tags(), "cca"]}


@pytest.fixture(autouse=True)
def card(monkeypatch):
    """A card template of these tests beside those of the package."""
    there = render.fill

    def fill(template: str, values: dict) -> str:
        if template != Pairs.card_template:
            return there(template, values)
        return f"# {values['repo_id'].split('/')[-1]}\n\nWidth {values['config'].width}\n"

    monkeypatch.setattr(render, "fill", fill)


@pytest.fixture(autouse=True)
def quiet():
    """Without bars of `datasets`, which does not look at those of the Hub's client."""
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def pairs() -> Pairs:
    table = pa.table({"source": [0, 1, 2], "target": [5, 3, 4], "cosine": [0.5, 0.25, 0.125]})
    notes = pa.table({"text": ["one", "two"]})
    return Pairs(PairsConfig(3), mx.arange(9).reshape(3, 3) / 8, {"pairs.parquet": table, "notes.parquet": notes})


def head(hub: HubServer, revision: str = "main") -> str:
    return hub.head(REPO, revision, "dataset")


def files(hub: HubServer, revision: str = "main") -> dict[str, bytes]:
    return hub.files(REPO, revision, "dataset")


def same(a: Pairs, b: Pairs) -> bool:
    return a.config == b.config and bool(mx.array_equal(a.map, b.map)) and a.rows == b.rows


def test_a_saved_artifact_with_tables_comes_back_exactly(pairs, tmp_path):
    pairs.statistics, pairs.metrics = {"rows": 3}, {"accuracy": 0.5}
    pairs.save_pretrained(tmp_path / "p")
    names = {ALIGNMENT, MAP, "pairs.parquet", "notes.parquet", "statistics.json", "metrics.json", "README.md"}
    assert {p.name for p in (tmp_path / "p").iterdir()} == names
    again = Pairs.from_pretrained(tmp_path / "p")
    assert same(again, pairs)
    assert (again.statistics, again.metrics) == (pairs.statistics, pairs.metrics)
    assert again.source == Source(str(tmp_path / "p"))


def test_a_reader_of_a_folder_that_is_written_sees_the_config_appear_last(pairs, tmp_path, monkeypatch):
    order, replace = [], os.replace
    monkeypatch.setattr("hubsae.store.os.replace", lambda a, b: (order.append(Path(b).name), replace(a, b)))
    pairs.save_pretrained(tmp_path / "p")
    assert order[-1] == ALIGNMENT
    assert len(order) == 5


def test_one_push_is_one_commit_of_a_dataset_repository_and_comes_back_exactly(alice, pairs):
    commit = pairs.push_to_hub(REPO, commit_message="first")
    titles = [c.title for c in alice.commits(REPO, repo_type="dataset")]
    assert titles == ["first", "initial commit"]
    assert len(alice.seen(r"POST .*/commit/")) == 1
    assert not alice.seen("/api/models/")
    assert [kind for kind, _ in alice.repos] == ["dataset"]
    again = Pairs.from_pretrained(REPO)
    assert same(again, pairs)
    assert again.source is not None
    assert (again.source.name, again.source.revision) == (REPO, commit.oid)
    assert again.source.access["repo_id"] == REPO


def test_an_unchanged_push_makes_no_commit(alice, pairs):
    first = pairs.push_to_hub(REPO).oid
    assert pairs.push_to_hub(REPO).oid == first
    assert Pairs.from_pretrained(REPO).push_to_hub(REPO).oid == first
    assert head(alice) == first


def test_branch_tag_pull_request_and_pinned_revision(alice, pairs):
    first = pairs.push_to_hub(REPO, tag="v1").oid
    other = Pairs(pairs.config, pairs.map + 1, {"pairs.parquet": pairs.rows["pairs.parquet"].slice(0, 2)})
    other.push_to_hub(REPO, branch="next")
    request = other.push_to_hub(REPO, create_pr=True)
    assert request.pr_url
    assert head(alice) == first
    for revision, wanted in ((None, pairs), ("v1", pairs), (first, pairs), ("next", other), ("refs/pr/1", other)):
        assert same(Pairs.from_pretrained(REPO, revision=revision), wanted)
    with pytest.raises(HubError, match="is there, but not tagged 'v1'"):
        other.push_to_hub(REPO, tag="v1")


def test_a_table_that_it_has_no_longer_disappears(alice, pairs, tmp_path):
    pairs.push_to_hub(REPO)
    pairs.save_pretrained(tmp_path / "p")
    del pairs.rows["notes.parquet"]
    pairs.push_to_hub(REPO)
    pairs.save_pretrained(tmp_path / "p")
    assert "notes.parquet" not in files(alice)
    assert not (tmp_path / "p" / "notes.parquet").exists()
    for again in (Pairs.from_pretrained(REPO), Pairs.from_pretrained(tmp_path / "p")):
        assert same(again, pairs)
    assert [c["config_name"] for c in hf.DatasetCard(files(alice)["README.md"].decode()).data["configs"]] == ["pairs"]


def test_only_the_owner_sees_a_private_one(hub, pairs, tmp_path):
    with hub.patched(tmp_path / "a"):
        pairs.push_to_hub(REPO, private=True)
        assert hub.repo(REPO, "dataset").private
        assert same(Pairs.from_pretrained(REPO), pairs)
        pairs.push_to_hub("alice/public")
        with pytest.raises(HubError, match="is public"):
            pairs.push_to_hub("alice/public", private=True)
    with hub.patched(tmp_path / "b", user="bob"), pytest.raises(HubError, match="private"):
        Pairs.from_pretrained(REPO)


def test_further_files_are_fetched_from_the_dataset_repository_when_asked_for(alice, pairs):
    pairs.push_to_hub(REPO)
    alice.put(REPO, {"more.txt": b"more"}, repo_type="dataset")
    source = Pairs.from_pretrained(REPO).source
    assert source is not None
    assert not alice.seen("more.txt")
    path = source.file("more.txt")
    assert path is not None
    assert path.read_bytes() == b"more"
    assert source.file("nothing.txt") is None


def test_it_loads_from_a_folder_inside_a_larger_dataset(alice, pairs, tmp_path):
    pairs.save_pretrained(tmp_path / "p")
    inside = {f"layer 1/{p.name}": p.read_bytes() for p in (tmp_path / "p").iterdir()}
    alice.put("alice/many", inside, repo_type="dataset")
    again = Pairs.from_pretrained("alice/many", subfolder="layer 1")
    assert same(again, pairs)
    assert again.source is not None
    assert again.source.access["subfolder"] == "layer 1"


def test_offline_loading_asks_nobody(hub, pairs, tmp_path):
    with hub.patched(tmp_path / "home"):
        pairs.push_to_hub(REPO)
        Pairs.from_pretrained(REPO)
    asked = len(hub.requests)
    with hub.patched(tmp_path / "home", offline=True):
        assert same(Pairs.from_pretrained(REPO), pairs)
        with pytest.raises(HubError, match="not in the local cache"):
            Pairs.from_pretrained("alice/never-seen")
    assert len(hub.requests) == asked


def test_damaged_tables_are_an_error_that_names_the_source(alice, pairs, tmp_path):
    del pairs.rows["pairs.parquet"]
    pairs.save_pretrained(tmp_path / "p")
    with pytest.raises(ArtifactError, match=r"/p: pairs\.parquet is missing"):
        Pairs.from_pretrained(tmp_path / "p")
    pairs.push_to_hub(REPO)
    with pytest.raises(ArtifactError, match=rf"{REPO}@.*: pairs\.parquet is missing"):
        Pairs.from_pretrained(REPO)


def test_a_folder_of_one_kind_is_not_overwritten_by_another(pairs, sae, tmp_path):
    sae.save(tmp_path / "sae")
    pairs.save_pretrained(tmp_path / "pairs")
    before = {p: p.read_bytes() for folder in ("sae", "pairs") for p in (tmp_path / folder).iterdir()}
    with pytest.raises(ArtifactError, match=r"holds a dictionary \(config\.json\), which this is not; give another"):
        pairs.save_pretrained(tmp_path / "sae")
    with pytest.raises(ArtifactError, match=r"holds an alignment \(alignment\.json\), which this is not; give another"):
        sae.save(tmp_path / "pairs")
    assert {p: p.read_bytes() for folder in ("sae", "pairs") for p in (tmp_path / folder).iterdir()} == before
    pairs.save_pretrained(tmp_path / "pairs")
    for name, message in (("config.json", "something of another library"), (ALIGNMENT, "of something else")):
        folder = tmp_path / f"with {name}"
        folder.mkdir()
        (folder / name).write_text('{"model_type": "llama"}')
        with pytest.raises(ArtifactError, match=message):
            pairs.save_pretrained(folder)
        assert [p.name for p in folder.iterdir()] == [name]


def test_loading_a_folder_of_another_kind_says_what_it_is(alice, pairs, sae, tmp_path):
    sae.save(tmp_path / "sae")
    pairs.save_pretrained(tmp_path / "pairs")
    with pytest.raises(
        ArtifactError, match=r"holds a dictionary \(config\.json\), not an alignment \(alignment\.json\)"
    ):
        Pairs.from_pretrained(tmp_path / "sae")
    with pytest.raises(
        ArtifactError, match=r"holds an alignment \(alignment\.json\), not a dictionary \(config\.json\)"
    ):
        load_sae(tmp_path / "pairs")
    alice.put(REPO, {p.name: p.read_bytes() for p in (tmp_path / "sae").iterdir()}, repo_type="dataset")
    with pytest.raises(ArtifactError, match=rf"{REPO}@.* holds a dictionary"):
        Pairs.from_pretrained(REPO)
    alice.put("alice/other", {"notes.txt": b"x"}, repo_type="dataset")
    with pytest.raises(ArtifactError, match=r"no alignment\.json, so this is no folder that hubsae wrote"):
        Pairs.from_pretrained("alice/other")


def test_a_repository_of_the_other_type_is_not_found_and_the_error_says_which_was_looked_for(alice, pairs, sae):
    pairs.push_to_hub(REPO)
    sae.push_to_hub("alice/tiny-sae")
    with pytest.raises(HubError, match="looked for a model repository of that name"):
        load_sae(REPO)
    with pytest.raises(HubError, match="looked for a dataset repository of that name"):
        Pairs.from_pretrained("alice/tiny-sae")
    sae.push_to_hub(REPO)  # one name, two repositories
    assert load_sae(REPO).config == sae.config
    assert same(Pairs.from_pretrained(REPO), pairs)


def test_a_class_with_a_config_that_no_other_knows_is_refused():
    with pytest.raises(TypeError, match=r"config_file 'other\.json' is none of"):

        class Other(Artifact):
            config_file = "other.json"


def test_the_card_is_that_of_a_dataset(alice, pairs):
    pairs.push_to_hub(REPO)
    card = hf.DatasetCard(files(alice)["README.md"].decode())
    assert isinstance(pairs.generate_model_card(), hf.DatasetCard)
    assert card.data.to_dict() == {
        "license": "mit",
        "pretty_name": "Pairs",
        "tags": ["hubsae-alignment", "mechanistic-interpretability", "cca"],
        "configs": [
            {"config_name": "pairs", "data_files": "pairs.parquet"},
            {"config_name": "notes", "data_files": "notes.parquet"},
        ],
    }
    card.validate()
    assert "# tiny-pairs" in card.text
    assert hf.dataset_info(REPO).card_data
    with pytest.raises(ValueError, match="config_name"):
        hf.DatasetCard("---\nconfigs:\n- data_files: a.parquet\n---\n").validate()


def test_an_edited_card_keeps_its_text_and_what_people_added_but_not_our_old_entries(alice, pairs):
    pairs.push_to_hub(REPO)
    text = files(alice)["README.md"].decode()
    edited = text.replace("# tiny-pairs", "# By hand").replace("license: mit", "license: mit\nlanguage: en")
    edited = edited.replace("tags:\n", "tags:\n- mine\n")
    alice.put(REPO, {"README.md": edited.encode()}, repo_type="dataset")
    del pairs.rows["notes.parquet"]
    with pytest.warns(HubsaeWarning, match="edited by hand"):
        pairs.push_to_hub(REPO)
    card = hf.DatasetCard(files(alice)["README.md"].decode())
    assert "# By hand" in card.text
    assert card.data["language"] == "en"
    assert card.data["configs"] == [{"config_name": "pairs", "data_files": "pairs.parquet"}]
    assert set(card.data["tags"]) == {"hubsae-alignment", "mechanistic-interpretability", "cca", "mine"}


def test_configs_and_tags_of_ours_do_not_stay_on_a_card_that_has_none():
    old = "---\nconfigs:\n- config_name: old\n  data_files: old.parquet\ntags: [hubsae-alignment, mine]\n---\n\n# A\n"
    merged = hf.RepoCard(render.merge(render.sign(old), render.sign("---\ntags: [new]\n---\n\n# B\n"), "merge"))
    assert merged.data.to_dict() == {"tags": ["mine", "new"]}


def test_datasets_reads_the_tables_of_a_repository_and_of_a_folder(alice, pairs, tmp_path, caplog):
    first = pairs.push_to_hub(REPO).oid
    pairs.save_pretrained(tmp_path / "pairs")
    with caplog.at_level(logging.WARNING):
        for where in (REPO, str(tmp_path / "pairs")):
            for name, table in pairs.rows.items():
                found = datasets.load_dataset(where, Path(name).stem, split="train")
                assert isinstance(found, datasets.Dataset)
                assert found[:] == table.to_pydict()
    assert not caplog.records
    assert datasets.get_dataset_config_names(REPO) == ["pairs", "notes"]
    streamed = datasets.load_dataset(REPO, "pairs", split="train", streaming=True)
    assert list(streamed) == pairs.rows["pairs.parquet"].to_pylist()
    pairs.rows["pairs.parquet"] = pairs.rows["pairs.parquet"].slice(0, 1)
    pairs.push_to_hub(REPO)
    for revision, rows in ((first, 3), (None, 1)):
        assert len(datasets.load_dataset(REPO, "pairs", split="train", revision=revision)) == rows
    cached = list((tmp_path / "alice" / "datasets").iterdir())
    assert any("tiny-pairs" in path.name for path in cached), cached


def test_what_the_tests_set_in_datasets_is_undone(hub, tmp_path):
    def settings() -> dict:
        return {k: v for k, v in vars(datasets.config).items() if k.isupper()}

    before = settings()
    with hub.patched(tmp_path):
        assert hub.endpoint == datasets.config.HF_ENDPOINT
    assert settings() == before


def test_a_config_of_its_own_is_not_taken_and_branch_and_pull_request_exclude_each_other(alice, pairs, tmp_path):
    with pytest.raises(ConfigError, match="config differs"):
        pairs.save_pretrained(tmp_path / "p", config={"width": 4})
    with pytest.raises(ConfigError, match="exclude each other"):
        pairs.push_to_hub(REPO, branch="x", create_pr=True)
    pairs.save_pretrained(tmp_path / "p")
    assert json.loads((tmp_path / "p" / ALIGNMENT).read_text()) == {"width": 3, "library_name": "hubsae"}
