"""What a crosscoder says about the differences of its sites: which features which site uses."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from hubsae import tokens
from hubsae.activations import Models, harvest, read_chunks, width
from hubsae.dictionary import Dictionary
from hubsae.errors import ConfigError, DataError
from hubsae.tokens import groups

_MIN_FIRINGS = 30


@dataclass(frozen=True)
class LatentScaling:
    """(F, sites) arrays, shares of each feature over the sites that sum to 1, nan where it fired fewer than 30 times.

    error: norms of the decoder rows that least squares would give the feature for what the others leave unexplained
    (its own part included); a feature whose decoder was shrunk to 0 at a site, though it matters there, shows here.
    reconstruction: the same for what the other features together write where it fires; if a feature is exclusive by
    `relative_norms` but large here at the other site, others stand for it there (latent decoupling).
    firings (F,): rows in which it was active.
    """

    error: np.ndarray
    reconstruction: np.ndarray
    firings: np.ndarray


def relative_norms(dictionary: Dictionary) -> np.ndarray:
    """(F, sites) norm of each feature's decoder row at each written site, as shares of the sum over the sites.

    Norms are in units of the site's own scale, so sites of different size compare. With two sites or models, 0.3 to 0.7
    is usually called shared, below 0.1 and above 0.9 exclusive (Lindsey et al. 2024).
    """
    c = dictionary.config
    if not c.write_scales:
        raise ConfigError("this dictionary records no write_scales, so norms of its sites cannot be compared")
    W_dec = np.array(dictionary.W_dec.astype(mx.float32))
    norms = [np.linalg.norm(W_dec[:, part], axis=1) for part in c.write_columns.values()]
    return _shares(np.stack(norms, axis=1) / np.array(c.write_scales))


def latent_scaling(dictionary: Dictionary, models: Models, texts: Any, *, max_rows: int = 50_000) -> LatentScaling:
    """How far each site uses each feature, by regression on texts (after Minder et al. 2025, arXiv 2504.02922).

    There the feature's one decoder direction is fitted to both models. Here every site has its own least-squares row,
    sum_i f_ij r_i / sum_i f_ij^2 over the rows i, since widths may differ; its squared norm is the product of the rows
    fitted on two halves of the documents, which is free of the bias that noise gives to a norm.
    """
    c = dictionary.config
    if c.reads != c.writes:
        raise ConfigError(f"latent scaling compares what a crosscoder reads with what it writes; this is a {c.kind}")
    config = c.token_config()
    chunks = list(tokens.take_rows(read_chunks(models, texts, config), max_rows))
    if len({chunk.document % 2 for chunk in chunks}) < 2:
        raise DataError("latent scaling compares two halves of the documents, so it needs at least two of them")
    n, d = dictionary.n_features, c.d_out
    error, rebuilt = np.zeros((2, n, d), np.float32), np.zeros((2, n, d), np.float32)
    squares, firings = np.zeros((2, n)), np.zeros(n, np.int64)
    bias = np.array(dictionary.b_dec.astype(mx.float32))
    for group in groups(chunks, sum(width(models, site) for site in c.read_sites)):
        block = harvest(models, c.read_sites, group)
        half = np.array([chunk.document for chunk in group])[block.chunk] % 2
        for part, code in dictionary.encode_slices(block.rows):
            y_hat = np.array(dictionary.decode(code))
            firings += code.active_counts()
            for h in (0, 1):
                z = code.csr[half[part] == h]
                error[h] += z.T @ (block.rows[part] - y_hat)[half[part] == h]
                rebuilt[h] += z.T @ (y_hat - bias)[half[part] == h]
                squares[h] += np.asarray(z.multiply(z).sum(axis=0)).ravel()
    W_dec = np.array(dictionary.W_dec.astype(mx.float32))
    own = squares[..., None] * W_dec
    found = [_fitted_shares(sums, squares, dictionary) for sums in (error + own, rebuilt - own)]
    rare = (firings < _MIN_FIRINGS) | (squares == 0).any(axis=0)
    for shares in found:
        shares[rare] = np.nan
    return LatentScaling(found[0], found[1], firings)


def _fitted_shares(sums: np.ndarray, squares: np.ndarray, dictionary: Dictionary) -> np.ndarray:
    """(2, F, d) sums over two halves -> (F, sites) shares of the fitted rows' norms, in units of each site's scale."""
    rows = sums / np.maximum(squares, 1e-12)[..., None]
    c = dictionary.config
    products = [np.einsum("fd,fd->f", *rows[..., part]) for part in c.write_columns.values()]
    scales = np.array(c.write_scales or (1.0,) * len(c.writes))
    return _shares(np.sqrt(np.maximum(np.stack(products, axis=1), 0)) / scales)


def _shares(norms: np.ndarray) -> np.ndarray:
    total = norms.sum(axis=1, keepdims=True)
    return np.divide(norms, total, out=np.full_like(norms, np.nan), where=total > 0)
