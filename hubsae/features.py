"""What the features of one dictionary fire on: codes of a text collection, top examples, match with known concepts."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import scipy.sparse

from hubsae.activations import groups, harvest
from hubsae.dictionary import Dictionary
from hubsae.errors import DataError
from hubsae.lm import LanguageModel
from hubsae.tokens import Chunk

_CONTEXT_TOKENS = 8


@dataclass(frozen=True)
class Codes:
    """Codes of many rows: `matrix` (n, F), and for each row its chunk (index into `chunks`) and position in it."""

    matrix: scipy.sparse.csr_matrix
    chunk: np.ndarray
    position: np.ndarray
    chunks: Sequence[Chunk]


@dataclass(frozen=True)
class ConceptMatch:
    """How well `feature > 0` tells the tokens that carry `concept`: precision, recall and their harmonic mean f1."""

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
    for start, group in zip(range(0, len(chunks), 64), groups(chunks, 64), strict=True):
        block = harvest(model, dictionary.config.read_sites, group)
        matrices.append(dictionary.encode_sparse(mx.array(block.rows)).csr)
        chunk_of.append(block.chunk + start)
        positions.append(block.position)
    if not matrices:
        raise DataError("no texts with tokens that count, so no feature can be looked at")
    matrix = scipy.sparse.csr_matrix(scipy.sparse.vstack(matrices))
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
        if codes.chunk[row] in seen:
            continue
        seen.add(codes.chunk[row])
        ids, at = codes.chunks[codes.chunk[row]].ids, int(codes.position[row])
        before, token, after = (
            model.tokenizer.decode(ids[a:b].tolist(), skip_special_tokens=True)
            for a, b in ((max(0, at - _CONTEXT_TOKENS), at), (at, at + 1), (at + 1, at + 1 + _CONTEXT_TOKENS))
        )
        found.append(Example(float(column.data[i]), before, token, after))
        if len(found) == n:
            break
    return found


def match_concepts(codes: Codes, carried: np.ndarray, names: Sequence[str]) -> list[ConceptMatch]:
    """The best feature of each concept, best match first; `carried` (n, concepts) says which rows carry which."""
    if carried.shape != (codes.matrix.shape[0], len(names)):
        raise DataError(f"concepts of shape {carried.shape}, expected ({codes.matrix.shape[0]}, {len(names)})")
    fires = codes.matrix.astype(bool).astype(np.float32)
    both = np.asarray(fires.T @ carried.astype(np.float32))
    of_feature = np.asarray(fires.sum(axis=0)).ravel()[:, None]
    of_concept = carried.sum(axis=0)[None, :]
    f1 = 2 * both / np.maximum(of_feature + of_concept, 1)
    best = f1.argmax(axis=0)
    matches = [
        ConceptMatch(
            feature=int(feature),
            concept=name,
            precision=float(both[feature, j] / max(of_feature[feature, 0], 1)),
            recall=float(both[feature, j] / max(of_concept[0, j], 1)),
            f1=float(f1[feature, j]),
        )
        for j, (name, feature) in enumerate(zip(names, best, strict=True))
    ]
    return sorted(matches, key=lambda m: (-m.f1, m.concept))
