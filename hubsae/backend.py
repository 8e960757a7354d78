"""The device. On Linux CPUs a tuned BLAS has to be in the process before `mlx.core` is.

MLX's Linux CPU wheel links the reference BLAS. The dynamic linker resolves `cblas_sgemm` to the first library in the
global scope that defines it, so a tuned library opened with RTLD_GLOBAL before MLX takes its place.
"""

import ctypes
import ctypes.util
import functools
import importlib
import importlib.metadata
import os
import platform
import site
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

from hubsae.errors import BackendError, HubsaeWarning

_CUDA_PACKAGES = ("mlx-cuda", "mlx-cuda-12", "mlx-cuda-13")
_INSTALL_CPU = 'pip install "hubsae[cpu]"'
_state: dict[str, str | None] = {"blas": None, "note": None}


@dataclass(frozen=True)
class Backend:
    """What MLX computes with: `device` ("cpu" or "gpu"), `blas` (path of the library, None: not a Linux CPU)."""

    device: str
    device_name: str
    mlx_version: str
    blas: str | None
    note: str | None

    @property
    def blas_name(self) -> str:
        """A short name for tables: "MKL", "OpenBLAS", "reference BLAS", "Accelerate", "-"."""
        if self.device == "gpu":
            return "-"
        if sys.platform == "darwin":
            return "Accelerate"
        name = Path(self.blas or "").name.lower()
        return "MKL" if "mkl" in name else "OpenBLAS" if "openblas" in name else "reference BLAS"


def prepare() -> None:
    """Load a tuned BLAS if this is Linux without an accelerator, then `mlx.core`; called once by `import hubsae`.

    The environment variable HUBSAE_BLAS names a library (path or soname) or `none`.
    Raises `BackendError` where MLX has no backend, or where HUBSAE_BLAS names something that cannot be loaded.
    """
    mlx_came_first = "mlx.core" in sys.modules
    on_linux_cpu = sys.platform == "linux" and not _cuda_installed()
    wanted = os.environ.get("HUBSAE_BLAS", "")
    if on_linux_cpu and not mlx_came_first and wanted.lower() != "none":
        os.environ.setdefault("KMP_BLOCKTIME", "1")  # ms; else MKL's threads spin for 200 after every product
        _state["blas"] = _load_named(wanted) if wanted else _load_best()
    try:
        importlib.import_module("mlx.core")
    except ImportError as error:
        extra = _INSTALL_CPU if sys.platform == "linux" else "pip install --force-reinstall mlx"
        cuda = ', or pip install "hubsae[cuda]" for an NVIDIA GPU' if sys.platform == "linux" else ""
        raise BackendError(f"mlx is installed without a backend ({error}). Run: {extra}{cuda}") from error
    if on_linux_cpu and wanted.lower() != "none" and not _is_tuned(active_blas()):
        _warn_slow(mlx_came_first)


def _warn_slow(mlx_came_first: bool) -> None:
    found = mlx_came_first and any(True for _ in _candidates())
    cure = "Import hubsae before mlx" if found else f"Run: {_INSTALL_CPU}"
    why = "mlx was imported before hubsae" if found else "no tuned BLAS was found"
    _state["note"] = f"reference BLAS in use: {why}. {cure}"
    warnings.warn(
        f"MLX computes with the reference BLAS (10 to 30 times slower matrix products): {why}. "
        f"{cure} (or set HUBSAE_BLAS to a library, or to 'none' to keep it so).",
        HubsaeWarning,
        stacklevel=4,
    )


def _cuda_installed() -> bool:
    return any(_version(name) is not None for name in _CUDA_PACKAGES)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _candidates():
    """Paths or sonames of tuned BLAS libraries, best first."""
    roots = dict.fromkeys([sys.prefix, sys.base_prefix, site.USER_BASE or ""])
    for root in filter(None, roots):
        yield from sorted(map(str, Path(root, "lib").glob("libmkl_rt.so*")), reverse=True)
    try:
        files = importlib.metadata.files("mkl") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name.startswith("libmkl_rt.so"):
            yield str(Path(str(file.locate())).resolve())
    for name in ("mkl_rt", "openblas"):
        found = ctypes.util.find_library(name)
        if found:
            yield found


def _load_named(name: str) -> str:
    try:
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise BackendError(
            f"HUBSAE_BLAS={name!r} cannot be loaded ({error}); give the path of a BLAS library, or 'none'"
        ) from error
    return name


def _load_best() -> str | None:
    for name in _candidates():
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return name
    return None


class _DlInfo(ctypes.Structure):
    _fields_ = [
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    ]


def active_blas() -> str | None:
    """Path of the library whose `cblas_sgemm` this process resolves first, as the linker tells; None if unknown."""
    if sys.platform != "linux":
        return None
    process = ctypes.CDLL(None)
    try:
        address = ctypes.cast(process.cblas_sgemm, ctypes.c_void_p)
        info = _DlInfo()
        dladdr = process.dladdr
    except AttributeError:
        return None
    dladdr.argtypes = [ctypes.c_void_p, ctypes.POINTER(_DlInfo)]
    if not dladdr(address, ctypes.byref(info)) or not info.file:
        return None
    return info.file.decode()


def _is_tuned(library: str | None) -> bool:
    name = Path(library or "").name.lower()
    return bool(os.environ.get("HUBSAE_BLAS")) or any(word in name for word in ("mkl", "openblas", "blis", "armpl"))


@functools.cache
def describe() -> Backend:
    """What MLX computes with in this process."""
    import mlx.core as mx

    gpu = mx.default_device() == mx.Device(mx.gpu)
    blas = None if gpu or sys.platform != "linux" else (active_blas() or "reference BLAS of the mlx wheel")
    return Backend(
        device="gpu" if gpu else "cpu",
        device_name=_device_name(gpu),
        mlx_version=_version("mlx") or "unknown",
        blas=blas,
        note=_state["note"],
    )


def _device_name(gpu: bool) -> str:
    if gpu:
        import mlx.core as mx

        return str(mx.device_info().get("device_name", "gpu"))
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def is_cpu() -> bool:
    """True where MLX computes on a CPU: low precision is slow there, so language models run in fp32."""
    import mlx.core as mx

    return mx.default_device() == mx.Device(mx.cpu)
