"""What the features of one dictionary fire on: codes of a text collection, top examples, match with known concepts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

from hubsae.activations import harvest
from hubsae.dictionary import Dictionary
from hubsae.errors import DataError
from hubsae.lm import LanguageModel
from hubsae.tokens import Chunk, groups

THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)

_CONTEXT_TOKENS = 8


@dataclass(frozen=True)
class Codes:
    """Codes of many rows: `matrix` (n, F) in SciPy's CSR, and for each row its chunk in `chunks` and position there."""

    matrix: Any
    chunk: np.ndarray
    position: np.ndarray
    chunks: Sequence[Chunk]


@dataclass(frozen=True)
class ConceptMatch:
    """How well a feature above its threshold tells what carries `concept`; f1: harmonic mean of the other two."""

    feature: int
    concept: str
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Example:
    """A token on which a feature fires, with its value and the text around it."""

    value: float
    before: str
    token: str
    after: str

    def __str__(self) -> str:
        return f"{self.before}«{self.token}»{self.after}"


def encode_chunks(dictionary: Dictionary, model: LanguageModel, chunks: Sequence[Chunk]) -> Codes:
    """The codes of all rows of the chunks, one pass of the model, sparse throughout."""
    matrices, chunk_of, positions = [], [], []
    start = 0
    for group in groups(chunks, dictionary.config.d_in):
        block = harvest(model, dictionary.config.read_sites, group)
        matrices += [code.csr for _, code in dictionary.encode_slices(block.rows)]
        chunk_of.append(block.chunk + start)
        positions.append(block.position)
        start += len(group)
    if not matrices:
        raise DataError("no texts with tokens that count, so no feature can be looked at")
    matrix = scipy.sparse.vstack(matrices, format="csr")
    return Codes(matrix, np.concatenate(chunk_of), np.concatenate(positions), chunks)


def top_examples(codes: Codes, model: LanguageModel, feature: int, n: int = 3) -> list[Example]:
    """The `n` tokens with the largest values of a feature, at most one a chunk, largest first."""
    if not 0 <= feature < codes.matrix.shape[1]:
        raise DataError(f"feature {feature}: this dictionary has features 0 to {codes.matrix.shape[1] - 1}")
    column = codes.matrix[:, [feature]].tocoo()
    found: list[Example] = []
    seen: set[int] = set()
    for i in np.argsort(-column.data, kind="stable"):
        row = column.row[i]
        number, at = int(codes.chunk[row]), int(codes.position[row])
        if number in seen:
            continue
        seen.add(number)
        ids = codes.chunks[number].ids
        before, token, after = (
            model.tokenizer.decode(ids[a:b].tolist(), skip_special_tokens=True)
            for a, b in ((max(0, at - _CONTEXT_TOKENS), at), (at, at + 1), (at + 1, at + 1 + _CONTEXT_TOKENS))
        )
        found.append(Example(float(column.data[i]), before, token, after))
        if len(found) == n:
            break
    return found


def pool(codes: Codes, unit: np.ndarray, n_units: int) -> Any:
    """(n_units, F) CSR: largest value of each feature over the rows of a unit, such as a word; unit -1 is left out.

    unit: (n,) the unit that each row belongs to.
    """
    entries, n_features = codes.matrix.tocoo(), codes.matrix.shape[1]
    inside = unit[entries.row] >= 0
    keys = unit[entries.row[inside]].astype(np.int64) * n_features + entries.col[inside]
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], entries.data[inside][order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, int)
    largest = np.maximum.reduceat(values, starts) if len(keys) else values
    return scipy.sparse.csr_matrix((largest, divmod(keys[starts], n_features)), shape=(n_units, n_features))


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
    peak = np.asarray(values.max(axis=0).todense()).ravel()
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
