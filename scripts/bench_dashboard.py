"""Size and build time of a dashboard, and how soon its pages are there in a browser.

python scripts/bench_dashboard.py --model FOLDER --texts FILE --layer 2 --features 32768 --k 64 --tokens 500000

The dictionary is that of bench_survey.py, with 20 top and 20 random examples of every feature. A new browser profile is
used for every view; what is timed is from the navigation's start until the page's content stands. One line of JSON.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import hubsae  # noqa: F401  (before mlx: loads the BLAS)

# isort: split
from bench_peers import peak_mb
from bench_survey import add_arguments, dictionary

from hubsae import InterpretableModel, tokens
from hubsae.backend import describe
from hubsae.dashboard.server import LocalServer

_VIEWS = 5
_SINCE = "() => performance.now()"  # since the navigation began


def main() -> None:
    """Build a dashboard, and look at it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--browser", default=shutil.which("chromium"), help="a Chromium (default: that on the path)")
    options = parser.parse_args()
    model, texts = InterpretableModel(options.model), tokens.read_texts(options.texts)
    sae = dictionary(model, texts, options)
    sae.feature_statistics(texts, max_tokens=options.tokens)
    with tempfile.TemporaryDirectory() as folder:
        sae.features.save(folder)
        found: dict[str, Any] = {"features": options.features, "tokens": options.tokens}
        found["parquet_mb"] = _megabytes(Path(folder))
        started = time.perf_counter()
        dashboard = sae.make_dashboard()
        site = dashboard.write(Path(folder, "site"))
        found["build_s"] = round(time.perf_counter() - started, 1)
        parts = [path.stat().st_size for path in site.rglob("*") if path.is_file()]
        found |= {"site_mb": _megabytes(site), "files": len(parts), "largest_mb": round(max(parts) / 1e6, 2)}
        found["peak_mb"] = peak_mb()
        found["from_files"] = _views(site.as_uri() + "/index.html", options.browser)
        server = LocalServer(dashboard, 0)
        found["served"] = _views(server.address, options.browser)
        server.close()
    found["machine"] = f"{describe().device_name}, {describe().blas_name}"
    print(json.dumps(found), flush=True)


def _megabytes(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 1)


def _views(address: str, browser: str) -> dict[str, float]:
    """Median seconds until the overview, the list, and a feature stand, each opened anew."""
    from playwright.sync_api import sync_playwright

    pages = {"overview": ("#/", ".cards"), "list": ("#/features", ".row"), "feature": ("#/feature/77", ".feature")}
    found = {}
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for name, (place, content) in pages.items():
            times = []
            for _ in range(_VIEWS):
                with chromium.new_context() as context:
                    page = context.new_page()
                    page.goto(address + place)
                    page.wait_for_selector(content)
                    times.append(page.evaluate(_SINCE))
            found[name] = round(statistics.median(times) / 1000, 3)
        chromium.close()
    return found


if __name__ == "__main__":
    main()
