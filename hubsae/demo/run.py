"""`hubsae demo`: the main job on the embedded models of an invented atlas, offline, judged against known truth."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from hubsae import SAE, Circuit, InterpretableModel, SAEConfig, find_feature_circuits, load_sae
from hubsae.backend import describe
from hubsae.concepts import ConceptMatch
from hubsae.demo import atlas
from hubsae.demo.judge import Judge
from hubsae.demo.pair import FoundPairs, run_pair
from hubsae.tables import Table

MODELS = ("atlas-llama", "atlas-neox")
LAYERS = (0, 2, 3)
CIRCUIT = (0, 2)
ALIGNED = 3  # layer of both models
TRAINING = SAEConfig(expansion_factor=8, k=16)  # the atlas has some 480 concepts, few of them in one word
N_DOCUMENTS = 6_000
DATA = "the demo's invented atlas"
N_ANALYSED = 2_000
EXAMPLES = (
    "Paris is the capital of France.",
    "The capital of Japan is Tokyo.",
    "Egypt is a country in Africa. Its capital is Cairo.",
)
PROMPT = "The capital of France is"
PROMPTS = (
    PROMPT,
    "France is a country in Europe. The capital is",
    "France lies in Europe. Its capital is",
    "People in France speak French. The capital is",
)
FOILS = (" Berlin", " Rome", " Madrid", " Tokyo", " Oslo", " Cairo")


@dataclass(frozen=True)
class Found:
    """What the demo found: the SAEs by layer; of the first one the concept matches, and the three best features found
    by examples; the probabilities of Paris' and Berlin's first tokens before and after steering, the circuit, and the
    pairs with the other model."""

    saes: dict[int, SAE]
    matches: list[ConceptMatch]
    found: list[ConceptMatch]
    steered: dict[str, tuple[float, float]]
    continuation: str
    circuit: Circuit
    pairs: FoundPairs


def load_model(name: str = "atlas-llama") -> InterpretableModel:
    """One of the embedded models, `"atlas-llama"` or `"atlas-neox"`."""
    with as_file(files("hubsae.demo") / "models" / name) as folder:
        return InterpretableModel(folder)


def run(out: str | Path, say: Callable[[str], None]) -> Found:
    """Train, judge, explain, steer and save SAEs of two layers, and `say` what is done."""
    started, backend = time.time(), describe()
    say(f"{backend.device_name}, {backend.blas_name}")
    model = load_model()
    say(f"{model!r}\n{PROMPT!r} -> {model.generate(PROMPT, max_tokens=6)!r}\n")
    texts = [document.text for document in atlas.generate(N_DOCUMENTS, seed=7)]
    trained = model.train_sae(LAYERS, texts, "residual", config=TRAINING, save_path=out, dataset_name=DATA)
    saes: dict[int, SAE] = dict(zip(LAYERS, trained, strict=True))
    for layer, sae in saes.items():
        _say_fidelity(layer, sae, say)
        sae.feature_statistics(texts[:N_ANALYSED], dataset_name=DATA)
        sae.save(Path(out, f"layers.{layer}.residual"))
    sae, judge = saes[LAYERS[0]], Judge(saes[LAYERS[0]], model)
    matches = judge.words()
    _say_concepts(sae, matches, say)
    found = sae.find_feature_by_examples(EXAMPLES, against=texts[N_ANALYSED : N_ANALYSED + 400], top_k=5)
    say(f"\nWhat do these have in common: {' / '.join(EXAMPLES)}\n{found}")
    matched = [judge.sentences("fact:capital", feature.feature) for feature in found[:3]]
    for match in matched:
        say(
            f"feature {match.feature} tells the sentences about capitals: F1 {match.f1:.2f} "
            f"(precision {match.precision:.2f}, recall {match.recall:.2f})"
        )
    steered, continuation = _steer(sae, model, say)
    circuit = find_feature_circuits(model, {n: saes[n] for n in CIRCUIT}, *CIRCUIT, PROMPTS, top_k=12, foils=FOILS)
    say(f"\nFrom which features of layer {CIRCUIT[0]} does {circuit.answers[0]!r} (Paris) come, by layer {CIRCUIT[1]}?")
    say(str(circuit))
    site = sae.export_dashboard(Path(out, "dashboard"), texts=EXAMPLES, circuits=[circuit])
    say(f"\nto look at all of it in a browser, without a network: {site / 'index.html'}")
    again = load_sae(Path(out, f"layers.{LAYERS[0]}.residual"), model=model, check="strict")
    say(f"\nwritten to {Path(out).resolve()}, each with its card (README.md), and loaded back: {again!r}")
    other = load_model(MODELS[1])
    sae_b = other.train_sae(ALIGNED, texts, "residual", config=TRAINING, dataset_name=DATA, seed=1)
    sae_b.feature_statistics(texts[:N_ANALYSED], dataset_name=DATA)
    sae_b.save(Path(out, f"{MODELS[1]}-layers.{ALIGNED}.residual"))
    pairs = run_pair(Path(out), (saes[ALIGNED], sae_b), (model, other), say, DATA)
    say(f"{time.time() - started:.0f} s in all")
    return Found(saes, matches, matched, steered, continuation, circuit, pairs)


def _say_fidelity(layer: int, sae: SAE, say: Callable[[str], None]) -> None:
    numbers = sae.metrics
    gap = numbers["ce_zero"] - numbers["ce_original"]
    by_mean = 100 * (numbers["ce_zero"] - numbers["ce_mean"]) / gap
    rows = [
        ("original model", "0", f"{numbers['ce_original']:.4f}", "100 %"),
        ("SAE", f"{numbers['fvu']:.4f}", f"{numbers['ce_spliced']:.4f}", f"{100 * numbers['ce_recovered']:.1f} %"),
        ("mean activation", "1", f"{numbers['ce_mean']:.4f}", f"{by_mean:.1f} %"),
        ("zeros", "-", f"{numbers['ce_zero']:.4f}", "0 %"),
    ]
    note = f"{numbers['l0']:.1f} of {sae.n_features} features active a token, {100 * numbers['dead_share']:.1f} % never"
    say(str(Table(f"layer {layer}", ("", "FVU", "next-token loss (nats)", "loss recovered"), rows, note)) + "\n")


def _say_concepts(sae: SAE, matches: list[ConceptMatch], say: Callable[[str], None]) -> None:
    good = sum(match.f1 >= 0.9 for match in matches)
    say(f"{good} of {len(matches)} concepts of the atlas are one feature with F1 >= 0.9; some of them:\n")
    best = {match.feature: match for match in reversed(matches)}
    for match in sorted(best.values(), key=lambda m: -m.f1)[:8]:
        say(
            f"feature {match.feature:5}  {match.concept:20} "
            f"F1 {match.f1:.2f} (precision {match.precision:.2f}, recall {match.recall:.2f})"
        )
        for example in sae.features.examples(match.feature, "top", 2):
            say(f"    {example.value:6.2f}  ...{example}")


def _steer(sae: SAE, model: InterpretableModel, say: Callable[[str], None]) -> tuple[dict, str]:
    """Germany - France, added while the model is asked for the capital of France."""
    direction = sae.encode_text("The capital of Germany") - sae.encode_text(PROMPT.removesuffix(" is"))
    change = sae.intervene(direction=direction)
    firsts = {name: model.encode(f"{PROMPT} {name}")[len(model.encode(PROMPT))] for name in ("Paris", "Berlin")}
    probabilities = []
    for interventions in (None, change):
        with model.trace(PROMPT, interventions) as trace:
            every = model.get_token_predictions(trace.logits, model.vocab_size)
        probabilities.append({p.token_id: p.probability for p in every})
    steered = {name: (probabilities[0][i], probabilities[1][i]) for name, i in firsts.items()}
    continuation = model.generate(PROMPT, interventions=change, max_tokens=8)
    rows = [(name, f"{100 * before:.2f} %", f"{100 * after:.2f} %") for name, (before, after) in steered.items()]
    say("\n" + str(Table(f"{PROMPT!r}, and Germany - France added", ("", "before", "after"), rows)))
    say(f"it goes on: {continuation!r}")
    return steered, continuation
