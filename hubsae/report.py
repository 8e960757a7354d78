"""Where the numbers of a training run go while it runs: a progress bar, a callable, or trackio."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from hubsae.errors import ConfigError

Row = dict[str, Any]
ReportTo = Callable[[Row], object] | str | None


class Report(Protocol):
    """Takes (step, steps, one log row for every dictionary), and is closed at the end."""

    def __call__(self, step: int, steps: int, rows: list[Row]) -> None: ...

    def close(self) -> None: ...


class Bar:
    """A progress bar of steps; fvu, l0 and dead share are means over the dictionaries."""

    def __init__(self):
        from tqdm import tqdm

        self._bar = tqdm(unit="step", desc="training")

    def __call__(self, step: int, steps: int, rows: list[Row]) -> None:
        self._bar.total = steps
        fvu, l0, dead = (sum(row[name] for row in rows) / len(rows) for name in ("fvu", "l0", "dead_share"))
        self._bar.set_postfix(fvu=f"{fvu:.3f}", l0=f"{l0:.0f}", dead=f"{dead:.1%}", refresh=False)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class Caller:
    """Calls a function with each row; `dictionary` in it says which one it is of."""

    def __init__(self, function: Callable[[Row], object], names: Sequence[str]):
        self._function, self._names = function, names

    def __call__(self, step: int, steps: int, rows: list[Row]) -> None:
        for name, row in zip(self._names, rows, strict=True):
            self._function({"dictionary": name, "steps": steps, **row})

    def close(self) -> None:
        """Nothing is open."""


def check_report(report_to: ReportTo) -> None:
    """Raise `ConfigError` where rows cannot go there."""
    if report_to is None or callable(report_to):
        return
    if report_to != "trackio":
        raise ConfigError(f"report_to={report_to!r}: expected 'trackio' or a function that takes a row")
    try:
        import trackio  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("report_to='trackio': trackio is not installed; run pip install trackio") from error


class Trackio:
    """A run of the project "hubsae" in trackio; with several dictionaries, metrics bear their names."""

    def __init__(self, names: Sequence[str], settings: dict):
        import trackio  # pyright: ignore[reportMissingImports]

        self._trackio, self._names = trackio, names
        trackio.init(project="hubsae", config=settings)

    def __call__(self, step: int, steps: int, rows: list[Row]) -> None:
        prefixes = [f"{name}/" for name in self._names] if len(rows) > 1 else [""]
        metrics = {p + key: value for p, row in zip(prefixes, rows, strict=True) for key, value in row.items()}
        self._trackio.log({key: v for key, v in metrics.items() if key.split("/")[-1] != "step"}, step=step)

    def close(self) -> None:
        self._trackio.finish()


class Reports:
    """Context: a bar where one is wanted, and what `report_to` names; called with what each of them takes."""

    def __init__(self, report_to: ReportTo, names: Sequence[str], settings: dict, progress: bool):
        self._reports: list[Report] = []
        check_report(report_to)
        if callable(report_to):
            self._reports.append(Caller(report_to, names))
        elif report_to is not None:
            self._reports.append(Trackio(names, settings))
        if progress:
            self._reports.append(Bar())

    def __enter__(self) -> "Reports":
        return self

    def __exit__(self, *exc: object) -> None:
        for report in self._reports:
            report.close()

    def __call__(self, step: int, steps: int, rows: list[Row]) -> None:
        for report in self._reports:
            report(step, steps, rows)
