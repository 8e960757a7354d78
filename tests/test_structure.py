"""The house itself: the order of the rooms, what is public."""

import ast
from pathlib import Path

import pytest

import hubsae

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hubsae"

# A room imports only from the lines above its own.
ROOMS = """
errors
backend
settings tables axes
drawing
charts
sites
metrics threads distributed joint_moments frames
maps matching
similarity cooccurrence align_config
vectorised choose
entries
sparse firing
sparsity feature_file
features
feature_view identity
store render hub_client
forms licences commit_files
publishing
hub
tokens recipe
dictionary_card
dictionary
formats.zip_entries
formats.pickle_machine
formats.pt_file formats.parts formats.repo_files formats.hook_names
formats.tensors formats.imported
formats.layout
formats.saelens formats.sparsify formats.gemma_scope formats.openmoss formats.dictionary_learning
formats.circuit_tracer formats.crosscoders formats.loose_pt formats.mlxterp
formats.reading formats.exported
formats.to_saelens formats.to_sparsify formats.to_circuit_tracer formats.to_neuronpedia
formats.writing
taps
lm_files probe
lm
anchors norms fingerprint
activation_cache
activations
checkpoint
rows
curation
dataset
schedule surrogates
losses scaling
resample adam
train
evaluate diffing report
codes relations running unembed steer graph_drawing labelers
attribution concepts survey text_analysis label paired_rows
map_quality pairing
transfer
causal
pair_tables
alignment_config report_config
frontier
report_rows report_pictures
alignment
aligning chains verification
circuits neighbours feature_search
questions
fit
dashboard.shards
dashboard.feature_data
dashboard.page_data
dashboard.build
dashboard.live dashboard.server dashboard.space
dashboard.methods
api
members
loading
two_models metric_report
comparing
family
pair_plots interventions
demo.world
demo.templates
demo.atlas
demo.judge
demo.pair
demo.run
pair_config
pair_run
cli_options
cli_features cli_formats cli_pairs cli_reports
cli
"""
LEVEL = {room: level for level, line in enumerate(ROOMS.split("\n")) for room in line.split()}
API_LEVEL = LEVEL["api"]


def imports_of(path: Path) -> set[str]:
    """Rooms that a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("hubsae.") for alias in node.names if alias.name.startswith("hubsae.")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hubsae":
            assert node.module
            inside = node.module.removeprefix("hubsae").removeprefix(".")
            for alias in node.names:
                room = f"{inside}.{alias.name}".strip(".")
                public = getattr(hubsae, "_HOMES").get(alias.name) if not inside else None  # noqa: B009
                found.add(public or (room if room in LEVEL else inside))
    return found


def rooms() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p.name != "__init__.py"]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@pytest.mark.parametrize("path", rooms(), ids=name_of)
def test_a_room_imports_only_from_the_lines_above(path):
    own = LEVEL[name_of(path)]
    above = {room for room, level in LEVEL.items() if level < own}
    assert imports_of(path) <= above


def test_every_room_is_in_the_list_and_no_other():
    assert {name_of(path) for path in rooms()} == set(LEVEL)


def test_no_file_is_longer_than_400_lines():
    long = {name_of(p): n for p in rooms() if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_the_public_names_are_there():
    for name in hubsae.__all__:
        assert getattr(hubsae, name) is not None
    assert set(hubsae.__all__) == set(getattr(hubsae, "_HOMES"))  # noqa: B009
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hubsae.nothing  # type: ignore[attr-defined]


def test_every_public_function_says_what_comes_out():
    silent = [
        f"{name_of(path)}.{node.name}"
        for path in rooms()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not silent
