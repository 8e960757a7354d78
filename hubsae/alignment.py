"""The artifact of an alignment: the maps between two models and the pairs of features that they join, in one folder."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import mlx.core as mx
import numpy as np

from hubsae import charts, licences, sparsity
from hubsae.align_config import AlignConfig
from hubsae.alignment_config import AlignmentConfig
from hubsae.axes import Axis
from hubsae.causal import CAUSAL_MEASURES, CONTROLS
from hubsae.charts import Picture
from hubsae.dictionary import Dictionary
from hubsae.errors import ArtifactError, CompatibilityError, ConfigError, DataError
from hubsae.frames import Frame, read_frame
from hubsae.hub import Artifact
from hubsae.identity import BaseModel, Check, check_policy, compare, judge
from hubsae.map_quality import MEASURES
from hubsae.maps import LinearMap
from hubsae.pair_tables import COLUMNS, TABLES, kinds
from hubsae.pairing import FATES
from hubsae.sparse import as_numpy
from hubsae.store import ALIGNMENT, MAP
from hubsae.survey import same_marks

_MISSING_NULLS = ("corr_docshift_q99", "corr_withinword_q99", "p", "q_bh")

_SCORES = {
    "corr_eval": "the pairs",
    "corr_docshift_q99": "99 % of moved rows stay below",
    "corr_withinword_q99": "99 % of shuffles within words stay below",
}
_PAIRS_SHOWN = ("feature_a", "feature_b", "corr_eval", "corr_eval_lo", "corr_eval_hi", "cos_map", "mutual", "q_bh")


class Pair(NamedTuple):
    """Two features that belong together; `correlation` of their activations on documents that proposed no pairs, with
    its 95 % interval, nan where there are too few of them."""

    feature_a: int
    feature_b: int
    correlation: float
    interval: tuple[float, float]


class StoredAlignment(Artifact, tags=["mechanistic-interpretability", "hubsae-alignment"]):
    """Two dictionaries of two models, the maps between the models' activations, and which features belong together.

    `frames`: name -> `Frame`, as `pair_tables` describes them. `maps`: method -> (A to B, B to A); "shuffled" is a
    control, fitted to places that do not belong together. `dictionaries`, `models`: where they are at hand.
    """

    repo_type: ClassVar[str] = "dataset"
    config_file: ClassVar[str] = ALIGNMENT
    arrays_file: ClassVar[str | None] = MAP
    tables: ClassVar[tuple[str, ...]] = tuple(f"{name}.parquet" for name in TABLES)
    card_template: ClassVar[str] = "alignment.md"
    pictures: ClassVar[tuple[str, ...]] = ("pairs",)
    config: AlignmentConfig

    def __init__(
        self,
        config: AlignmentConfig,
        maps: Mapping[str, tuple[LinearMap, LinearMap]],
        frames: Mapping[str, Frame] | None = None,
    ):
        super().__init__()
        self.config, self.maps, self.frames = config, dict(maps), dict(frames or {})
        self.dictionaries: tuple[Any, Any] | None = None
        self.models: tuple[Any, Any] | None = None
        self._check_shapes()

    def _check_shapes(self) -> None:
        p, q = self.config.a["width"], self.config.b["width"]
        if self.settings.method not in self.maps:
            raise ArtifactError(f"no map of the method {self.settings.method!r}, which the features were matched by")
        for method, (there, back) in self.maps.items():
            for name, map_, shape in ((f"{method}.forward", there, (p, q)), (f"{method}.backward", back, (q, p))):
                if map_.matrix.shape != shape or map_.mean_x.shape != shape[:1] or map_.mean_y.shape != shape[1:]:
                    raise ArtifactError(f"{name} maps {map_.matrix.shape}, the config says {shape}")
                if not all(np.isfinite(part).all() for part in (map_.matrix, map_.mean_x, map_.mean_y)):
                    raise ArtifactError(f"{name} holds NaN or infinity")

    @property
    def settings(self) -> AlignConfig:
        """How features were matched."""
        return AlignConfig(**self.config.settings)

    def __repr__(self) -> str:
        a, b = (f"{side['site']} of {BaseModel.from_dict(side['base_model']).label}" for side in self.sides)
        return f"{type(self).__name__}({a} <-> {b}, {len(self.pairs):,} pairs)"

    @property
    def sides(self) -> tuple[dict, dict]:
        """What is recorded of A and of B."""
        return self.config.a, self.config.b

    @property
    def pairs(self) -> Frame:
        """The confirmed pairs, the most alike first; `frames["pairs"]` holds those too that were not confirmed."""
        every = self.frames["pairs"]
        a = self.sides[0]["site"], self.sides[1]["site"]
        found = every.where(every["confirmed"]).sorted_by("corr_eval")
        dropped = len(every) - len(found)
        note = f"{dropped:,} more were chosen and not confirmed on other documents." if dropped else ""
        return Frame(found.columns, f"{len(found):,} pairs of {a[0]} and {a[1]}", _PAIRS_SHOWN, note)

    @property
    def metrics_table(self) -> Frame:
        """All numbers with their intervals and nulls."""
        return Frame(
            self.frames["metrics"].columns,
            "metrics",
            ("name", "method", "direction", "value", "lo", "hi", "null_name", "null_mean", "p"),
        )

    def metric(self, name: str, method: str | None = None, direction: str | None = None) -> dict[str, Any]:
        """One row of the metrics; of several the first. Raises `DataError` where there is none."""
        table = self.frames["metrics"]
        for i in np.flatnonzero(table["name"] == name):
            row = table.row(int(i))
            if (method is None or row["method"] == method) and (direction is None or row["direction"] == direction):
                return row
        raise DataError(f"no metric {name!r} of method {method}, direction {direction}")

    def partner(self, feature: int, side: str = "a") -> Pair | None:
        """The confirmed partner of a feature of A (or of B, `side="b"`); None where it has none: see `unmatched`."""
        own = self._side(side)
        if not isinstance(feature, int | np.integer) or not 0 <= feature < own["n_features"]:
            raise DataError(f"feature {feature!r}: {side} has the features 0 to {own['n_features'] - 1}")
        pairs = self.pairs
        found = np.flatnonzero(pairs[f"feature_{side}"] == feature)
        if not len(found):
            return None
        return next(_each(pairs.where(found[:1])))

    def unmatched(self, side: str = "a") -> Frame:
        """The features of A (or B) without a confirmed partner, each with its fate and its best candidate."""
        self._side(side)
        table = self.frames[f"features_{side}"]
        found = table.where(table["fate"] != "matched")
        return Frame(found.columns, f"features of {side.upper()} without a partner", tuple(table.columns))

    def _side(self, side: str) -> dict:
        if side not in ("a", "b"):
            raise ConfigError(f"side={side!r}: expected 'a' or 'b'")
        return self.sides[side == "b"]

    def map(self, x: Any, *, method: str | None = None, back: bool = False) -> mx.array:
        """(..., width of A) activations -> (..., width of B), or with `back` the other way."""
        there = self.map_of(method, back)
        try:
            rows = as_numpy(x.astype(mx.float32)) if isinstance(x, mx.array) else np.asarray(x, np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(f"{type(x).__name__}: expected activations (..., {len(there.mean_x)})") from error
        return mx.array(there(rows))

    def map_of(self, method: str | None = None, back: bool = False) -> LinearMap:
        """The map of a method, by default the one that features were matched by."""
        method = method or self.settings.method
        if method not in self.maps:
            raise ConfigError(f"method={method!r}: this alignment holds {', '.join(self.maps)}")
        return self.maps[method][back]

    def compare(self, a: Dictionary, b: Dictionary) -> list[str]:
        """In what two dictionaries differ from those that were aligned, in words; empty where they are the same."""
        out = []
        for name, side, dictionary in (("A", self.sides[0], a), ("B", self.sides[1], b)):
            c = dictionary.config
            if (c.reads, c.d_in, c.n_features) != ((side["site"],), side["width"], side["n_features"]):
                there = f"{', '.join(c.reads)} ({c.d_in} columns, {c.n_features} features)"
                here = f"{side['site']} ({side['width']} columns, {side['n_features']} features)"
                out.append(f"{name} reads {there}, the aligned one {here}")
            elif not same_marks(side["fingerprint"], dictionary) or c.sparsity != side["sparsity"]:
                out.append(f"{name} has other weights than the dictionary that was aligned")
        return out

    def bind(self, a: Any, b: Any, model_a: Any = None, model_b: Any = None, check: Check = "warn") -> None:
        """Use these dictionaries, and their models where given, after comparing them with what is recorded.

        Raises `CompatibilityError` for other dictionaries, whatever `check` says short of "ignore"; models are judged
        as `load_sae` does.
        """
        check_policy(check)
        if check != "ignore" and (differences := self.compare(a, b)):
            raise CompatibilityError(f"{self.source or 'this alignment'}: {'; '.join(differences)}")
        for dictionary, model, side in ((a, model_a, self.sides[0]), (b, model_b, self.sides[1])):
            if model is not None:
                dictionary.bind(model, check)
            recorded, named = BaseModel.from_dict(side["base_model"]), dictionary.base_model
            if recorded != named:  # else `dictionary.bind` has judged
                found = dictionary.models[0].identity if dictionary.models else named
                judge(compare(recorded, found), check, f"{self.source or 'this alignment'}")
        self.dictionaries = (a, b)
        if a.models and b.models:
            self.models = (a.models[0], b.models[0])

    def arrays(self) -> dict[str, mx.array]:
        found = {}
        for method, both in self.maps.items():
            for name, map_ in zip(("forward", "backward"), both, strict=True):
                for part in ("matrix", "mean_x", "mean_y"):
                    found[f"{method}.{name}.{part}"] = mx.array(getattr(map_, part).astype(np.float32))
        return found

    @classmethod
    def from_parts(cls, config: dict, arrays: dict[str, mx.array]) -> Self:
        known = AlignmentConfig.from_dict(config)
        maps: dict[str, list[LinearMap]] = {}
        methods = sorted({name.split(".")[0] for name in arrays})
        wanted = {
            f"{method}.{way}.{part}"
            for method in methods
            for way in ("forward", "backward")
            for part in ("matrix", "mean_x", "mean_y")
        }
        if wanted != set(arrays):
            missing, unknown = sorted(wanted - set(arrays)), sorted(set(arrays) - wanted)
            raise ArtifactError(f"map.safetensors: missing {missing}, unknown {unknown}")
        for method in methods:
            maps[method] = [
                LinearMap(
                    *(
                        as_numpy(arrays[f"{method}.{way}.{p}"]).astype(np.float64)
                        for p in ("matrix", "mean_x", "mean_y")
                    )
                )
                for way in ("forward", "backward")
            ]
        return cls(known, {method: (there, back) for method, (there, back) in maps.items()})

    def _save_pretrained(self, save_directory: Path) -> None:
        self.check_nulls()
        super()._save_pretrained(save_directory)
        for name in TABLES:
            if name in self.frames:
                self.frames[name].write(save_directory / f"{name}.parquet")

    def _read_more(self, folder: Path) -> None:
        for name in TABLES:
            path = folder / f"{name}.parquet"
            if path.is_file():
                self.frames[name] = read_frame(path, kinds(name))
            elif name != "effects":
                raise ArtifactError(f"{path.name} is missing")
        sizes = {"feature_a": self.sides[0]["n_features"], "feature_b": self.sides[1]["n_features"]}
        for table in {"pairs", "candidates", "effects"} & set(self.frames):
            for column, size in sizes.items():
                ids = self.frames[table][column]
                if len(ids) and not 0 <= ids.min() <= ids.max() < size:
                    raise ArtifactError(f"{table}.parquet, {column}: features lie between 0 and {size - 1}")
        pairs = self.frames["pairs"]
        for (column, size), side in zip(sizes.items(), "ab", strict=True):
            ids, table = pairs[column][pairs["confirmed"]], self.frames[f"features_{side}"]
            best, others = table["best_partner"], self.sides[side == "a"]["n_features"]
            if len(best) and not -1 <= best.min() <= best.max() < others:
                raise ArtifactError(f"features_{side}.parquet, best_partner: expected -1 to {others - 1}")
            if len(np.unique(ids)) != len(ids):
                raise ArtifactError(f"pairs.parquet, {column}: a feature has several confirmed partners")
            if not np.array_equal(table["index"], np.arange(size)):
                raise ArtifactError(f"features_{side}.parquet: expected one row for each feature from 0 to {size - 1}")
            if unknown := sorted({str(fate) for fate in table["fate"]} - set(FATES)):
                raise ArtifactError(f"features_{side}.parquet: unknown fates {', '.join(unknown)}"[:200])

        for name in ("corr_eval", "corr_match", "cos_map", "corr_eval_lo", "corr_eval_hi", "p", "q_bh", "invariance"):
            values = pairs[name][~np.isnan(pairs[name])]
            if len(values) and np.abs(values).max() > 1 + 1e-5:
                raise ArtifactError(f"pairs.parquet, {name}: {np.abs(values).max():g}, expected at most 1")

    def check_nulls(self) -> None:
        """Raise `ArtifactError` where pairs or metrics stand there without what chance would give."""
        pairs, table = self.frames.get("pairs"), self.frames.get("metrics")
        if pairs is None or table is None:
            raise ArtifactError("an alignment without its pairs and metrics is not written")
        for name in _MISSING_NULLS:
            if name not in pairs.columns or np.isnan(pairs[name][pairs["confirmed"]].astype(float)).any():
                raise ArtifactError(f"some confirmed pairs have no {name}; numbers without nulls are not published")
        rows = zip(table["name"], table["value"], table["null_mean"], strict=True)
        without = {str(name) for name, value, null in rows if np.isnan(null) and not np.isnan(value)}
        needed = {"r2", "retrieval_at_1", "cka", "top_k_overlap"}
        if bad := sorted(without & needed):
            raise ArtifactError(f"{', '.join(bad)}: without a null; numbers without nulls are not published")

    def card_metadata(self) -> dict:
        bases = [BaseModel.from_dict(side["base_model"]).repo_id for side in self.sides]
        repos = [side.get("repo_id") for side in self.sides]
        tags = [*self.class_tags(), *(n for n in dict.fromkeys((*bases, *repos)) if n)]
        configs = [
            {"config_name": name, "data_files": f"{name}.parquet", **({"default": True} if name == "pairs" else {})}
            for name in TABLES
            if name in self.frames
        ]
        a, b = (f"{side['site']} of {BaseModel.from_dict(side['base_model']).label}" for side in self.sides)
        name, size = f"Pairs of features: {a} and {b}", _size_category(len(self.frames["pairs"]))
        return {"tags": tags, "configs": configs, "pretty_name": name, "size_categories": [size]}

    def card_values(self) -> dict:
        self.check_nulls()
        table, licence = self.frames["metrics"], self.statistics.get("licence")
        return {
            "sides": self.sides,
            "rules": [sparsity.from_dict(side["sparsity"]) for side in self.sides],
            "licence": licence if licences.is_licence(licence) else None,
            "bases": [BaseModel.from_dict(side["base_model"]) for side in self.sides],
            "settings": self.settings,
            "pairs": [self.pairs.row(i) for i in range(min(10, len(self.pairs)))],
            "n_pairs": int(self.frames["pairs"]["confirmed"].sum()),
            "n_unconfirmed": int((~self.frames["pairs"]["confirmed"]).sum()),
            "rows": [table.row(i) for i in range(len(table))],
            "maps": list(self.maps),
            "measures": MEASURES,
            "causal_measures": CAUSAL_MEASURES,
            "controls": (*CONTROLS, "other places"),
            "effects": self.frames.get("effects"),
            "fates": [Counter(self.frames[f"features_{side}"]["fate"].tolist()) for side in "ab"],
            "columns": {name: COLUMNS[kind] for name, kind in TABLES.items() if name in self.frames},
        }

    def card_pictures(self) -> dict[str, Picture]:
        picture = _scores(self.pairs, self.config.thresholds.get("correlation"))
        return {"pairs": picture} if picture else {}

    def __iter__(self) -> Iterator[Pair]:
        """The confirmed pairs."""
        return _each(self.pairs)


def _size_category(n_rows: int) -> str:
    """The Hub's words for the number of rows of a data set."""
    names = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M")
    return names[min(len(names) - 1, max(0, len(str(n_rows)) - 3))]


def _scores(pairs: Frame, threshold: Any) -> Picture | None:
    """How the pairs' held-out correlations lie beside what 99 % of their two nulls stay below; None where correlations
    are none."""
    known = {name: pairs[name][np.isfinite(pairs[name])] for name in _SCORES}
    every = np.concatenate([*known.values()])
    if not len(known["corr_eval"]) or np.abs(every).max() > 1 + 1e-5:
        return None
    edges = np.arange(-20 if every.min() < -0.05 else 0, 21) / 20
    counts = {text: np.histogram(known[name].clip(edges[0], 1), edges)[0] for name, text in _SCORES.items()}
    both = np.isfinite(pairs["corr_withinword_q99"]) & np.isfinite(pairs["corr_eval"])
    above = np.mean(pairs["corr_eval"][both] > pairs["corr_withinword_q99"][both])
    many = "pair" if len(pairs) == 1 else "pairs"
    finding = f"{len(pairs):,} confirmed {many}, {100 * above:.0f} % above 99 % of the shuffles within words"
    half, shifted = np.median(known["corr_eval"]), np.median(known["corr_docshift_q99"])
    marks = {"threshold": threshold} if isinstance(threshold, int | float) and 0 < threshold < 1 else {}
    return charts.histogram(
        edges,
        counts,
        x=Axis("correlation of activations at held-out anchors", low=edges[0], high=1),
        y="confirmed pairs",
        title=finding,
        alt=f"{finding}: half of the pairs have a held-out correlation above {half:.2f}, and half of the bounds under "
        f"which 99 % of moved rows stay lie above {shifted:.2f}.",
        marks=marks,
    )


def _each(pairs: Frame) -> Iterator[Pair]:
    names = ("feature_a", "feature_b", "corr_eval", "corr_eval_lo", "corr_eval_hi")
    columns = [pairs[name].tolist() for name in names]
    return (Pair(a, b, r, (low, high)) for a, b, r, low, high in zip(*columns, strict=True))
