"""The artifact of measured numbers: how good one or many dictionaries are, in one dataset repository."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import mlx.core as mx
from huggingface_hub import HfApi

from hubsae import frontier, licences, report_pictures
from hubsae.charts import Picture
from hubsae.errors import ArtifactError, CompatibilityError, ConfigError, DataError
from hubsae.frames import Frame
from hubsae.frontier import COLUMNS, Group, Setting
from hubsae.hub import Artifact
from hubsae.identity import BaseModel
from hubsae.report_config import ReportConfig, check_text
from hubsae.report_rows import checked, columns_of, notes_of, only_place, row_of, summary_of
from hubsae.store import METRICS, REPORT, STATISTICS, read_json
from hubsae.survey import same_marks
from hubsae.tables import Table, number

TABLE = "dictionaries.parquet"
_SHOWN = ("name", "kind", "n_features", "sparsity", "l0", "fvu", "ce_recovered", "kl", "dead_share", "on_frontier")
_PAPERS = (
    ("Gao et al., Scaling and evaluating sparse autoencoders", "2406.04093"),
    ("Rajamanoharan et al., Improving Dictionary Learning with Gated Sparse Autoencoders", "2404.16014"),
)
_HEADS = {"n_features": "features", "ce_recovered": "loss recovered", "dead_share": "never active"}


class Report(Artifact, tags=["mechanistic-interpretability", "hubsae-report"]):
    """How good dictionaries are, measured side by side or as recorded: what `compare` and `load_report` give.

    `config.entries` says which they are, `metrics["results"]` holds every number by their names, with its interval.
    Prints as a table, goes through its `rows`, and `report["name"]` is one of them.
    """

    repo_type: ClassVar[str] = "dataset"
    config_file: ClassVar[str] = REPORT
    arrays_file: ClassVar[str | None] = None
    tables: ClassVar[tuple[str, ...]] = (TABLE,)
    pictures: ClassVar[tuple[str, ...]] = report_pictures.NAMES
    card_template: ClassVar[str] = "report.md"
    config: ReportConfig

    def __init__(self, config: ReportConfig, results: Mapping[str, dict] | None = None):
        super().__init__()
        self.config = config
        if results is not None:
            self.metrics = {"results": checked(config, results)}

    @property
    def results(self) -> dict[str, dict]:
        """All numbers of each dictionary, by its name."""
        return self.metrics["results"]

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """The language models and texts that numbers come from; see `frontier.settings_of`."""
        return tuple(frontier.settings_of(self.config.entries, self.results))

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Which dictionaries can be compared with which: one setting, and the same written sites."""
        return tuple(frontier.groups_of(self.config.entries, self.settings))

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One dictionary each, with the columns of `frontier.COLUMNS`, sorted by model, layer, site and l0."""
        group_of = {name: group for group in self.groups for name in group.names}
        rows = [row_of(entry, self.results[entry["name"]], group_of[entry["name"]]) for entry in self.config.entries]
        chosen = self._chosen(rows, "ce_recovered", False)
        return [{**row, "on_frontier": row["name"] in chosen} for row in rows]

    def _chosen(self, rows: Sequence[dict], by: str, certain: bool) -> set[str]:
        found = set()
        for group in self.groups:
            mine = [row for row in rows if row["name"] in group.names]
            kept = frontier.undominated(mine, by, certain)
            found |= {row["name"] for row, is_kept in zip(mine, kept, strict=True) if is_kept}
        return found

    @property
    def table(self) -> Frame:
        """The rows in columns; `.to_pandas()` gives a data frame."""
        return self._frame(self.rows, self.summary, shown=_SHOWN)

    def _frame(self, rows: Sequence[dict], title: str, note: str = "", shown: tuple[str, ...] = _SHOWN[:-1]) -> Frame:
        several = len(self.groups) > 1
        return Frame(columns_of(rows), title, (*shown, "group") if several else shown, note)

    def frontier(self, by: str = "ce_recovered", *, certain: bool = False) -> Frame:
        """The dictionaries that none of their group dominates, group by group in order of l0.

        A dominates B if it has at most as many active features per token (`l0`) and at least the fidelity, and one of
        the two is better. by: the fidelity, of `frontier.MEASURES`, such as "ce_recovered" or "fvu". Groups are those
        of `groups`: nothing is compared across language models, texts or written sites. certain: B is left out only if
        A's 95 % interval lies wholly on the better side of B's; what has no interval then stays.
        """
        chosen = self._chosen(self.rows, frontier.checked(by), certain)
        left = [row["name"] for row in self.rows if row["name"] not in chosen]
        note = "Not among them: " + ", ".join(left[:8]) + (", ..." if len(left) > 8 else "") if left else ""
        rows = [row for group in self.groups for row in self._of(group) if row["name"] in chosen]
        return self._frame(rows, f"not dominated in active features and {by}", note)

    def best(self, by: str = "ce_recovered", *, max_l0: float | None = None) -> Frame:
        """The best dictionary of every group by `by`, of those with at most `max_l0` active features per token."""
        sign, found = frontier.MEASURES[frontier.checked(by)], []
        for group in self.groups:
            known = [row for row in self._of(group) if row[by] is not None and row["l0"] is not None]
            fit = [row for row in known if max_l0 is None or row["l0"] <= max_l0]
            found += [max(fit, key=lambda row: (sign * row[by], -row["l0"]))] if fit else []
        if not found:
            limit = "" if max_l0 is None else f" and at most {max_l0:g} active features per token"
            raise DataError(f"no dictionary of this report has {by}{limit}")
        return self._frame(found, f"best {by} of each group" + ("" if max_l0 is None else f", l0 up to {max_l0:g}"))

    def _of(self, group: Group) -> list[dict]:
        return [row for row in self.rows if row["name"] in group.names]

    @property
    def summary(self) -> str:
        """What it is about: `"3 sparse autoencoders of layers.1.residual of org/name@1a2b3c4d"`."""
        return summary_of(self.rows, self.settings)

    @property
    def notes(self) -> tuple[str, ...]:
        """What keeps numbers of this report from being compared, in sentences; empty where all of them can be."""
        return tuple(notes_of(self.config, self.settings, self.groups, self.results))

    def load(self, name: str, model: Any = None, **load: Any) -> Any:
        """The dictionary of this name, from the repository and commit that are recorded; `load` as in `load_sae`.

        Raises `CompatibilityError` where it has other weights than the one that was judged.
        """
        from hubsae import load_sae

        entry = self.entry(name)
        if entry["repo_id"] is None:
            raise ConfigError(f"{name}: was not on the Hub when it was judged; load it from where it is now")
        place = {"revision": entry["revision"], "subfolder": entry["subfolder"]}
        found = load_sae(entry["repo_id"], model, **{**place, **load})
        if not same_marks(entry["fingerprint"], found):
            raise CompatibilityError(f"{found.source}: has other weights than {name!r} of this report")
        return found

    def entry(self, name: str) -> dict[str, Any]:
        """What is recorded of one dictionary; raises `DataError` for a name that none has."""
        found = next((entry for entry in self.config.entries if entry["name"] == name), None)
        if found is None:
            names = ", ".join(entry["name"] for entry in self.config.entries[:10])
            raise DataError(f"no dictionary {str(name)[:80]!r} in this report; it has {names}")
        return found

    def __getitem__(self, name: str) -> dict[str, Any]:
        self.entry(name)
        return next(row for row in self.rows if row["name"] == name)

    def __len__(self) -> int:
        return len(self.config.entries)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __str__(self) -> str:
        return "\n\n".join(map(str, self._shown()))

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return "\n".join(table.html() for table in self._shown())

    def _shown(self) -> list[Table]:
        """A table for each group, and the notes below the last."""
        names = [name for name in _SHOWN if name != "on_frontier"]
        head = [_HEADS.get(name, name) for name in names] + ["frontier"]
        found = []
        for group in self.groups:
            rows = [[*(_cell(row, n) for n in names), _place(row, group)] for row in self._of(group)]
            title = f"{group.label}: {group.setting.n_tokens:,} tokens of {group.setting.texts}"
            note = " ".join(self.notes) if group is self.groups[-1] else ""
            found.append(Table(title, head, rows, note))
        return found

    @classmethod
    def from_parts(cls, config: dict, arrays: dict[str, mx.array]) -> Self:
        return cls(ReportConfig.from_dict(config))

    def _read_more(self, folder: Path) -> None:
        if not (folder / METRICS).is_file():
            raise ArtifactError(f"{METRICS} is missing")
        found = read_json(folder / METRICS).get("results")
        try:
            checked(self.config, found)
            for name in (METRICS, STATISTICS):
                check_text(read_json(folder / name) if (folder / name).is_file() else {}, name)
        except ConfigError as error:
            raise ArtifactError(f"{METRICS}: {error}") from error

    def _save_pretrained(self, save_directory: Path) -> None:
        import pyarrow.parquet

        super()._save_pretrained(save_directory)
        arrow = Frame(columns_of(self.rows)).to_arrow().cast(frontier.arrow_schema())
        pyarrow.parquet.write_table(arrow, save_directory / TABLE, compression="zstd", write_page_index=True)

    def _inherited(self, api: HfApi) -> dict | None:
        """The licence that the language models of all its dictionaries share."""
        bases = [base.get("repo_id") for entry in self.config.entries for base in entry["base_models"]]
        return licences.shared(api, bases)

    def card_pictures(self) -> dict[str, Picture]:
        return report_pictures.drawn(self.rows, self.groups)

    def card_metadata(self) -> dict:
        kinds = {"sae": "sparse-autoencoder"}
        tags = [kinds.get(row["kind"], row["kind"]) for row in self.rows]
        tags += [base.repo_id for setting in self.settings for base in setting.models if base.repo_id]
        configs = [{"config_name": "dictionaries", "data_files": TABLE, "default": True}]
        tags = list(dict.fromkeys((*self.class_tags(), *tags)))
        return {"tags": tags, "configs": configs, "pretty_name": f"Sparsity and fidelity: {self.summary}"}

    def card_values(self) -> dict:
        licence, entries = self.statistics.get("licence"), {entry["name"]: entry for entry in self.config.entries}
        made_for = {
            name: [BaseModel.from_dict(b).label for b in entry["base_models"]] for name, entry in entries.items()
        }
        found = {entry["tokens"].get("context_size") for entry in entries.values()} - {None}
        compared = [group for group in self.groups if len(group.names) > 1]
        return {
            "entries": entries,
            "rows": self.rows,
            "groups": [(group, [(row, _place(row, group)) for row in self._of(group)]) for group in self.groups],
            "settings": self.settings,
            "summary": self.summary,
            "notes": self.notes,
            "measured_anew": self.config.data is not None,
            "n_comparisons": len(compared),
            "n_compared": sum(len(group.names) for group in compared),
            "n_frontier": sum(row["on_frontier"] for group in compared for row in self._of(group)),
            "made_for": {name: " and ".join(labels) for name, labels in made_for.items()},
            "many_models": len({*map(tuple, made_for.values())}) > 1,
            "local": sum(entry["repo_id"] is None for entry in entries.values()),
            "contexts": list(map(str, sorted(found))),
            "on_hub": next((row["name"] for row in self.rows if row["repo_id"] and row["on_frontier"]), None),
            "columns": COLUMNS,
            "place": only_place(self.config.entries),
            "papers": _PAPERS,
            "licence": licence if licences.is_licence(licence) else None,
        }


def _place(row: dict, group: Group) -> str:
    """Whether a row is on the frontier of its group, where that has others."""
    return "-" if len(group.names) < 2 else "yes" if row["on_frontier"] else ""


def _cell(row: dict, name: str) -> Any:
    """A cell of what is printed, an interval behind its number; shares as per cent."""
    value = row[name]
    if name == "sparsity":
        return f"{value}" + (f" (k={row['k']})" if row["k"] is not None else "")
    if value is None:
        return "-"
    if name not in ("ce_recovered", "dead_share", "fvu", "kl"):
        return value
    share = name in ("ce_recovered", "dead_share")
    ends = [row.get(f"{name}_{end}") for end in ("lo", "hi")]
    value, *ends = (f"{100 * v:.2f}" if share else number(v) for v in (value, *(e for e in ends if e is not None)))
    return value + (" %" if share else "") + (f" [{', '.join(ends)}]" if ends else "")
