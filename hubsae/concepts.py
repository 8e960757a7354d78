"""Judging features against truth: how well the best feature of each known concept tells what carries it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hubsae.errors import DataError

THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class ConceptMatch:
    """How well a feature above its threshold tells what carries `concept`; f1: harmonic mean of the other two."""

    feature: int
    concept: str
    precision: float
    recall: float
    f1: float


def match_concepts(values: Any, carried: np.ndarray, names: Sequence[str], fit: np.ndarray) -> list[ConceptMatch]:
    """The best feature of each concept, best match first.

    values (units, F), CSR: features on units such as words or tokens; carried (units, concepts): which carry which
    concept. A feature says yes above a threshold, one of `THRESHOLDS` times its largest value. Feature and threshold
    are chosen by F1 on the units where `fit` (units,) is true; precision, recall and F1 are those on the others.
    """
    if carried.shape != (values.shape[0], len(names)) or fit.shape != (values.shape[0],):
        raise DataError(
            f"concepts of shape {carried.shape} and a split of shape {fit.shape} for {values.shape[0]} units "
            f"and {len(names)} names"
        )
    peak = np.asarray(values[fit].max(axis=0).todense()).ravel()
    best: dict[str, tuple[float, int, float, float, float]] = dict.fromkeys(names, (-1.0, 0, 0.0, 0.0, 0.0))
    for threshold in THRESHOLDS:
        says = values.copy()
        says.data = (values.data > threshold * peak[values.indices]).astype(np.float32)
        chosen = _scores(says[fit], carried[fit])[2]
        precision, recall, f1 = _scores(says[~fit], carried[~fit])
        for j, name in enumerate(names):
            i = int(chosen[:, j].argmax())
            if chosen[i, j] > best[name][0]:
                best[name] = (float(chosen[i, j]), i, float(precision[i, j]), float(recall[i, j]), float(f1[i, j]))
    matches = [ConceptMatch(i, name, precision, recall, f1) for name, (_, i, precision, recall, f1) in best.items()]
    return sorted(matches, key=lambda m: (-m.f1, m.concept))


def _scores(says: Any, carried: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(F, concepts) precision, recall and F1 of 0/1 answers."""
    both = np.asarray(says.T @ carried.astype(np.float32))
    yes = np.asarray(says.sum(axis=0)).reshape(-1, 1)
    true = carried.sum(axis=0).reshape(1, -1)
    return both / np.maximum(yes, 1), both / np.maximum(true, 1), 2 * both / np.maximum(yes + true, 1)
