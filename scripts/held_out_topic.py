"""Do features of a topic that one model never saw come out without a partner? Against the model that saw all topics.

python scripts/train_demo_models.py --only atlas-neox --without animals --documents 40000 --steps 3500 --out FOLDER
python scripts/held_out_topic.py FOLDER/atlas-neox [--topic animals] [--layer 3]

A feature of A is of the topic when at least 80 % of the cubes of its activations lie in sentences of the topic.
"""

import hubsae  # noqa: F401, I001  (first: it loads a tuned BLAS before mlx)

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from hubsae import InterpretableModel, align
from hubsae.codes import encode_chunks
from hubsae.demo import atlas
from hubsae.demo.run import TRAINING, load_model
from hubsae.tables import Table
from hubsae.tokens import TokenConfig, callable_tokenizer, chunks

N_TRAINING, N_ALIGNED = 6_000, 2_000


def topic_shares(sae: Any, model: InterpretableModel, documents: list[atlas.Document], topic: str) -> np.ndarray:
    """(F,) share of the cubes of each feature's activations that lie in sentences of the topic."""
    config = TokenConfig()
    texts = [document.text for document in documents]
    stream = list(chunks(texts, model.tokenizer, config, config.context_for(model.max_positions)))
    codes = encode_chunks(sae, model, stream)
    encode, inside = callable_tokenizer(model.tokenizer), []
    for chunk in stream:
        document = documents[chunk.document]
        ends = [end - 1 for _, end in encode(document.text, return_offsets_mapping=True)["offset_mapping"]]
        carried = atlas.concepts_at(document, ends[: len(chunk.ids)])
        inside.append(np.array([f"topic:{topic}" in found for found in carried]))
    in_topic = np.array([inside[c][p] for c, p in zip(codes.chunk, codes.position, strict=True)])
    cubes = codes.matrix.copy()
    cubes.data = cubes.data.astype(np.float64) ** 3
    every, own = (np.asarray(m.sum(axis=0)).ravel() for m in (cubes, cubes[in_topic]))
    return own / np.maximum(every, 1e-300)


def judged(found: Any, shares: np.ndarray) -> dict[str, Any]:
    """Who has no partner, among features of the topic and among others, that fire often enough."""
    table = found.frames["features_a"]
    eligible = ~np.isin(table["fate"], ["dead", "too_rare"])
    own, other = eligible & (shares > 0.8), eligible & (shares < 0.2)
    alone, best = table["fate"] != "matched", np.nan_to_num(table["best_corr"])
    below = best[own][:, None] < best[other][None]
    return {
        "features": f"{own.sum()} / {other.sum()}",
        "unmatched of the topic": float(alone[own].mean()),
        "unmatched of the others": float(alone[other].mean()),
        "of the unmatched, of the topic": float((alone & own).sum() / max((alone & (own | other)).sum(), 1)),
        "AUC of a low best correlation": float(below.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of atlas-neox, trained without the topic")
    parser.add_argument("--topic", default="animals", choices=atlas.TOPICS)
    parser.add_argument("--layer", type=int, default=3)
    arguments = parser.parse_args()
    a, knows, lacks = load_model("atlas-llama"), load_model("atlas-neox"), InterpretableModel(Path(arguments.model))
    every = [document.text for document in atlas.generate(N_TRAINING, seed=7)]
    topics = [topic for topic in atlas.TOPICS if topic != arguments.topic]
    without = [document.text for document in atlas.generate(N_TRAINING, seed=7, topics=topics)]
    documents = atlas.generate(N_ALIGNED, seed=99)
    sae_a, *others = (
        model.train_sae(arguments.layer, texts, "residual", config=TRAINING, seed=seed, progress=False)
        for model, texts, seed in ((a, every, 0), (knows, every, 1), (lacks, without, 2))
    )
    shares = topic_shares(sae_a, a, documents, arguments.topic)
    texts = [document.text for document in documents]
    columns = [judged(align(sae_a, sae_b, texts=texts, progress=False), shares) for sae_b in others]
    rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
    print(Table(f"layer {arguments.layer}", ("", "B saw all topics", f"B never saw {arguments.topic}"), rows))


if __name__ == "__main__":
    main()
