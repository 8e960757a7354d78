"""Train the two demo models on documents of the atlas, and write their folders and model card.

python scripts/train_demo_models.py [--only atlas-neox] [--steps 1500] [--out hubsae/demo/models]
"""

import hubsae  # noqa: I001  (first: it loads a tuned BLAS before mlx)

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.models import gpt_neox, llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from hubsae.demo import atlas

MODELS = Path(hubsae.__file__).parent / "demo" / "models"
CARD = Path(__file__).with_name("demo_models_card.md")
TOKENIZER_SEED, TRAIN_SEED, HELD_OUT_SEED = 1, 2, 3
CONTEXT = 256


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a model comes out."""

    name: str
    config: dict
    vocabulary_size: int
    start: str | None  # stands before every document by the tokenizer's own rule
    end: str
    steps: int
    learning_rate: float
    warmup_steps: int = 150
    tokens_per_batch: int = 1024
    beta_2: float = 0.99
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    seed: int = 0


RECIPES = {
    "atlas-llama": Recipe(
        name="atlas-llama",
        config={
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 32,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": CONTEXT,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "torch_dtype": "float16",
        },
        vocabulary_size=896,
        start="<s>",
        end="</s>",
        steps=6000,
        tokens_per_batch=2048,
        beta_2=0.98,
        learning_rate=3e-3,
    ),
    "atlas-neox": Recipe(
        name="atlas-neox",
        config={
            "architectures": ["GPTNeoXForCausalLM"],
            "model_type": "gpt_neox",
            "hidden_size": 96,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "hidden_act": "gelu_new",  # the tanh form, the only one that mlx-lm computes
            "layer_norm_eps": 1e-5,
            "rotary_pct": 0.5,
            "rotary_emb_base": 10000,
            "use_parallel_residual": True,
            "max_position_embeddings": CONTEXT,
            "tie_word_embeddings": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "torch_dtype": "float16",
        },
        vocabulary_size=448,
        start=None,
        end="<|endoftext|>",
        steps=8000,
        learning_rate=3e-3,
    ),
}


def train_tokenizer(recipe: Recipe, texts: Sequence[str]) -> Tokenizer:
    """A byte-level BPE that adds `recipe.start`, or (without a start) a smaller BPE over words with metaspaces."""
    if recipe.start:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        special = [recipe.start, recipe.end]
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        # The full stop stays a token of its own, as in the other model.
        splits = [pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Metaspace(prepend_scheme="never")]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
        alphabet = [chr(code) for code in range(33, 127)] + ["\n", "\u2581"]
        special = [recipe.end, "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if recipe.start:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{recipe.start} $A",
            pair=f"{recipe.start} $A {recipe.start} $B",
            special_tokens=[(recipe.start, tokenizer.token_to_id(recipe.start))],
        )
    return tokenizer


def encode(recipe: Recipe, tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids with one boundary token before and one behind each text."""
    before, after = (tokenizer.token_to_id(token) for token in (recipe.start or recipe.end, recipe.end))
    assert before is not None
    assert after is not None
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [[before, *encoding.ids, after] for encoding in encodings]


def padded(rows: Sequence[Sequence[int]], width: int) -> tuple[mx.array, mx.array]:
    """Right-padded ids (n, width) and lengths (n,)."""
    ids = np.zeros((len(rows), width), dtype=np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return mx.array(ids), mx.array([len(row) for row in rows])


def batches(recipe: Recipe, documents: list[list[int]]) -> Iterator[tuple[mx.array, mx.array]]:
    """Endless shuffled batches of documents of like length, about `tokens_per_batch` tokens each."""
    rng = np.random.default_rng(recipe.seed)
    buckets: dict[int, list[list[int]]] = {}
    while True:
        for index in rng.permutation(len(documents)):
            row = documents[index]
            # Nothing stands before a prompt where the tokenizer adds no start: some documents are trained like that.
            if recipe.start is None and rng.random() < 0.5:
                row = row[1:]
            width = -(-len(row) // 16) * 16
            bucket = buckets.setdefault(width, [])
            bucket.append(row)
            if len(bucket) >= recipe.tokens_per_batch // width:
                yield padded(bucket, width)
                buckets[width] = []


def token_losses(model: nn.Module, ids: mx.array, lengths: mx.array) -> mx.array:
    """(n, width - 1) nats, zero in the padding."""
    losses = nn.losses.cross_entropy(model(ids[:, :-1]).astype(mx.float32), ids[:, 1:])
    return losses * (mx.arange(1, ids.shape[1])[None] < lengths[:, None])


def mean_loss(model: nn.Module, ids: mx.array, lengths: mx.array) -> mx.array:
    return token_losses(model, ids, lengths).sum() / (lengths - 1).sum()


def train(recipe: Recipe, documents: list[list[int]], vocabulary_size: int) -> tuple[nn.Module, int]:
    """A trained fp32 model, and how many tokens it saw; progress goes to standard output."""
    mx.random.seed(recipe.seed)
    module = {"llama": llama, "gpt_neox": gpt_neox}[recipe.config["model_type"]]
    model = module.Model(module.ModelArgs.from_dict({**recipe.config, "vocab_size": vocabulary_size}))
    mx.eval(model.parameters())
    warmup_steps = min(recipe.warmup_steps, recipe.steps // 4)  # a short trial run has a schedule too
    warmup = optim.linear_schedule(0.0, recipe.learning_rate, warmup_steps)
    decay = optim.cosine_decay(recipe.learning_rate, recipe.steps - warmup_steps, 1e-5)
    optimizer = optim.AdamW(
        learning_rate=optim.join_schedules([warmup, decay], [warmup_steps]),
        betas=[0.9, recipe.beta_2],
        weight_decay=recipe.weight_decay,
        bias_correction=True,
    )
    loss_and_gradients = nn.value_and_grad(model, mean_loss)
    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(ids: mx.array, lengths: mx.array) -> mx.array:
        loss, gradients = loss_and_gradients(model, ids, lengths)
        gradients, _ = optim.clip_grad_norm(gradients, recipe.clip_norm)
        optimizer.update(model, gradients)
        return loss

    started, recent, seen = time.perf_counter(), [], 0
    for number, (ids, lengths) in zip(range(1, recipe.steps + 1), batches(recipe, documents), strict=False):
        loss = step(ids, lengths)
        mx.eval(loss, state)
        recent.append(loss.item())
        seen += int(np.array(lengths.sum()))
        if number % 100 == 0:
            seconds = time.perf_counter() - started
            rate = f"{seen / 1e6:.2f}M tokens, {seen / seconds:.0f} tokens/s, {seconds:.0f} s"
            print(f"{recipe.name} step {number}: loss {np.mean(recent):.4f} nats/token, {rate}", flush=True)
            recent = []
    return model, seen


def published_name(model_type: str, name: str) -> str:
    """The key of a parameter in checkpoints of `transformers`."""
    if model_type == "gpt_neox" and not name.startswith("model.embed_out."):
        return name.replace("model.h.", "gpt_neox.layers.").replace("model.", "gpt_neox.", 1)
    return name.replace("model.embed_out.", "embed_out.")


def save(recipe: Recipe, tokenizer: Tokenizer, model: nn.Module, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(tree_flatten(model.parameters()))
    kind = recipe.config["model_type"]
    named = {published_name(kind, name): array.astype(mx.float16) for name, array in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), named, metadata={"format": "pt"})
    config = {**recipe.config, "vocab_size": tokenizer.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": recipe.start or recipe.end,
        "eos_token": recipe.end,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        **({} if recipe.start else {"unk_token": "<unk>"}),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def nats_per_character(
    recipe: Recipe, tokenizer: Tokenizer, model: nn.Module, documents: Sequence[atlas.Document]
) -> float:
    """Sum of the losses of all tokens, end token included, over the sum of the texts' lengths."""
    rows = sorted(encode(recipe, tokenizer, [document.text for document in documents]), key=len)
    total = 0.0
    for start in range(0, len(rows), 64):
        chunk = rows[start : start + 64]
        total += float(np.array(token_losses(model, *padded(chunk, len(chunk[-1]))).sum()))
    return total / sum(len(document.text) for document in documents)


def share_answered(tokenizer: Tokenizer, model: nn.Module) -> tuple[float, list[str]]:
    """The share of `atlas.questions()` that greedy decoding answers with the right word, and the failures in words.

    One forward pass: decoding is greedy along the answer iff each of its tokens is the likeliest one, and the word ends
    there iff the token behind it does not go on with a letter. Prompts are encoded as a user of the tokenizer would.
    """
    questions = atlas.questions()
    prompts = tokenizer.encode_batch([prompt for prompt, _ in questions])
    wholes = tokenizer.encode_batch([prompt + answer for prompt, answer in questions])
    ids, _ = padded([whole.ids for whole in wholes], max(len(whole.ids) for whole in wholes))
    likeliest = np.array(mx.argmax(model(ids), axis=-1)).tolist()
    failures = []
    for (prompt, answer), head, whole, best in zip(questions, prompts, wholes, likeliest, strict=True):
        start, stop = len(head.ids), len(whole.ids)
        assert whole.ids[:start] == head.ids
        got = best[start - 1 : stop - 1]
        behind = tokenizer.id_to_token(best[stop - 1])
        assert behind is not None  # the model has one output for each token
        if got != whole.ids[start:] or (behind[0].isascii() and behind[0].isalpha()):
            failures.append(f"{prompt}{answer}: {tokenizer.decode([*got, best[stop - 1]])!r}")
    return 1 - len(failures) / len(questions), failures


# Facts whose word follows from earlier sentences, with the class of that word.
RECALLED = {
    "flight": "number",
    "rest": "number",
    "clothes": "clothes",
    "walk": "capital",
    "payment": "currency",
    "trip city": "capital",
    "trip weather": "weather",
}


def recall(recipe: Recipe, tokenizer: Tokenizer, model: nn.Module, documents: Sequence[atlas.Document]) -> dict:
    """Fact -> share of its words that the model finds likeliest (all tokens) given the document up to there."""
    hits: dict[str, list[bool]] = {fact: [] for fact in RECALLED}
    for start in range(0, len(documents), 64):
        chunk = documents[start : start + 64]
        rows = encode(recipe, tokenizer, [document.text for document in chunk])
        likeliest = np.array(mx.argmax(model(padded(rows, max(map(len, rows)))[0]), axis=-1)).tolist()
        for document, row, best in zip(chunk, rows, likeliest, strict=True):
            offsets = tokenizer.encode(document.text, add_special_tokens=False).offsets
            for fact, kind in RECALLED.items():
                for stated in (span for span in document.spans if span.concept == f"fact:{fact}"):
                    word = next(s for s in document.spans if s.concept == kind and stated.start <= s.start < stated.end)
                    tokens = [i for i, (_, end) in enumerate(offsets) if word.start < end <= word.end]
                    hits[fact].append(all(best[i] == row[i + 1] for i in tokens))
    return {fact: sum(found) / max(1, len(found)) for fact, found in hits.items()}


def load_fp32(folder: Path) -> tuple[nn.Module, Tokenizer]:
    """The shipped model as `mlx_lm.load` gives it, in fp32: a CPU is slow in float16."""
    model = load(str(folder))[0]
    model.set_dtype(mx.float32)
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))


def measure(recipe: Recipe, folder: Path, documents: Sequence[atlas.Document]) -> dict:
    """Loss and questions of the shipped files, next to the floor on the same documents."""
    model, tokenizer = load_fp32(folder)
    share, failures = share_answered(tokenizer, model)
    floor = atlas.entropy_per_character(documents)
    loss = nats_per_character(recipe, tokenizer, model, documents)
    return {
        "parameters": sum(array.size for array in dict(tree_flatten(model.parameters())).values()),
        "megabytes": sum(path.stat().st_size for path in folder.iterdir()) / 1e6,
        "vocabulary": tokenizer.get_vocab_size(),
        "documents": len(documents),
        "entropy": floor,
        "loss": loss,
        "excess": loss / floor - 1,
        "answered": share,
        "questions": len(atlas.questions()),
        "failures": failures,
        "recall": recall(recipe, tokenizer, model, documents),
    }


def write_card(out: Path) -> str:
    """Write the card of all models in `out` and return its table, where the last cell of a row is one of each model."""
    paths = {name: out / name / "training.json" for name in RECIPES}
    results = [{"name": name, **json.loads(path.read_text())} for name, path in paths.items() if path.exists()]
    lines, table = [], []
    for line in CARD.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            _, label, cell, _ = line.split("|")
            line = "|".join(["", label, *(cell.format(**result) for result in results), ""])
            table.append(line)
        else:
            line = line.format(**results[0], seed=HELD_OUT_SEED, train_seed=TRAIN_SEED)
        lines.append(line)
    (out / "README.md").write_text("\n".join([*lines, ""]))
    return "\n".join(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(RECIPES))
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--documents", type=int, default=120_000, help="size of the training corpus")
    parser.add_argument("--out", type=Path, default=MODELS)
    parser.add_argument("--without", choices=atlas.TOPICS, help="a topic to leave out of everything; writes no card")
    arguments = parser.parse_args()
    if arguments.without and arguments.out == MODELS:
        parser.error("--without makes other models than the demo's; give --out")
    topics = [topic for topic in atlas.TOPICS if topic != arguments.without]
    print("writing the corpus", flush=True)
    corpus = [document.text for document in atlas.generate(arguments.documents, seed=TRAIN_SEED, topics=topics)]
    held_out = atlas.generate(2000, seed=HELD_OUT_SEED, topics=topics)
    sample = [document.text for document in atlas.generate(5000, seed=TOKENIZER_SEED, topics=topics)]
    for name, recipe in RECIPES.items():
        if arguments.only not in (None, name):
            continue
        if arguments.steps:
            recipe = replace(recipe, steps=arguments.steps)
        tokenizer = train_tokenizer(recipe, sample)
        documents = encode(recipe, tokenizer, corpus)
        print(f"{name}: {np.mean([len(row) for row in documents]):.1f} tokens a document", flush=True)
        started = time.perf_counter()
        model, tokens = train(recipe, documents, tokenizer.get_vocab_size())
        seconds = time.perf_counter() - started
        folder = arguments.out / name
        save(recipe, tokenizer, model, folder)
        result = {
            "corpus": len(corpus),
            "steps": recipe.steps,
            "tokens": tokens,
            "seconds": seconds,
            "loss_before_rounding": nats_per_character(recipe, tokenizer, model, held_out),
            **measure(recipe, folder, held_out),
        }
        (folder / "training.json").write_text(json.dumps(result, indent=2) + "\n")
        print(*result["failures"], sep="\n", flush=True)
    if not arguments.without:
        print(write_card(arguments.out))


if __name__ == "__main__":
    main()
