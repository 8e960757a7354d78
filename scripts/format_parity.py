"""How far we are from other libraries, of what they saved and of what we export for them.

    python scripts/format_parity.py imports                    # with hubsae: what they computed of the fixtures
    python scripts/format_parity.py write FOLDER [SAE ...]     # with hubsae: exports the fixtures, and SAEs given
    python scripts/format_parity.py check FOLDER               # with torch, sae-lens, eai-sparsify, circuit-tracer

Each prints a table: layout and kind, number of dictionaries, largest difference of code and reconstruction, over the
largest value. It ends with status 1 where one is over 1e-5 or other features are active.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

TOLERANCE = 1e-5
ROWS = 256


def imports() -> int:
    """Print what the libraries computed beside what we compute of their files."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    ours = import_module("hubsae.errors")  # before mlx, so that hubsae chooses what it computes with
    foreign = import_module("foreign")
    rows: dict[tuple[str, str], list[tuple[float, float, bool]]] = {}
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in foreign.cases(refused=False):
            try:
                dictionary = case.load(Path(folder) / case.name)
            except ours.ArtifactError:
                continue
            e, info = case.expected, case.info
            y = e["y2"] * np.sqrt(e["x"].shape[1]) if case.name == "gemma_scope_embedding" else e["y"]
            far = foreign.distance(dictionary, e["x"], e["code"], y, foreign.units_of(case, dictionary))
            by = f"{info['library']} {info.get('version', '')}".strip()
            key = (f"{dictionary.statistics['imported']['format']} ({by})", dictionary.config.kind)
            rows.setdefault(key, []).append((far.code, far.y, far.same_features))
    return _table("| read from (computed by) | kind", rows)


def _table(head: str, rows: dict[tuple[str, str], list[tuple[float, float, bool]]]) -> int:
    """Print it; 1 where something differs."""
    print(f"{head} | dictionaries | code | reconstruction | same features |\n|---|---|---|---|---|---|")
    for (first, second), found in rows.items():
        codes, ys, same = zip(*found, strict=True)
        alike = "yes" if all(same) else "NO"
        print(f"| {first} | {second} | {len(found)} | {max(codes):.1e} | {max(ys):.1e} | {alike} |")
    bad = [row for found in rows.values() for row in found if max(row[:2]) > TOLERANCE or not row[2]]
    return 1 if bad or not rows else 0


def write(folder: Path, more: list[str]) -> None:
    """Export whatever each library has a form for, with rows and what we compute of them."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from hubsae import export_transcoder_set, load_sae
    from hubsae.errors import ArtifactError

    mx = import_module("mlx.core")  # after hubsae, which chooses what it computes with
    foreign = import_module("foreign")
    found: dict[str, tuple[Any, np.ndarray]] = {}
    for case in foreign.cases(refused=False):
        with suppress(ArtifactError):
            found[case.name] = (case.load(folder / "sources" / case.name), case.expected["x"])
    for path in more:
        dictionary = load_sae(path)
        rows = np.random.default_rng(0).standard_normal((ROWS, dictionary.config.d_in)) * 4
        found[Path(path).name] = (dictionary, rows.astype(np.float32))
    for name, (dictionary, x) in found.items():
        for form in ("saelens", "sparsify"):
            with suppress(ArtifactError):
                out = dictionary.export(folder / form / name, form)
                _record(out, dictionary, x, mx)
        c = dictionary.config
        if c.kind == "transcoder" and c.reads == ("layers.5.mlp_in",) and c.writes == ("layers.5.mlp",):
            with suppress(ArtifactError):
                layers = [_moved(dictionary, layer) for layer in (0, 1)]
                _record(export_transcoder_set(layers, folder / "circuit-tracer" / name), dictionary, x, mx)


def _moved(dictionary: Any, layer: int) -> Any:
    """The same transcoder for another layer, so that there is a set."""
    from dataclasses import replace

    places = {"reads": (f"layers.{layer}.mlp_in",), "writes": (f"layers.{layer}.mlp",)}
    return type(dictionary)(replace(dictionary.config, **places), dictionary.arrays())


def _record(out: Path, dictionary: Any, x: np.ndarray, mx: Any) -> None:
    read = mx.array(x)
    np.savez(out / "ours.npz", x=x, code=np.array(dictionary.encode(read)), y=np.array(dictionary(read)))
    (out / "ours.json").write_text(json.dumps({"kind": dictionary.config.kind, "rule": dictionary.rule.name}))


def check(folder: Path) -> int:
    """Print the table; 1 where something differs."""
    worst: dict[tuple[str, str], list[tuple[float, float, bool]]] = {}
    for library, load in (("saelens", _saelens), ("sparsify", _sparsify), ("circuit-tracer", _circuit_tracer)):
        for path in sorted((folder / library).glob("*/ours.npz")):
            kind = json.loads((path.parent / "ours.json").read_text())
            with np.load(path) as file:
                x, code, y = (file[name] for name in ("x", "code", "y"))
            for found_code, found_y in load(path.parent, x):
                row = (_far(found_code, code), _far(found_y, y), bool(np.array_equal(found_code != 0, code != 0)))
                worst.setdefault((library, f"{kind['kind']}, {kind['rule']}"), []).append(row)
    names = {"saelens": "sae-lens", "sparsify": "eai-sparsify"}
    named = {(f"{one} {version(names.get(one, one))}", kind): rows for (one, kind), rows in worst.items()}
    return _table("| exported to | kind, sparsity", named)


def _far(found: np.ndarray, ours: np.ndarray) -> float:
    return float(np.abs(found - ours).max() / max(1.0, float(np.abs(ours).max())))


def _saelens(folder: Path, x: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    torch, library = import_module("torch"), import_module("sae_lens")
    kind = json.loads((folder / "cfg.json").read_text())
    loader = library.SAE if "transcoder" not in kind["architecture"] else import_module("sae_lens.saes.sae").SAE
    sae = loader.load_from_disk(folder)
    read = torch.from_numpy(x)
    if kind["reshape_activations"] == "hook_z":  # it takes heads apart
        read = read.reshape(len(x), 3, -1)
    with torch.no_grad():
        code = sae.encode(read)
        y = sae(read) if "skip" in kind["architecture"] else sae.decode(code)
        yield code.numpy(), y.reshape(len(x), -1).numpy()


def _sparsify(folder: Path, x: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    torch, library = import_module("torch"), import_module("sparsify")
    (path,) = folder.rglob("sae.safetensors")
    sae = library.SparseCoder.load_from_disk(path.parent)
    with torch.no_grad():
        read = torch.from_numpy(x)
        values, places, _ = sae.encode(read)
        code = torch.zeros(len(x), sae.num_latents).scatter_(1, places, values)
        yield code.numpy(), sae(read).sae_out.numpy()


def _circuit_tracer(folder: Path, x: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    torch = import_module("torch")
    library = import_module("circuit_tracer.transcoder.single_layer_transcoder")
    paths = {layer: str(folder / f"layer_{layer}.safetensors") for layer in (0, 1)}
    config = import_module("yaml").safe_load((folder / "config.yaml").read_text())
    hooks = {f"feature_{end}put_hook": config[f"feature_{end}put_hook"] for end in ("in", "out")}
    found = library.load_transcoder_set(paths, scan="ours", device=torch.device("cpu"), **hooks)
    with torch.no_grad():
        read = torch.from_numpy(x)
        for layer in paths:
            yield found[layer].encode(read).numpy(), found[layer](read).numpy()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("imports", "write", "check"))
    parser.add_argument("folder", type=Path, nargs="?", default=Path("exports"))
    parser.add_argument("more", nargs="*", help="folders of SAEs of ours, for write")
    options = parser.parse_args()
    if options.step == "imports":
        return imports()
    if options.step == "check":
        return check(options.folder)
    write(options.folder, options.more)
    return 0


if __name__ == "__main__":
    sys.exit(main())
