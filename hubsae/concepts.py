"""Judging features against truth: how well the best feature of each known concept tells what carries it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

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
    best: dict[str, tuple[float, int, float, float, float]] = dict.fromkeys(names, (-1.0, 0, 0.0, 0.0, 0.0))
    for chosen, (precision, recall, f1) in _by_threshold(values, carried, fit):
        for j, name in enumerate(names):
            i = int(chosen[:, j].argmax())
            if chosen[i, j] > best[name][0]:
                best[name] = (float(chosen[i, j]), i, float(precision[i, j]), float(recall[i, j]), float(f1[i, j]))
    matches = [ConceptMatch(i, name, precision, recall, f1) for name, (_, i, precision, recall, f1) in best.items()]
    return sorted(matches, key=lambda m: (-m.f1, m.concept))


def concepts_of_features(values: Any, carried: np.ndarray, names: Sequence[str], fit: np.ndarray) -> list[ConceptMatch]:
    """(F,) the concept that each feature tells best, with what `match_concepts` says of the arguments.

    Concept and threshold are chosen by F1 on the units to fit, the scores are those on the others.
    """
    n_features = values.shape[1]
    best, found = np.full(n_features, -1.0), [ConceptMatch(i, "", 0.0, 0.0, 0.0) for i in range(n_features)]
    for chosen, scores in _by_threshold(values, carried, fit):
        concept = chosen.argmax(axis=1)
        for i in np.flatnonzero(chosen[np.arange(n_features), concept] > best):
            j = int(concept[i])
            best[i] = chosen[i, j]
            found[i] = ConceptMatch(int(i), names[j], *(float(score[i, j]) for score in scores))
    return found


@dataclass(frozen=True)
class Agreement:
    """Of `n` pairs of features that both tell a concept, the `share` that tell the same; `shuffled`: by chance."""

    n: int
    share: float
    shuffled: float


def agreement(a: Sequence[ConceptMatch], b: Sequence[ConceptMatch], least_f1: float = 0.5, seed: int = 0) -> Agreement:
    """Whether pairs (a[i], b[i]) tell the same concept, among those in which both have an F1 of at least so much."""
    both = [(x.concept, y.concept) for x, y in zip(a, b, strict=True) if min(x.f1, y.f1) >= least_f1]
    if not both:
        return Agreement(0, float("nan"), float("nan"))
    first, second = (np.array(names) for names in zip(*both, strict=True))
    rng = np.random.default_rng(seed)
    shuffled = np.mean([np.mean(first == rng.permutation(second)) for _ in range(100)])
    return Agreement(len(both), float(np.mean(first == second)), float(shuffled))


def _by_threshold(values: Any, carried: np.ndarray, fit: np.ndarray) -> Iterator[tuple[np.ndarray, tuple]]:
    """For every threshold (F, concepts) F1 on the units to fit, and precision, recall and F1 on the others."""
    peak = np.asarray(values[fit].max(axis=0).todense()).ravel()
    for threshold in THRESHOLDS:
        says = values.copy()
        says.data = (values.data > threshold * peak[values.indices]).astype(np.float32)
        yield _scores(says[fit], carried[fit])[2], _scores(says[~fit], carried[~fit])


def _scores(says: Any, carried: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(F, concepts) precision, recall and F1 of 0/1 answers."""
    both = (says.T @ scipy.sparse.csr_matrix(carried, dtype=np.float32)).toarray()
    yes = np.asarray(says.sum(axis=0)).reshape(-1, 1)
    true = carried.sum(axis=0).reshape(1, -1)
    return both / np.maximum(yes, 1), both / np.maximum(true, 1), 2 * both / np.maximum(yes + true, 1)
