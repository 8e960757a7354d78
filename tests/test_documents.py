"""The code of the README and of the guides runs."""

import json
import re
from pathlib import Path

import mlx.core as mx
import pytest
from hub_server import UPLOAD_WARNING
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs

from hubsae.dashboard.server import LocalServer

ROOT = Path(__file__).parent.parent


def code_blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture
def world_of_the_documents(hub, demo_folder, demo_texts, tmp_path, monkeypatch):
    """A Hub with small random models under the names that the documents use, and an empty folder with texts.txt."""
    for name, width in (("1B", 32), ("3B", 48)):
        small = {"num_hidden_layers": 12, "hidden_size": width, "intermediate_size": 64, "head_dim": width // 4}
        config = {**json.loads((demo_folder / "config.json").read_text()), **small}
        model = Model(ModelArgs.from_dict(config))
        mx.save_safetensors(str(tmp_path / "model.safetensors"), dict(tree_flatten(model.parameters())))
        content = {p.name: p.read_bytes() for p in demo_folder.glob("token*")}
        content["model.safetensors"] = (tmp_path / "model.safetensors").read_bytes()
        content["config.json"] = json.dumps(config).encode()
        hub.put(f"mlx-community/Llama-3.2-{name}-Instruct", content)
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "texts.txt").write_text("\n".join(demo_texts[:900]))
    monkeypatch.chdir(folder)
    monkeypatch.setattr("hubsae.dashboard.server.LocalServer.run", LocalServer.close)  # nobody is there to look
    monkeypatch.setattr("webbrowser.open", lambda address: True)
    with hub.patched(tmp_path / "home", user="user"):
        yield hub


@pytest.mark.filterwarnings(UPLOAD_WARNING)
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_the_code_of_the_documents_runs(path, world_of_the_documents):
    """All blocks of a document, one after the other."""
    blocks = code_blocks(path)
    assert blocks
    scope: dict = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, str(path), "exec"), scope)
