"""What `import hubsae` does before MLX, each in a fresh process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hubsae import backend

linux_cpu = pytest.mark.skipif(
    sys.platform != "linux" or backend.describe().device == "gpu", reason="only Linux CPUs need another BLAS"
)


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


SHOW = "from hubsae import backend; print(backend.describe().blas_name)"


@linux_cpu
def test_a_tuned_blas_is_loaded_first_and_named():
    done = run("import hubsae\n" + SHOW)
    assert done.stdout.strip() in ("MKL", "OpenBLAS")
    assert not done.stderr


@linux_cpu
def test_none_keeps_the_reference_blas_without_a_word():
    done = run(SHOW, HUBSAE_BLAS="none")
    assert done.stdout.strip() == "reference BLAS"
    assert not done.stderr


@linux_cpu
def test_a_named_library_is_used():
    path = backend.active_blas()
    assert path is not None
    assert run("from hubsae import backend; print(backend.describe().blas)", HUBSAE_BLAS=path).stdout.strip() == path


@linux_cpu
def test_a_name_that_cannot_be_loaded_is_an_error():
    done = run("import hubsae", HUBSAE_BLAS="/nowhere/libblas.so")
    assert "BackendError: HUBSAE_BLAS='/nowhere/libblas.so' cannot be loaded" in done.stderr


@linux_cpu
def test_one_warning_with_what_to_do_when_mlx_came_first():
    done = run("import mlx.core\nimport hubsae\nimport hubsae.api\n" + SHOW)
    assert done.stderr.count("HubsaeWarning") == 1
    assert "mlx was imported before hubsae. Import hubsae before mlx" in done.stderr


@linux_cpu
def test_one_warning_with_what_to_install_when_there_is_none():
    code = "import ctypes.util, pathlib\nctypes.util.find_library = lambda name: None\n"
    code += "pathlib.Path.glob = lambda *a: []\nimport importlib.metadata as m\n"
    code += "keep = m.files; m.files = lambda name: [] if name == 'mkl' else keep(name)\nimport hubsae\n"
    done = run(code)
    assert 'no tuned BLAS was found. Run: pip install "hubsae[cpu]"' in done.stderr


def test_mlx_without_a_backend_names_the_extra():
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'mlx.core': raise ImportError('libmlx.so: cannot open shared object file')\n"
        "sys.meta_path.insert(0, Missing())\n"
        "import hubsae\n"
    )
    done = run(code)
    assert "BackendError: mlx is installed without a backend" in done.stderr
    if sys.platform == "linux":
        assert 'pip install "hubsae[cpu]"' in done.stderr


def test_the_description_is_complete():
    found = backend.describe()
    assert found.device in ("cpu", "gpu")
    assert found.mlx_version[0].isdigit()
    assert found.device_name
    assert found.blas is None or Path(found.blas).name
