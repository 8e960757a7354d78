"""The verb about measured numbers: `compare`."""

import argparse
from pathlib import Path
from typing import Any

from hubsae.cli_options import add_push, add_texts, command, pushed, texts


def add(commands: Any) -> None:
    """Add the verb to the parser's commands."""
    compare = command(commands, "compare", _compare, "dictionaries side by side: sparsity, fidelity, who is dominated")
    compare.add_argument("dictionaries", nargs="+", help="folders or repository ids")
    add_texts(compare, required=False)
    compare.add_argument("--text-column", default="text", help="column of the texts (default: text)")
    compare.add_argument("--max-rows", type=int, default=50_000, help="tokens to use (default: 50000)")
    compare.add_argument("--model", action="append", help="language model (default: as recorded); twice for two")
    compare.add_argument("--check", choices=("warn", "strict", "ignore"), default="warn", help="how to compare them")
    compare.add_argument("--names", help="what to call them, with commas, in their order")
    compare.add_argument("--out", help="folder to write the report to")
    add_push(compare)


def _compare(options: argparse.Namespace) -> None:
    from hubsae import compare
    from hubsae.store import REPORT, check_target

    if options.out:
        check_target(options.out, REPORT)
    judged: dict[str, Any] = {}
    if options.texts is not None:
        name = Path(options.texts).name if Path(options.texts).is_file() else options.texts
        judged = {"texts": texts(options), "dataset_name": name, "max_rows": options.max_rows}
        judged["text_column"] = options.text_column
    model = options.model[0] if options.model and len(options.model) == 1 else options.model
    names = options.names.split(",") if options.names else None
    report = compare(options.dictionaries, model, names=names, check=options.check, **judged)
    print(report)
    if options.out:
        report.save_pretrained(options.out)
        print(f"written to {options.out}")
    pushed(options, report)
