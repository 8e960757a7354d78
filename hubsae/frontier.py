"""Which numbers of several dictionaries may stand beside each other, and who of them is dominated by none."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from hubsae.errors import ConfigError
from hubsae.identity import BaseModel, compare
from hubsae.report_config import models_key
from hubsae.sites import Site

COLUMNS: dict[str, tuple[type, str]] = {
    "name": (str, "what this report calls the dictionary"),
    "repo_id": (str, "its repository"),
    "revision": (str, "the commit that was judged"),
    "subfolder": (str, "its folder in the repository"),
    "kind": (str, "sae, transcoder or crosscoder"),
    "layer": (int, "the first layer that it writes"),
    "component": (str, "the components that it writes"),
    "reads": (str, "the sites that it reads"),
    "writes": (str, "the sites that it writes"),
    "n_features": (int, "features"),
    "sparsity": (str, "the rule that makes the code sparse"),
    "k": (int, "active features that the rule asks for, where it does"),
    "l0": (float, "active features per token, as measured"),
    "fvu": (float, "fraction of variance unexplained: squared errors / squares about the mean"),
    "fvu_lo": (float, "its 95 % interval over documents, lower end"),
    "fvu_hi": (float, "upper end"),
    "explained_variance": (float, "1 - fvu"),
    "ce_recovered": (float, "(CE zeros - CE spliced) / (CE zeros - CE original), next-token cross-entropies"),
    "ce_recovered_lo": (float, "its 95 % interval over documents, lower end"),
    "ce_recovered_hi": (float, "upper end"),
    "ce_recovered_mean": (float, "the same with the mean activation in the place of zeros"),
    "ce_recovered_mean_lo": (float, "its 95 % interval over documents, lower end"),
    "ce_recovered_mean_hi": (float, "upper end"),
    "kl": (float, "KL(original || spliced) of the next token, nats"),
    "kl_lo": (float, "its 95 % interval over documents, lower end"),
    "kl_hi": (float, "upper end"),
    "dead_share": (float, "share of the features that were active on no token"),
    "cosine": (float, "mean cosine of activation and reconstruction"),
    "ce_original": (float, "cross-entropy of the model as it is, nats"),
    "n_tokens": (int, "tokens that l0, fvu, dead_share and cosine are over"),
    "n_documents": (int, "documents that they are of"),
    "n_spliced_tokens": (int, "predictions that the cross-entropies and KL are over"),
    "data": (str, "the texts"),
    "base_model": (str, "the language models"),
    "group": (str, "rows of one group can be compared: same model, same texts, same written sites"),
    "on_frontier": (bool, "whether none of its group has at most as many active features and recovers more loss"),
}
MEASURES = {"ce_recovered": 1, "ce_recovered_mean": 1, "explained_variance": 1, "cosine": 1, "fvu": -1, "kl": -1}
"""What fidelity can be judged by, and whether more of it (1) or less (-1) is better."""

_SAME_LOSS = 1e-5  # relative: other texts differ by more, another order of summing by less


@dataclass(frozen=True)
class Setting:
    """One language model (or several read together) on some texts, as far as is known: where numbers come from.

    members: places among the entries. model: what the models are called, the same in all settings of the same ones.
    data: `name`, `dataset`, `digest` of the texts. ce_original: loss of the models as they are.
    """

    members: tuple[int, ...]
    model: str
    models: tuple[BaseModel, ...]
    data: Mapping[str, Any]
    n_tokens: int
    n_documents: int | None
    n_spliced_tokens: int | None
    ce_original: float | None

    @property
    def texts(self) -> str:
        return str(self.data.get("name") or "texts without a name")


@dataclass(frozen=True)
class Group:
    """Dictionaries whose numbers can be compared: one `Setting`, and the same sites replaced. Their names, in order of
    l0."""

    label: str
    names: tuple[str, ...]
    writes: tuple[str, ...]
    setting: Setting


def settings_of(entries: Sequence[dict], results: Mapping[str, dict]) -> list[Setting]:
    """The different settings that results were measured in, in the order of their first entries.

    Two results are of one setting if their models do not differ (see `identity.compare`: a difference that would warn
    counts), their texts have the same name, Hub id and digest, and as many tokens, documents and predictions, and if
    the loss of the model as it is agrees to one part in 100,000: it does not depend on the dictionary.
    """
    known = _Models(entries)
    buckets: dict[tuple, list[list[int]]] = {}
    for i, entry in enumerate(entries):
        result = results[entry["name"]]
        found = buckets.setdefault(_texts_key(result), [])
        for members in found:
            if known.same(i, members[0]) and _same_loss(result, results[entries[members[0]]["name"]]):
                members.append(i)
                break
        else:
            found.append([i])
    parts = sorted(members for found in buckets.values() for members in found)
    out = []
    for members, model in zip(parts, known.names([members[0] for members in parts]), strict=True):
        result = results[entries[members[0]]["name"]]
        counts = {name: result.get(name) for name in ("n_documents", "n_spliced_tokens", "ce_original")}
        texts = result.get("data") or {}
        out.append(Setting(tuple(members), model, known.of(members[0]), texts, result["n_tokens"], **counts))
    return out


class _Models:
    """The language models of entries: each record of them read once, and two records compared once."""

    def __init__(self, entries: Sequence[dict]):
        firsts: dict[str, dict] = {}
        keys = [models_key(entry) for entry in entries]
        for key, entry in zip(keys, entries, strict=True):
            firsts.setdefault(key, entry)
        places = {key: record for record, key in enumerate(firsts)}
        self._record_of = [places[key] for key in keys]
        self._models = [models_of(entry) for entry in firsts.values()]
        self._same: dict[tuple[int, int], bool] = {}

    def of(self, i: int) -> tuple[BaseModel, ...]:
        """Those of an entry."""
        return self._models[self._record_of[i]]

    def same(self, i: int, j: int) -> bool:
        """Whether those of two entries do not differ."""
        pair = self._record_of[i], self._record_of[j]
        if pair not in self._same:
            self._same[pair] = pair[0] == pair[1] or same_models(self.of(i), self.of(j))
        return self._same[pair]

    def names(self, entries: Sequence[int]) -> list[str]:
        """A name for each entry: of models that do not differ the same, with a repository where one of them has it."""
        alike: list[list[int]] = []
        number: dict[int, int] = {}
        for i in entries:
            if self._record_of[i] not in number:
                n = next((n for n, others in enumerate(alike) if self.same(i, others[0])), len(alike))
                alike += [[]] if n == len(alike) else []
                alike[n].append(i)
                number[self._record_of[i]] = n
        best = [min(own, key=lambda i: sum(base.repo_id is None for base in self.of(i))) for own in alike]
        labels = distinct([" and ".join(base.label for base in self.of(i)) for i in best])
        return [labels[number[self._record_of[i]]] for i in entries]


def groups_of(entries: Sequence[dict], settings: Sequence[Setting]) -> list[Group]:
    """The members of every setting by the sites that they replace."""
    parts: dict[tuple[int, tuple[str, ...]], list[int]] = {}
    for number, setting in enumerate(settings):
        for i in setting.members:
            parts.setdefault((number, written(entries[i])), []).append(i)
    labels = _labels([(settings[number], writes) for number, writes in parts])
    return [
        Group(label, tuple(entries[i]["name"] for i in members), writes, settings[number])
        for label, ((number, writes), members) in zip(labels, parts.items(), strict=True)
    ]


def _labels(parts: Sequence[tuple[Setting, tuple[str, ...]]]) -> list[str]:
    """Sites, and of models, texts and numbers of tokens what is needed to tell the groups apart."""
    several_models = len({setting.model for setting, _ in parts}) > 1
    labels = [short_sites(writes) + (f" of {s.model}" if several_models else "") for s, writes in parts]
    for more in (lambda s: f" on {s.texts}", lambda s: f", {s.n_tokens:,} tokens"):
        added = [more(s) for s, _ in parts]
        told: dict[str, set[str]] = {}
        for label, text in zip(labels, added, strict=True):
            told.setdefault(label, set()).add(text)
        labels = [label + text if len(told[label]) > 1 else label for label, text in zip(labels, added, strict=True)]
    return distinct(labels)


def short_sites(sites: Sequence[str]) -> str:
    """`"layers.1,2,5-8.mlp + layers.3.attn"`: each component of each model once."""
    layers: dict[tuple[int, str], list[int]] = {}
    for site in map(Site.parse, sites):
        layers.setdefault((site.model, site.component), []).append(site.layer)
    return " + ".join(
        str(Site(0, component, model)).replace("layers.0.", f"layers.{_ranges(found)}.", 1)
        for (model, component), found in layers.items()
    )


def _ranges(layers: Sequence[int]) -> str:
    """`"1,2,5-8"`."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 3 else ",".join(map(str, run)) for run in runs)


def distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number behind those that were there before."""
    taken: set[str] = set()
    found: list[str] = []
    for name in names:
        number, shown = 1, name
        while shown in taken:
            number += 1
            shown = f"{name} ({number})"
        taken.add(shown)
        found.append(shown)
    return found


def written(entry: dict) -> tuple[str, ...]:
    """The sites that a dictionary replaces, in the order of the models and layers."""
    return tuple(str(site) for site in sorted(map(Site.parse, entry["writes"]), key=lambda s: (s.model, s.layer, s)))


def models_of(entry: dict) -> tuple[BaseModel, ...]:
    """The models that a dictionary was judged with; those that it was made for, where that is not said."""
    return tuple(BaseModel.from_dict(base) for base in entry["measured_with"] or entry["base_models"])


def same_models(a: Sequence[BaseModel], b: Sequence[BaseModel]) -> bool:
    """Whether nothing known of them differs that would warn or be an error (see `identity.compare`)."""
    if list(a) == list(b):
        return True
    differences = (d for one, other in zip(a, b, strict=False) for d in compare(one, other))
    return len(a) == len(b) and all(d.severity not in ("error", "warning") for d in differences)


def _texts_key(result: dict) -> tuple:
    texts = result.get("data") or {}
    return (
        *(texts.get(name) for name in ("name", "dataset", "digest")),
        *(result.get(name) for name in ("n_tokens", "n_documents", "n_spliced_tokens")),
    )


def _same_loss(a: dict, b: dict) -> bool:
    one, other = a.get("ce_original"), b.get("ce_original")
    return one == other or (one is not None and other is not None and math.isclose(one, other, rel_tol=_SAME_LOSS))


def undominated(rows: Sequence[dict], by: str = "ce_recovered", certain: bool = False) -> list[bool]:
    """Of each row of one group whether no other has at most as many active features and at least its fidelity, one of
    them better.

    Numbers of active features that agree to six digits count as equal. certain: only such a row counts against another
    whose interval lies wholly on the better side. A row without l0 or without this number is never on the frontier.
    """
    sign = MEASURES[checked(by)]
    l0 = np.array([float(f"{_number(row['l0']):.6g}") for row in rows])
    value = sign * np.array([_number(row[by]) for row in rows])
    known = np.isfinite(l0) & np.isfinite(value)
    better = (l0[:, None] <= l0) & (value[:, None] >= value) & ((l0[:, None] < l0) | (value[:, None] > value))
    if certain:
        ends = [np.array([_number(row.get(f"{by}_{end}")) for row in rows]) for end in ("lo", "hi")]
        low, high = ends if sign > 0 else (-ends[1], -ends[0])
        better &= low[:, None] > high  # False where there is no interval
    return (known & ~(better & known[:, None]).any(axis=0)).tolist()


def checked(by: str) -> str:
    """A measure of fidelity, or `ConfigError`."""
    if by not in MEASURES:
        raise ConfigError(f"by={by!r}: expected one of {', '.join(MEASURES)}")
    return by


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


@lru_cache(maxsize=1)
def arrow_schema() -> Any:
    """The columns of `dictionaries.parquet`, a `pyarrow.Schema`."""
    import pyarrow

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    return pyarrow.schema([(name, types[kind]) for name, (kind, _) in COLUMNS.items()])
