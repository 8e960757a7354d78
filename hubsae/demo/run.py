"""`hubsae demo`: the main job on the embedded model of an invented atlas, offline, judged against known truth."""

import re
import time
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from hubsae import SAE, InterpretableModel, SAEConfig, features, load_sae, tokens
from hubsae.backend import describe
from hubsae.demo import atlas
from hubsae.features import Codes, ConceptMatch

MODELS = ("atlas-llama", "atlas-neox")
LAYER = 1
TRAINING = SAEConfig(expansion_factor=8, k=16)  # the atlas has some 480 concepts, few of them in one word
N_DOCUMENTS = 8_000
N_JUDGED = 1_200
_RARE = 20  # concepts on fewer words than this, in either half of the documents, are not judged
_WORD = re.compile(r"\w+|[^\w\s]")


def load_model(name: str = "atlas-llama") -> InterpretableModel:
    """One of the embedded models, `"atlas-llama"` or `"atlas-neox"`."""
    with as_file(files("hubsae.demo") / "models" / name) as folder:
        return InterpretableModel(folder)


def judge(sae: SAE, model: InterpretableModel, n_documents: int = N_JUDGED) -> tuple[Codes, list[ConceptMatch]]:
    """Codes of fresh documents, and the best feature of every concept that their words carry often enough to judge.

    A feature fires on a word if it fires on one of its tokens. Features and thresholds are chosen on every other
    document and scored on the rest.
    """
    documents = atlas.generate(n_documents, seed=1_000_003)
    config = tokens.TokenConfig()
    context = config.context_for(model.max_positions)
    chunks = list(tokens.chunks([d.text for d in documents], model.tokenizer, config, context))
    codes = features.encode_chunks(sae, model, chunks)
    texts = [documents[chunk.document].text for chunk in chunks]
    words = [np.array([match.end() - 1 for match in _WORD.finditer(text)]) for text in texts]
    first_word = np.concatenate([[0], np.cumsum([len(w) for w in words])])
    unit_of_token = [
        np.where(last >= 0, np.searchsorted(ends, last) + start, -1)
        for last, ends, start in zip((_last_characters(model, t) for t in texts), words, first_word, strict=False)
    ]
    unit = np.array([unit_of_token[c][p] for c, p in zip(codes.chunk, codes.position, strict=True)])
    values = features.pool(codes, unit, int(first_word[-1]))
    names = list(atlas.concept_counts(documents))
    carried = atlas.concept_matrix([documents[chunk.document] for chunk in chunks], words, names)
    fit = np.concatenate([np.full(len(w), i % 2 == 0) for i, w in enumerate(words)])
    common = np.flatnonzero(np.minimum(carried[fit].sum(axis=0), carried[~fit].sum(axis=0)) >= _RARE)
    return codes, features.match_concepts(values, carried[:, common], [names[i] for i in common], fit)


def _last_characters(model: InterpretableModel, text: str) -> np.ndarray:
    """Index of the last character of each token, -1 for tokens without any."""
    encoded = tokens.callable_tokenizer(model.tokenizer)(text, return_offsets_mapping=True)
    return np.array([end - 1 if end > start else -1 for start, end in encoded["offset_mapping"]])


def run(out: str | Path, say: Callable[[str], None]) -> tuple[SAE, list[ConceptMatch]]:
    """Train, judge, show and save an SAE, and `say` what is done; returns the SAE and its concept matches."""
    started, backend = time.time(), describe()
    say(f"{backend.device_name}, {backend.blas_name}")
    model = load_model()
    prompt = "The capital of Germany is"
    say(f"{model!r}\n{prompt!r} -> {model.generate(prompt, max_tokens=6)!r}\n")
    texts = [document.text for document in atlas.generate(N_DOCUMENTS, seed=7)]
    sae = model.train_sae(
        LAYER, texts, "residual", config=TRAINING, save_path=out, dataset_name="the demo's invented atlas"
    )
    say(f"\n{sae!r}\n")
    numbers = sae.metrics
    rows = [
        ("", "FVU", "next-token loss (nats)", "loss recovered"),
        ("original model", "0", f"{numbers['ce_original']:.4f}", "100 %"),
        ("SAE", f"{numbers['fvu']:.4f}", f"{numbers['ce_spliced']:.4f}", f"{100 * numbers['ce_recovered']:.1f} %"),
        ("mean activation", "1", f"{numbers['ce_mean']:.4f}", _recovered_by_mean(numbers)),
        ("zeros", "-", f"{numbers['ce_zero']:.4f}", "0 %"),
    ]
    for label, fvu, loss, share in rows:
        say(f"{label:18} {fvu:>8} {loss:>24} {share:>16}")
    say(f"\n{numbers['l0']:.1f} of {sae.n_features} features active a token, {100 * numbers['dead_share']:.1f} % never")
    codes, matches = judge(sae, model)
    good = sum(match.f1 >= 0.9 for match in matches)
    say(f"\n{good} of {len(matches)} concepts of the atlas are one feature with F1 >= 0.9; some of them:\n")
    shown: set[int] = set()
    for match in matches:
        if match.feature in shown or len(shown) == 10:
            continue
        shown.add(match.feature)
        say(
            f"feature {match.feature:5}  {match.concept:20} "
            f"F1 {match.f1:.2f} (precision {match.precision:.2f}, recall {match.recall:.2f})"
        )
        for example in features.top_examples(codes, model, match.feature):
            say(f"    {example.value:6.2f}  ...{example}")
    again = load_sae(out, model=model, check="strict")
    say(f"\nwritten to {Path(out).resolve()} with its card (README.md), and loaded back: {again!r}")
    say(f"{time.time() - started:.0f} s in all")
    return sae, matches


def _recovered_by_mean(numbers: dict) -> str:
    gap = numbers["ce_zero"] - numbers["ce_original"]
    return f"{100 * (numbers['ce_zero'] - numbers['ce_mean']) / gap:.1f} %"
