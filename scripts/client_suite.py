"""Which of the promises that huggingface_hub's own tests of its mixin check hold for `Artifact`, and which do not.

    python scripts/client_suite.py        # fetches the tests from PyPI; the Hub is one on loopback

The tests run as they are but for EDITS. Their dummy classes become artifacts through the class `ModelHubMixin` below:
what they write and read is written and read by `Artifact` alone.
"""

import inspect
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import is_dataclass, make_dataclass
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import huggingface_hub as hf
import pytest

from hubsae.hub import Artifact

# isort: split
import mlx.core as mx

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from hub_server import UPLOAD_WARNING, HubServer  # pyright: ignore[reportMissingImports]

VERSION = "2.4.0"
NEEDED = ("jedi", "parso", "pytest-mock")
EDITS = {
    "from huggingface_hub.hub_mixin import ModelHubMixin": "from client_suite import ModelHubMixin",
    "from huggingface_hub import ModelHubMixin": "from hubsae.hub import Artifact as ModelHubMixin",
    '"api_endpoint": ENDPOINT_STAGING,': "",  # which the mixin ignores, and an artifact refuses
}
ALWAYS = "an artifact always has a config, and its file says what the folder holds"
OWN = "the config belongs to the arrays: saving another one with them is refused"
ONE = "an artifact's config is one dataclass, not arguments of any type that are encoded one by one"
NOT_APPLICABLE = {
    "test_save_pretrained_no_config": ALWAYS,
    "test_save_pretrained_optional_dataclass": ALWAYS,
    "test_save_pretrained_optional_dict": ALWAYS,
    "test_save_pretrained_do_not_overwrite_new_config": ALWAYS,
    "test_save_pretrained_with_dataclass_config": OWN,
    "test_save_pretrained_with_dict_config": OWN,
    "test_init_accepts_kwargs_with_config": OWN,
    "test_from_cls_with_custom_type": ONE,
    "test_with_dataclass_inputs": ONE,
    "test_save_pretrained_does_overwrite_legacy_config": "a config.json of another library is never overwritten",
    "test_save_pretrained_with_push_to_hub": "configs of the dummies do not say that they are ours, so that a second "
    "save is refused; and a push is handed the card's policy too, so that no exact list of arguments can hold",
    "test_from_pretrained_when_cls_is_a_dataclass": "a folder that hubsae did not write is not read",
}


class ModelHubMixin(Artifact):
    """An artifact whose config is what the mixin recorded of the arguments, with one array beside it."""

    card_template = "none"  # see `no_card`

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("_save_pretrained", "_from_pretrained"):  # the dummies' own write and read nothing
            setattr(cls, name, Artifact.__dict__[name])

    def __new__(cls, *args: Any, **kwargs: Any) -> "ModelHubMixin":
        made = super().__new__(cls, *args, **kwargs)
        Artifact.__init__(made)  # which the dummies' own leave out
        config: Any = made._hub_mixin_config or {}
        made.config = config if is_dataclass(config) else make_dataclass("Config", config, frozen=True)(**config)
        return made

    def arrays(self) -> dict[str, mx.array]:
        return {"array": mx.zeros(1)}

    @classmethod
    def from_parts(cls, config: dict, arrays: dict[str, mx.array]) -> "ModelHubMixin":
        wanted = inspect.signature(cls.__init__).parameters.get("config")
        if wanted is None:
            return cls(**config)
        kinds: list[Any] = [kind for kind in (wanted.annotation, *get_args(wanted.annotation)) if is_dataclass(kind)]
        return cls(*(kind(**config) for kind in kinds or [dict]))


@pytest.fixture(autouse=True)
def no_card() -> Iterator[None]:
    with mock.patch("hubsae.render.fill", lambda template, values: f"# {values['repo_id']}\n"):
        yield


@pytest.fixture
def api(tmp_path: Path) -> Iterator[hf.HfApi]:
    from suite import testing_constants  # pyright: ignore[reportMissingImports]

    with HubServer() as hub, hub.patched(tmp_path):
        hub.tokens[testing_constants.TOKEN] = ("alice", "write")
        yield hf.HfApi()


@pytest.fixture
def new_repo_id() -> str:
    return "alice/dummy"


class Outcomes:
    """A pytest plugin that keeps what became of each test."""

    def __init__(self) -> None:
        self.errors: dict[str, str] = {}  # by test; empty where it passed

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        crash = getattr(report.longrepr, "reprcrash", None)
        text = str(crash.message if crash else report.longrepr).partition("\n")[0] if report.failed else ""
        self.errors[name] = self.errors.get(name) or text


def fetch(folder: Path) -> None:
    """The suite as a package, and beside it what it needs."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "download", f"huggingface_hub=={VERSION}", "--no-binary", ":all:", "--no-deps", "-d", folder], check=True
    )
    subprocess.run([*pip, "install", "--no-deps", "--target", folder, *NEEDED], check=True)
    (folder / "suite").mkdir()
    (folder / "suite" / "__init__.py").touch()
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        for name in ("testing_constants.py", "testing_utils.py", "test_hub_mixin.py"):
            member = archive.extractfile(f"huggingface_hub-{VERSION}/tests/{name}")
            assert member
            text = member.read().decode()
            for old, new in EDITS.items() if name.startswith("test_") else ():
                assert text.count(old) == 1, old
                text = text.replace(old, new)
            (folder / "suite" / name).write_text(text, encoding="utf-8")


def main() -> int:
    outcomes = Outcomes()
    with tempfile.TemporaryDirectory() as temporary:
        fetch(Path(temporary))
        sys.path[:0] = [temporary, str(Path(__file__).parent)]
        options = ["-n0", "-pno:cacheprovider", "-pno:terminal", "-pclient_suite", "-ppytest_mock"]
        pytest.main([*options, f"-W{UPLOAD_WARNING}", "--rootdir", temporary, f"{temporary}/suite"], [outcomes])
    groups: dict[str, list[str]] = {"passed": [], "not applicable": [], "failed": []}
    for name, error in outcomes.errors.items():
        reason = NOT_APPLICABLE.get(name)
        if error and reason:
            groups["not applicable"].append(f"{name}: {reason} [{error[:80]}]")
        elif error or reason:
            groups["failed"].append(f"{name}: {error or 'passed, though it is listed as not applicable'}")
        else:
            groups["passed"].append(name)
    for group, lines in groups.items():
        print(f"{group}: {len(lines)} of {len(outcomes.errors)}", *lines, sep="\n    ")
    return int(bool(groups["failed"]) or not outcomes.errors)


if __name__ == "__main__":
    sys.exit(main())
