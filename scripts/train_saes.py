"""Train the SAEs of a comparison of two models: all layers that its settings name, of both.

python scripts/train_saes.py --config scripts/small-pair.toml

What is finished already, with the same settings, is not trained again.
"""

import hubsae  # noqa: I001  (before mlx: loads the BLAS)

import argparse
import sys

from hubsae.pair_run import PairRun, train_saes


def main() -> int:
    """Status 0, or 1 after an error that is explained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help=".toml file, such as scripts/small-pair.toml")
    try:
        train_saes(PairRun.read(parser.parse_args().config), print)
    except (hubsae.HubsaeError, OSError) as error:
        print(f"train_saes: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
