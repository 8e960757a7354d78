"""The codes of a few texts, token by token, kept whole; for a collection of texts see `survey`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

from hubsae.activations import Models, harvest
from hubsae.dictionary import Dictionary
from hubsae.errors import DataError
from hubsae.tokens import Chunk, groups


@dataclass(frozen=True)
class Codes:
    """Codes of many rows: `matrix` (n, F) in SciPy's CSR, and for each row its chunk in `chunks` and position there."""

    matrix: Any
    chunk: np.ndarray
    position: np.ndarray
    chunks: Sequence[Chunk]


def encode_chunks(dictionary: Dictionary, model: Models, chunks: Sequence[Chunk]) -> Codes:
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
