"""Time and memory of one pass that analyses all features, beside the same by dense codes.

python scripts/bench_survey.py --model FOLDER --texts FILE --layer 2 --features 32768 --k 64 --tokens 1000000

The dictionary's features are centred activations of chance rows, so they fire as differently as trained ones. By dense
codes only numbers and top values are computed, on `--dense-tokens` tokens, in a process of its own; examples,
neighbours and promoted tokens would come on top. One line of JSON a way.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import hubsae  # noqa: F401  (before mlx: loads the BLAS)

# isort: split
import mlx.core as mx
import numpy as np
from bench_peers import peak_mb

from hubsae import SAE, InterpretableModel, tokens
from hubsae.activations import harvest
from hubsae.backend import describe
from hubsae.dictionary import DictionaryConfig

_ROWS = 2048
_TOP = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the dictionary is made of."""
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", required=True)
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--features", type=int, default=32_768)
    parser.add_argument("--k", type=int, default=64)


def dictionary(model: InterpretableModel, texts: Any, options: argparse.Namespace) -> SAE:
    """An SAE whose feature f fires on what looks like row f of the texts."""
    site = f"layers.{options.layer}.residual"
    config = DictionaryConfig(
        reads=(site,),
        read_widths=(model.width(site),),
        writes=(site,),
        write_widths=(model.width(site),),
        n_features=options.features,
        sparsity={"name": "topk", "k": options.k},
        base_models=(model.identity.to_dict(),),
    )
    chunks = list(tokens.take_rows(chunks_of(model, texts), options.features))
    rows = harvest(model, config.read_sites, chunks).rows
    mean = rows.mean(axis=0)
    W_dec = rows - mean
    W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
    W_enc = np.ascontiguousarray(W_dec.T)
    arrays = {"W_enc": W_enc, "b_enc": -mean @ W_enc, "W_dec": W_dec, "b_dec": mean}
    found = SAE(config, {name: mx.array(array.astype(np.float32)) for name, array in arrays.items()})
    found.bind(model)
    return found


def chunks_of(model: InterpretableModel, texts: Any) -> Any:
    """The texts in chunks of 256 tokens."""
    return tokens.chunks(tokens.iterate_texts(texts), model.tokenizer, tokens.TokenConfig(), 256)


def by_dense_codes(sae: SAE, model: InterpretableModel, texts: Any, n_tokens: int) -> None:
    """Counts, sums, maxima and the largest values of every feature from codes (rows, F)."""
    top = np.zeros((_TOP, sae.n_features), np.float32)
    count, total = np.zeros(sae.n_features), np.zeros(sae.n_features)
    for group in tokens.groups(tokens.take_rows(chunks_of(model, texts), n_tokens), sae.config.d_in):
        rows = harvest(model, sae.config.read_sites, group).rows
        for start in range(0, len(rows), _ROWS):
            code = np.array(sae.encode(mx.array(rows[start : start + _ROWS])))
            count += (code > 0).sum(axis=0)
            total += code.sum(axis=0)
            both = np.concatenate([top, code])
            top = np.partition(both, len(both) - _TOP, axis=0)[-_TOP:]


def main() -> None:
    """Measure one way, or both in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--dense-tokens", type=int, default=20_000)
    parser.add_argument("--way", choices=("both", "sparse", "dense"), default="both")
    options = parser.parse_args()
    if options.way == "both":
        for way in ("sparse", "dense"):
            subprocess.run([sys.executable, *sys.argv, "--way", way], check=True)
        return
    model, texts = InterpretableModel(options.model), tokens.read_texts(options.texts)
    sae = dictionary(model, texts, options)
    n_tokens = options.tokens if options.way == "sparse" else options.dense_tokens
    started, used = time.perf_counter(), time.process_time()
    if options.way == "sparse":
        n_tokens = sae.feature_statistics(texts, max_tokens=n_tokens).n_tokens
    else:
        by_dense_codes(sae, model, texts, n_tokens)
    seconds = time.perf_counter() - started
    found = {
        "way": options.way,
        "tokens": n_tokens,
        "features": options.features,
        "k": options.k,
        "d": sae.config.d_in,
        "seconds": round(seconds, 1),
        "tokens_per_s": round(n_tokens / seconds),
        "cpu_seconds": round(time.process_time() - used, 1),
        "peak_mb": peak_mb(),
        "machine": f"{describe().device_name}, {describe().blas_name}",
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
