"""The tables of an alignment: their columns, types, and what they mean."""

COLUMNS: dict[str, dict[str, tuple[type, str]]] = {
    "pairs": {
        "feature_a": (int, "feature of A"),
        "feature_b": (int, "feature of B"),
        "confirmed": (bool, "whether the eval split confirms it: q_bh below the rate asked for"),
        "mutual": (bool, "each is the other's best candidate"),
        "rank_ab": (int, "place of B's feature among the candidates of A's, from 0"),
        "rank_ba": (int, "the same the other way"),
        "degree_a": (int, "candidates of A's feature above the threshold"),
        "degree_b": (int, "the same of B's"),
        "cos_map": (float, "cosine of the decoder rows, A's through the map"),
        "corr_match": (float, "correlation of activations on the match split, where the pair was chosen"),
        "corr_eval": (float, "the same on the eval split, which proposed no pairs"),
        "corr_eval_lo": (float, "its 95 % interval over documents, lower end"),
        "corr_eval_hi": (float, "upper end"),
        "corr_docshift_q99": (float, "99 % quantile of corr_eval when B's rows are moved on in a circle, far"),
        "corr_withinword_q99": (float, "99 % quantile of corr_eval when rows are shuffled within words"),
        "jaccard_eval": (float, "anchors where both fire / anchors where one does, eval split"),
        "gain": (float, "least-squares factor from A's activation to B's, eval split"),
        "n_fire_a": (int, "anchors of the eval split where A's feature fires"),
        "n_fire_b": (int, "the same of B's"),
        "n_cofire": (int, "where both fire"),
        "p": (float, "share of such moves with at least this corr_eval, (1 + #) / (1 + draws)"),
        "q_bh": (float, "false discovery rate (Benjamini and Hochberg)"),
        "invariance": (float, "share of refits on documents drawn anew that find the pair again"),
    },
    "candidates": {
        "feature_a": (int, "feature of A"),
        "feature_b": (int, "feature of B"),
        "corr_match": (float, "correlation of activations on the match split"),
        "cos_map": (float, "cosine of the decoder rows, A's through the map"),
    },
    "features": {
        "index": (int, "feature"),
        "n_fire": (int, "anchors of the match and eval splits where it fires"),
        "density": (float, "their share"),
        "fate": (str, "what became of it: see the card"),
        "best_partner": (int, "its best candidate on the match split, -1 without any"),
        "best_corr": (float, "the correlation with it there"),
    },
    "metrics": {
        "name": (str, "what was measured"),
        "method": (str, "the map, where one is used"),
        "direction": (str, "from which model to which"),
        "split": (str, "on which documents"),
        "value": (float, ""),
        "lo": (float, "95 % interval, lower end"),
        "hi": (float, "upper end"),
        "null_name": (str, "what the null is"),
        "null_mean": (float, "mean under it"),
        "null_q95": (float, "95 % quantile under it"),
        "p": (float, "share of the null at least as large"),
        "n": (int, "anchors, pairs or features"),
    },
    "effects": {
        "condition": (str, "how B was steered"),
        "feature_a": (int, "feature of A"),
        "feature_b": (int, "its partner"),
        "effect_corr": (float, "correlation of the effects on the log-probabilities of shared tokens"),
        "retrieval_rank": (int, "place of the true feature among all tested by that correlation, from 0"),
        "n_tested": (int, "how many were tested"),
        "promoted_overlap": (float, "share of A's five most raised tokens among B's five"),
        "kl_a": (float, "dose in A: mean KL(original || steered), nats"),
        "kl_b": (float, "dose in B"),
    },
}
TABLES = {
    "pairs": "pairs",
    "candidates": "candidates",
    "features_a": "features",
    "features_b": "features",
    "metrics": "metrics",
    "effects": "effects",
}


def kinds(table: str) -> dict[str, type]:
    """The columns of a table and their types."""
    return {name: kind for name, (kind, _) in COLUMNS[TABLES[table]].items()}
