"""Align the SAEs of two models layer by layer, and judge the maps and the pairs on documents that proposed no pairs.

python scripts/align_and_eval.py --config scripts/small-pair.toml --layers 1 2

Needs the SAEs of scripts/train_saes.py. Writes report.csv, the pairs, the alignments and plots to the run's folder.
"""

import hubsae  # noqa: I001  (before mlx: loads the BLAS)

import argparse
import sys

from hubsae.pair_run import PairRun, align_layers


def main() -> int:
    """Status 0, or 1 after an error that is explained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help=".toml file, such as scripts/small-pair.toml")
    parser.add_argument("--layers", type=int, nargs="+", help="of both models (default: all of the settings)")
    parser.add_argument("--diagonal", action="store_true", help="each layer of A with its own one of B, not with all")
    options = parser.parse_args()
    try:
        align_layers(PairRun.read(options.config), options.layers, print, diagonal=options.diagonal)
    except (hubsae.HubsaeError, OSError) as error:
        print(f"align_and_eval: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
