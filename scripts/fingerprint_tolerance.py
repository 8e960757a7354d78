"""How far rounding a model's weights moves what it does on the fixed text, by the fingerprint and truly.

    python scripts/fingerprint_tolerance.py MODEL ...   # folders or repository ids

Each line: largest difference at any residual, mlp or attention output, as `Fingerprint.difference` estimates it, and
as the root mean square over positions of the distance between rows scaled to norm 1; and how far the losses of tokens
are apart. `SAME_WITHIN` and `SAME_LOSSES` were chosen by it.
"""

import argparse
from collections.abc import Callable

import hubsae  # noqa: F401  (before mlx: loads the BLAS)

# isort: split
import mlx.core as mx
import mlx.nn as nn
import numpy as np

from hubsae import InterpretableModel
from hubsae.fingerprint import fingerprint
from hubsae.identity import SAME_LOSSES, SAME_WITHIN
from hubsae.sites import Site
from hubsae.sparse import as_numpy

ROUNDINGS: dict[str, Callable[[nn.Module], object]] = {
    "fp16": lambda model: model.set_dtype(mx.float16),
    "bf16": lambda model: model.set_dtype(mx.bfloat16),
    "8 bits": lambda model: nn.quantize(model, 32, 8),
    "6 bits": lambda model: nn.quantize(model, 32, 6),
    "4 bits": lambda model: nn.quantize(model, 32, 4),
}


def rows(model: InterpretableModel, tokens: list[int], sites: list[Site]) -> list[np.ndarray]:
    """(positions but the first, width) of each site, scaled to norm 1."""
    found = model.run([tokens], read=sites, logits=False).activations
    out = [as_numpy(found[site].astype(mx.float32))[0, 1:] for site in sites]
    return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in out]


def main() -> None:
    parser = argparse.ArgumentParser(description="Differences of fingerprints under rounding.")
    parser.add_argument("models", nargs="+", help="folders or repository ids")
    for source in parser.parse_args().models:
        model = InterpretableModel(source)
        sites = [site for site in model.sites() if site.component in ("residual", "mlp", "attn")]
        known = fingerprint(model, sites)
        assert known is not None
        for name, change in ROUNDINGS.items():
            other = InterpretableModel(source)
            change(other.model)
            found = fingerprint(other, sites, known.tokens)
            assert found is not None
            pairs = zip(rows(model, known.tokens, sites), rows(other, known.tokens, sites), strict=True)
            true = max(float(np.sqrt(np.mean(np.sum((a - b) ** 2, axis=1)))) for a, b in pairs)
            apart = known.difference(found) or 0.0
            losses = known.loss_difference(found)
            verdict = "same" if apart <= SAME_WITHIN and losses <= SAME_LOSSES else "other"
            told = f"{100 * apart:7.2f} % estimated {100 * true:7.2f} % true  losses {losses:.3f} nats"
            print(f"{source}  {name:7} {told}  {verdict}")


if __name__ == "__main__":
    main()
