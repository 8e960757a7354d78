"""Steer along a feature of model A, in A and, through the alignment, in B; what rises and falls in both.

python scripts/transfer_intervention.py --config scripts/small-pair.toml --layer 2 --feature_idx 123 --alpha 0.5

Needs the alignment of scripts/align_and_eval.py. Without --alpha every direction is as long as it has to be for the
same dose of KL.
"""

import hubsae  # noqa: I001  (before mlx: loads the BLAS)

import argparse
import sys

from hubsae.pair_run import PairRun, intervene


def main() -> int:
    """Status 0, or 1 after an error that is explained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help=".toml file, such as scripts/small-pair.toml")
    parser.add_argument("--layer", type=int, required=True, help="layer of A")
    parser.add_argument("--layer_b", type=int, help="layer of B (default: the same, or the one at the same place)")
    parser.add_argument("--feature_idx", type=int, required=True, help="number of A's feature")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--alpha", type=float, help="length of what is added, in mean lengths of an activation")
    how.add_argument("--dose", type=float, help="nats of KL that every direction is to make")
    o = parser.parse_args()
    try:
        run = PairRun.read(o.config)
        intervene(run, o.layer, o.feature_idx, print, alpha=o.alpha, dose=o.dose, layer_b=o.layer_b)
    except (hubsae.HubsaeError, OSError) as error:
        print(f"transfer_intervention: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
