"""Times, memory and quality of hubsae, measured here and now, beside other libraries and the bare matrix product.

python scripts/bench.py step --features 8192 --k 32 --batch 2048 --steps 300
python scripts/bench.py compare --peers-python PYTHON --rounds 3 --features 8192 --k 32 --batch 4096 --steps 100

PYTHON is the interpreter of an environment with sae-lens, eai-sparsify or dictionary-learning, and SciPy. What is
compared runs in processes of its own, one after the other, so that each has all cores and its own memory. `--json`
prints one line of JSON instead of a table.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import bench_peers as peers
import numpy as np
from bench_peers import Clock, Rebuild, Setting, SyntheticRows

Figures = dict[str, Any]
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_PASS_TOKENS = 4096  # as in hubsae.activations
_CONTEXT = 256
_SIZES = ("features", "k", "batch", "d")
_DISTURBED = 0.1  # cores that others take, above which figures are marked


def setting_of(arguments: argparse.Namespace) -> Setting:
    """What to train, as the command line says."""
    a = arguments
    return Setting(a.features, a.k, a.batch, a.steps, a.sparsity, a.aux, a.default, a.rate)


def run_step(arguments: argparse.Namespace) -> Figures:
    """a training of hubsae: time a step, memory, and quality on rows held out"""
    import bench_ours

    return {"library": "hubsae", **bench_ours.build(), **_training(arguments, bench_ours.train_on)}


def run_peer(arguments: argparse.Namespace) -> Figures:
    """the same of another library, by its own trainer on the CPU; for the Python that has it"""
    if arguments.sparsity != "topk":
        raise SystemExit(f"--sparsity {arguments.sparsity}: peers are measured under topk only")
    package, train = peers.PEERS[arguments.library]
    return {"library": arguments.library, **peers.build(package), **_training(arguments, train)}


def _training(arguments: argparse.Namespace, train: Callable[[Setting, np.ndarray, Clock], Rebuild]) -> Figures:
    setting, clock = setting_of(arguments), Clock()
    rows, held_out = peers.training_rows(arguments.acts, arguments.d, setting)
    rebuild = train(setting, rows, clock)
    peak_mb = peers.peak_mb()  # before judging, which takes memory too
    quality = peers.judged(rebuild, held_out, setting.features)
    memory = {"peak_mb": peak_mb, "rows_mb": round((rows.nbytes + held_out.nbytes) / 1e6, 1)}
    sizes = {"d": rows.shape[1], "F": setting.features, "k": setting.k, "batch": setting.batch, "steps": setting.steps}
    how = {"sparsity": setting.sparsity, "aux": setting.aux, "default": setting.default, "rate": setting.rate}
    return {**clock.medians(), **quality, **memory, **sizes, **how}


def run_rows(arguments: argparse.Namespace) -> Figures:
    """a .npy file of synthetic rows for --acts"""
    np.save(arguments.out, SyntheticRows(arguments.d).matrix(arguments.rows))
    return {"file": str(arguments.out), "rows": arguments.rows, "d": arguments.d}


def run_gemm(arguments: argparse.Namespace) -> Figures:
    """the encoder's bare matrix product in fp32, by NumPy and by MLX"""
    import bench_ours

    a = arguments
    return {"library": "GEMM", **bench_ours.build(), **bench_ours.matrix_product(a.rows, a.d, a.features, a.repeats)}


def run_memory(arguments: argparse.Namespace) -> Figures:
    """memory and time of the first steps of a training whose rows are made batch by batch"""
    import bench_ours

    return {"library": "hubsae", **bench_ours.build(), **bench_ours.first_steps(setting_of(arguments), arguments.d)}


def run_encode(arguments: argparse.Namespace) -> Figures:
    """rows a second of sparse and dense encoding, and how long a saved dictionary takes to load"""
    import bench_ours

    a = arguments
    return {"library": "hubsae", **bench_ours.build(), **bench_ours.encoding(a.rows, a.d, a.features, a.k, a.repeats)}


def run_read(arguments: argparse.Namespace) -> Figures:
    """one reading of a layer on the chunks of a file (a part of harvest)"""
    with np.load(arguments.chunks) as file:
        chunks = np.split(file["ids"], np.cumsum(file["lengths"])[:-1])
    if arguments.library == "hubsae":
        import bench_ours

        build, read = bench_ours.build(), bench_ours.reader(arguments.model, arguments.layer)
    else:
        build, read = peers.build("transformers"), peers.reader(arguments.model, arguments.layer, _PASS_TOKENS)
    read(chunks[:16])
    began = time.perf_counter()
    rows = read(chunks)
    wall_s = time.perf_counter() - began
    peak_mb = peers.peak_mb()
    np.save(arguments.out, rows)
    figures = {"tokens_per_s": round(len(rows) / wall_s), "wall_s": round(wall_s, 4), "peak_mb": peak_mb}
    return {"library": arguments.library, **build, **figures, "tokens": len(rows), "chunks": len(chunks)}


def run_harvest(arguments: argparse.Namespace) -> Figures:
    """tokens a second of reading a layer on random tokens, beside transformers on torch"""
    config = json.loads((arguments.model / "config.json").read_text())
    positions = (config.get(name) for name in ("n_positions", "max_position_embeddings"))
    longest = min([_CONTEXT, *(n for n in positions if n)])
    rng = np.random.default_rng(0)
    lengths: list[int] = []
    while sum(lengths) < arguments.tokens:
        lengths.append(longest * int(rng.integers(1, 5)) // 4)
    pythons = {"hubsae": sys.executable}
    if arguments.peers_python:
        pythons["transformers"] = arguments.peers_python
    with tempfile.TemporaryDirectory() as folder:
        chunks, outs = Path(folder, "chunks.npz"), {name: Path(folder, f"{name}.npy") for name in pythons}
        np.savez(chunks, ids=rng.integers(0, config["vocab_size"], sum(lengths)), lengths=lengths)
        given = ["--model", arguments.model, "--layer", arguments.layer, "--chunks", chunks]
        commands = {name: [python, "read", name, *given, "--out", outs[name]] for name, python in pythons.items()}
        found = in_rounds(commands, arguments)
        differences = {}
        if all(path.exists() for path in outs.values()) and len(outs) == 2:
            ours, theirs = (np.load(path) for path in outs.values())
            apart = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
            differences = {"max_relative_difference": float(f"{apart.max():.3g}")}
    sizes = {"layer": arguments.layer, "lengths": sorted(set(lengths)), "rounds": arguments.rounds}
    return {**sizes, **differences, "results": list(found.values())}


def in_rounds(commands: Mapping[str, Sequence[Any]], arguments: argparse.Namespace) -> dict[str, Figures]:
    """The figures of each command, medians over interleaved rounds; or `missing`: why it cannot be run.

    A command is an interpreter with arguments of this program. `rounds` holds the wall times one by one.
    """
    found: dict[str, list[Figures]] = {name: [] for name in commands}
    for number in range(arguments.rounds):
        for name, command in commands.items():
            if found[name] and "missing" in found[name][0]:
                continue
            print(f"round {number + 1} of {arguments.rounds}: {name}", file=sys.stderr, flush=True)
            found[name].append(_figures_of(name, command))
    return {name: _medians(results) for name, results in found.items()}


def _figures_of(name: str, command: Sequence[Any]) -> Figures:
    python, *given = map(str, command)
    done = subprocess.run([python, __file__, *given, "--json"], capture_output=True, text=True)
    if done.returncode == peers.NOT_INSTALLED:
        return {"library": name, "missing": done.stderr.strip().splitlines()[-1]}
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}: {python} {__file__} {' '.join(given)}\n{done.stderr}")
    return json.loads(done.stdout)


def _medians(results: Sequence[Figures]) -> Figures:
    """The first round's figures, with the median of those that differ from round to round; `others_cores` at worst."""
    out = dict(results[0])
    for name in out:
        values = [result[name] for result in results]
        if any(value != values[0] for value in values):
            out[name] = max(values) if name == "others_cores" else round(float(np.median(values)), 5)
    if "wall_ms_median" in out:
        out["rounds"] = [result["wall_ms_median"] for result in results]
    return out


def run_compare(arguments: argparse.Namespace) -> Figures:
    """hubsae, the bare matrix product and each peer on the same rows, in interleaved rounds"""
    setting = setting_of(arguments)
    with tempfile.TemporaryDirectory() as folder:
        acts, d = arguments.acts, arguments.d
        if acts is None:  # made by another process: on Linux the peak memory of a process starts at its parent's
            acts, n = Path(folder, "rows.npy"), peers.rows_for(setting)
            _figures_of("rows", [sys.executable, "rows", "--d", d, "--rows", n, "--out", acts])
        else:
            d = np.load(acts, mmap_mode="r").shape[1]
        given = ["--acts", acts, "--features", setting.features, "--k", setting.k, "--batch", setting.batch]
        given += ["--steps", setting.steps, *(f"--{name}" for name in ("aux", "default") if getattr(setting, name))]
        given += ["--rate", setting.rate] if setting.rate is not None else []
        product = ["gemm", "--rows", setting.batch, "--d", d, "--features", setting.features]
        commands = {"hubsae": [sys.executable, "step", *given], "GEMM": [sys.executable, *product]}
        commands |= {name: [arguments.peers_python, "peer", name, *given] for name in peers.PEERS}
        found = in_rounds(commands, arguments)
    ours = found["hubsae"]["wall_ms_median"]
    for result in found.values():
        if "missing" not in result:
            result["against_ours"] = round(result["wall_ms_median"] / ours, 2)
    return {"rounds": arguments.rounds, "results": list(found.values())}


def run_scaling(arguments: argparse.Namespace) -> Figures:
    """time a step over F, k, batch and d, one at a time around a point, beside the bare matrix product"""
    a = arguments
    point = {name: getattr(a, name) for name in _SIZES}
    commands: dict[str, list[Any]] = {}
    results = []
    for axis in _SIZES:
        for value in sorted({max(1, round(point[axis] * factor)) for factor in a.factors}):
            at = {name: str(size) for name, size in (point | {axis: value}).items()}
            step = [sys.executable, "memory", "--steps", a.steps, *(f"--{n}={size}" for n, size in at.items())]
            product = [
                sys.executable,
                "gemm",
                f"--rows={at['batch']}",
                f"--d={at['d']}",
                f"--features={at['features']}",
            ]
            names = [" ".join(map(str, command[1:])) for command in (step, product)]
            commands |= dict(zip(names, (step, product), strict=True))
            results.append((axis, value, names))
    found = in_rounds(commands, arguments)
    first = next(iter(found.values()))
    build = {name: first[name] for name in ("version", "engine", "device_name", "blas_name", "numpy")}
    rows = [
        {
            "axis": axis,
            "value": value,
            "wall_ms_median": found[step]["wall_ms_median"],
            "gemm_ms_median": found[product]["wall_ms_median"],
            "peak_mb": found[step]["peak_mb"],
            "others_cores": found[step]["others_cores"],
        }
        for axis, value, (step, product) in results
    ]
    result = {**build, "point": point, "steps": a.steps, "rounds": a.rounds, "results": rows}
    return {**result, "picture": draw(result, a.out)}


def draw(result: Figures, out: Path) -> str | None:
    """The file with a panel for each axis of `run_scaling`; None, after saying so, where matplotlib is missing."""
    try:
        import_module("matplotlib").use("agg")
    except ImportError:
        print(f'{out} was not drawn: matplotlib is missing. Run: pip install "hubsae[plots]"', file=sys.stderr)
        return None
    pyplot = import_module("matplotlib.pyplot")
    figure, panels = pyplot.subplots(1, len(_SIZES), figsize=(12, 3), sharey=True, layout="constrained")
    for axis, panel in zip(_SIZES, panels, strict=True):
        rows = [row for row in result["results"] if row["axis"] == axis]
        values = [row["value"] for row in rows]
        panel.plot(values, [row["wall_ms_median"] for row in rows], "o-", color="black", label="training step")
        panel.plot(values, [row["gemm_ms_median"] for row in rows], "o--", color="gray", label="encoder's bare GEMM")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xlabel(axis)
        panel.set_xticks(values, list(map(str, values)), rotation=45)
    panels[0].set_ylabel("wall ms")
    panels[0].legend(frameon=False)
    around = ", ".join(f"{name} {value}" for name, value in result["point"].items())
    figure.suptitle(f"around {around}; {result['device_name']}, NumPy {result['numpy']}", fontsize="small")
    figure.savefig(out, dpi=150)
    return str(out)


_COLUMNS = {
    "compare": {
        "library": "library",
        "wall ms a step": "wall_ms_median",
        "against ours": "against_ours",
        "CPU ms": "cpu_ms_median",
        "peak MB": "peak_mb",
        "FVU": "fvu",
        "L0": "l0",
        "never fired": "never_fired",
        "others' cores": "others_cores",
    },
    "harvest": {
        "library": "library",
        "tokens a second": "tokens_per_s",
        "wall s": "wall_s",
        "peak MB": "peak_mb",
        "others' cores": "others_cores",
    },
    "scaling": {
        "varied": "axis",
        "value": "value",
        "wall ms a step": "wall_ms_median",
        "GEMM ms": "gemm_ms_median",
        "peak MB": "peak_mb",
        "others' cores": "others_cores",
    },
}


def shown(command: str, result: Figures) -> str:
    """Figures by name, or what they belong to and a Markdown table."""
    if command not in _COLUMNS:
        return "\n".join(f"{name:16} {value}" for name, value in result.items())
    columns, rows = _COLUMNS[command], [row for row in result["results"] if "missing" not in row]
    head = {name: value for name, value in result.items() if name != "results"}
    if command != "scaling":
        ours = rows[0]
        shared = ("d", "F", "k", "batch", "steps", "rows_mb", "aux", "default", "threads", "tokens", "chunks")
        head = {name: ours[name] for name in ("device_name", "numpy", *shared) if name in ours} | head
        head |= {row["library"]: f"{row['version']} ({row['engine']}, {row['blas_name']})" for row in rows}
    table = [list(columns), ["---"] * len(columns)]
    table += [[str(row.get(name, "-")) for name in columns.values()] for row in rows]
    lines = ["; ".join(f"{name} {value}" for name, value in head.items()), ""]
    lines += [f"| {' | '.join(cells)} |" for cells in table]
    return "\n".join(lines + [f"{row['library']}: {row['missing']}" for row in result["results"] if "missing" in row])


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if (value := int(text)) < 1:
        raise ValueError
    return value


def parser() -> argparse.ArgumentParser:
    """Commands and their options; sizes that are not given are those of a small SAE on a small model."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)

    def command(run: Callable[[argparse.Namespace], Figures], **sizes: int) -> argparse.ArgumentParser:
        made = commands.add_parser(run.__name__.removeprefix("run_"), help=run.__doc__, description=run.__doc__)
        made.set_defaults(run=run, sparsity="topk", aux=False, default=False, rate=None)
        made.add_argument("--json", action="store_true", help="print one line of JSON")
        made.add_argument("--threads", type=positive, help="of BLAS and torch; all cores if not given")
        for name, default in sizes.items():
            made.add_argument(f"--{name}", type=positive, default=default)
        return made

    for run in (run_step, run_peer, run_compare):
        made = command(run, features=8192, k=32, batch=2048, steps=300)
        rows = made.add_mutually_exclusive_group()
        rows.add_argument("--acts", type=Path, help=".npy file of float32 (n, d); synthetic rows if not given")
        rows.add_argument("--d", type=positive, default=512, help="columns of synthetic rows")
        made.add_argument("--aux", action="store_true", help="with AuxK, and features dead after 3 batches")
        made.add_argument(
            "--rate", type=float, help="Adam's learning rate: if not given, our recipe's, and 1e-3 for peers"
        )
        made.add_argument("--default", action="store_true", help="peers with their own optimizer and learning rate")
        if run is run_compare:
            made.add_argument("--peers-python", required=True)
            made.add_argument("--rounds", type=positive, default=3)
        else:
            made.add_argument("--sparsity", default="topk")
        if run is run_peer:
            made.add_argument("library", choices=list(peers.PEERS))
    command(run_rows, d=512, rows=peers.FILE_ROWS).add_argument("--out", type=Path, required=True)
    command(run_gemm, rows=2048, d=512, features=8192, repeats=20)
    command(run_memory, features=32_768, k=100, batch=1024, d=2048, steps=5)
    command(run_encode, rows=65_536, d=512, features=8192, k=32, repeats=3)
    made = command(run_scaling, features=8192, k=32, batch=2048, d=512, steps=20, rounds=1)
    made.add_argument("--out", type=Path, required=True, help="picture")
    made.add_argument("--factors", type=float, nargs="+", default=[0.25, 0.5, 1, 2], help="of the point's sizes")
    made = command(run_harvest, tokens=65_536, rounds=3)
    made.add_argument("--model", type=Path, required=True, help="folder")
    made.add_argument("--layer", type=int, required=True)
    made.add_argument("--peers-python")
    made = command(run_read)
    made.add_argument("library", choices=["hubsae", "transformers"])
    made.add_argument("--layer", type=int, required=True)
    for name in ("--model", "--chunks", "--out"):
        made.add_argument(name, type=Path, required=True)
    return top


def main() -> None:
    arguments = parser().parse_args()
    if arguments.threads and os.environ.get(_THREADS[0]) != str(arguments.threads):
        os.environ.update(dict.fromkeys(_THREADS, str(arguments.threads)))
        os.execv(sys.executable, sys.orig_argv)  # a BLAS asks for it when it is loaded, and NumPy's is already
    with redirect_stdout(sys.stderr):  # libraries print
        result = arguments.run(arguments)
    if "library" in result:  # else its parts have their own
        result |= {"threads": os.environ.get(_THREADS[0], "all"), "others_cores": peers.others_cores()}
    for part in result.get("results", [result]):
        if (part.get("others_cores") or 0) > _DISTURBED:
            name = part["library"] if "library" in part else f"{part['axis']} {part['value']}"
            print(f"{name}: other processes took {part['others_cores']} cores; do not trust its times", file=sys.stderr)
    print(json.dumps(result) if arguments.json else shown(arguments.command, result))


if __name__ == "__main__":
    main()
