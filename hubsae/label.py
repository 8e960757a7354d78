"""Words for features, and how far they can be believed: labels by a labeler, scored by detection on other examples.

After Bills et al. 2023 and Paulo et al. 2024 (arXiv 2410.13928): the labeler sees examples and says what they share;
then, given its label alone, it has to tell held-out examples from texts on which the feature does not fire.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from hubsae.activations import Models, as_models, read_chunks
from hubsae.codes import encode_chunks, pool
from hubsae.dictionary import Dictionary
from hubsae.errors import ConfigError, DataError, LabelError
from hubsae.features import Example, Features, Label, check_features
from hubsae.labelers import Labeler, ask
from hubsae.lm import LanguageModel
from hubsae.settings import as_type
from hubsae.tables import Shown, Table, plain
from hubsae.tokens import special_ids

_POOL = 1024
_TEXTS_A_QUESTION = 10
_LONGEST_LABEL = 200
_LEAST_HELD_OUT = 4

LABEL_PROMPT = """\
Below are pieces of text in which one feature of a language model fires. The tokens on which it fires stand between \
« and »; the number before a text is how strongly it fires there at most, from 1 to 10.

{examples}

What do the marked tokens, or the texts around them, have in common? Answer with one short phrase of at most ten words \
that describes it, and nothing else."""

DETECT_PROMPT = """\
A feature of a language model is described as: {label}

On which of these texts does it fire?

{texts}

Answer with the numbers of those texts, separated by commas, or with the word none, and nothing else."""


@dataclass(frozen=True, repr=False)
class Labels(Shown):
    """What a run of `auto_label_features` gave; `unusable`: features for which the labeler's answers were no use."""

    labels: dict[int, Label]
    unusable: tuple[int, ...]
    kept: int

    def __getitem__(self, feature: int) -> Label:
        return self.labels[feature]

    def __len__(self) -> int:
        return len(self.labels)

    def tables(self) -> list[Table]:
        rows = [
            (i, label.text, "not scored" if label.score is None else label.score, label.n_scored)
            for i, label in self.labels.items()
        ]
        note = f"{self.kept} features had labels before and keep them. " if self.kept else ""
        if self.unusable:
            note += f"no usable answers for {', '.join(map(str, self.unusable))}"
        head = ("feature", "label", "detection", "texts")
        return [Table(f"{len(rows)} features labelled", head, rows, note.strip())]


@dataclass(frozen=True)
class Task:
    """What one feature's labelling needs: examples to show, and texts with the truth of whether it fires there."""

    feature: int
    shown: tuple[Example, ...]
    texts: tuple[str, ...] = ()
    truth: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))


@dataclass(frozen=True)
class Pool:
    """Texts of all sorts, with the features (texts, F) CSR that fire on each; `special`: ids of special tokens."""

    texts: tuple[str, ...]
    fired: Any
    special: frozenset[int]


def chosen(known: Features, features: Sequence[int] | None) -> list[int]:
    """The features to label: those given, checked, or all that fire."""
    if features is None:
        return np.flatnonzero(~known.dead).tolist()
    return [known.check(i, alive=True) for i in dict.fromkeys(check_features(features, known.n_features))]


class Kept:
    """New labels of a dictionary on their way into its features, and into the features.parquet of a folder.

    `there`: the features in that folder; an analysis of more tokens than the dictionary's own keeps its place.
    """

    def __init__(self, dictionary: Any, folder: str | Path | None, there: Features | None = None, every: int = 20):
        self._dictionary, self._folder, self._every = dictionary, folder, every
        self._there = there
        self._new: dict[int, Label] = {}

    def add(self, feature: int, label: Label) -> None:
        """Take in a label; with every twentieth all are stored."""
        self._new[feature] = label
        if len(self._new) >= self._every:
            self.store()

    def store(self) -> None:
        """Put what is new where it belongs."""
        if not self._new:
            return
        self._dictionary.relabel(self._new)
        self._new.clear()
        if self._folder is not None:
            own = self._dictionary.features
            fuller = self._there is not None and self._there.has_examples and self._there.n_tokens > own.n_tokens
            (self._there.labelled(own.labels) if self._there and fuller else own).save(self._folder)


def fired_on(dictionary: Dictionary, models: Models, texts: Sequence[str]) -> Any:
    """(texts, F) CSR: the largest value of each feature on each text, read on its own."""
    number = np.array([i for i, text in enumerate(texts) if text.strip()], np.int64)  # documents are counted so
    chunks = list(read_chunks(models, list(texts), dictionary.config.token_config()))
    if not chunks:
        return scipy.sparse.csr_matrix((len(texts), dictionary.n_features))
    codes = encode_chunks(dictionary, models, chunks)
    unit = number[np.array([chunk.document for chunk in chunks])[codes.chunk]]
    return pool(codes, unit, len(texts))


def label_features(
    dictionary: Dictionary,
    models: Models,
    known: Features,
    features: Sequence[int],
    labeler: tuple[Labeler, str],
    scorer: Labeler,
    *,
    num_examples: int,
    num_scored: int,
    seed: int,
    keep: Callable[[int, Label], None],
    progress: bool,
) -> tuple[dict[int, Label], tuple[int, ...]]:
    """Label and score features one after the other, each given to `keep` at once; and those without usable answers.

    Raises `LabelError` where the labeler fails; what was kept before stays.
    """
    from tqdm import tqdm

    for name, value, least in (("num_examples", num_examples, 1), ("num_scored", num_scored, 0)):
        if as_type(value, int, name) < least:
            raise ConfigError(f"{name}={value!r}: expected at least {least}")
    if 0 < num_scored < _LEAST_HELD_OUT or as_type(seed, int, "seed") < 0:
        raise ConfigError(
            f"num_scored={num_scored}, seed={seed}: expected 0 (no scores) or at least {_LEAST_HELD_OUT} texts, and a "
            "seed of at least 0"
        )
    models = as_models(models)
    rng = np.random.default_rng(seed)
    background = _pool(dictionary, models, known, rng) if num_scored else None
    found: dict[int, Label] = {}
    unusable: list[int] = []
    for feature in tqdm(features, unit="feature", desc="labels", disable=not progress):
        task = make_task(dictionary, models, known, int(feature), background, num_examples, num_scored, rng)
        try:
            text = _label(task, labeler[0])
            score = _score(task, text, scorer) if task.texts else None
        except Unusable:
            unusable.append(int(feature))
            continue
        except LabelError as error:
            raise LabelError(f"{error}. {len(found)} labels of this run are kept") from error
        found[int(feature)] = Label(text, score, 0 if score is None else len(task.texts), labeler[1])
        keep(int(feature), found[int(feature)])
    if unusable and not found:
        raise LabelError(
            f"none of the labeler's answers for {len(unusable)} features could be used (features "
            f"{', '.join(map(str, unusable[:5]))}): it has to answer with a short phrase"
        )
    return found, tuple(unusable)


class Unusable(LabelError):
    """An answer that is not what was asked for."""


def make_task(
    dictionary: Dictionary,
    models: Models,
    known: Features,
    feature: int,
    background: Pool | None,
    num_examples: int,
    num_scored: int,
    rng: np.random.Generator,
) -> Task:
    """Examples to show and texts to score on, from different documents.

    Positives: random examples, on which the feature still fires when they are read on their own. Negatives, as many:
    half near misses (its neighbours fire, it does not), half any text on which it does not fire.
    """
    random, top = known.examples(feature, "random"), known.examples(feature, "top")
    order = rng.permutation(len(random))
    reserve = min(num_scored // 2, max(0, len({e.document for e in (*random, *top)}) // 2))
    held: dict[int, Example] = {}
    for place in order:
        if len(held) < reserve:
            held.setdefault(random[place].document, random[place])
    others = [e for e in top if e.document not in held], [e for e in random if e.document not in held]
    shown = _mixed(*others, num_examples)
    if not shown:
        raise DataError(f"feature {feature}: no examples to show")
    if background is None or len(held) < _LEAST_HELD_OUT // 2:
        return Task(feature, shown)
    texts = [text_of(e, background.special) for e in held.values()]
    fires = fired_on(dictionary, models, texts)[:, [feature]].toarray()[:, 0] > 0
    positives = [text for text, yes in zip(texts, fires, strict=True) if yes]
    negatives = _negatives(
        known, feature, background, len(positives), {text_of(e, background.special) for e in shown}, rng
    )
    n = min(len(positives), len(negatives))
    if 2 * n < _LEAST_HELD_OUT:
        return Task(feature, shown)
    both = np.array([*positives[:n], *negatives[:n]], object)
    truth = np.arange(2 * n) < n
    place = rng.permutation(2 * n)
    return Task(feature, shown, tuple(both[place]), truth[place])


def _mixed(top: list[Example], random: list[Example], n: int) -> tuple[Example, ...]:
    """Half with the largest values, half of chance, no piece of text twice."""
    chosen: dict[tuple, Example] = {}
    half = top[: max(1, n // 2)]
    for example in (*half, *random, *top[len(half) :]):
        if len(chosen) < n:
            chosen.setdefault((example.document, example.ids), example)
    return tuple(sorted(chosen.values(), key=lambda e: -e.value))


def _negatives(
    known: Features, feature: int, background: Pool, n: int, shown: set[str], rng: np.random.Generator
) -> list[str]:
    silent = background.fired[:, [feature]].toarray()[:, 0] == 0
    silent &= np.array([text not in shown for text in background.texts])
    neighbours = [x.feature for x in (*known.similar(feature), *known.cofiring(feature))]
    near = np.asarray((background.fired[:, neighbours] > 0).sum(axis=1)).ravel() > 0 if neighbours else ~silent
    misses = rng.permutation(np.flatnonzero(silent & near))[: n // 2]
    rest = rng.permutation(np.setdiff1d(np.flatnonzero(silent), misses))[: n - len(misses)]
    return [background.texts[i] for i in (*misses, *rest)]


def _pool(dictionary: Dictionary, models: Models, known: Features, rng: np.random.Generator) -> Pool:
    """Pieces of text of chance: random examples of many features."""
    special = _special_ids(dictionary, as_models(models))
    alive = rng.permutation(np.flatnonzero(~known.dead))[:_POOL]
    texts: dict[str, None] = {}
    while len(texts) < _POOL and len(alive):
        before = len(texts)
        for feature in alive:
            examples = known.examples(int(feature), "random")
            if examples and len(texts) < _POOL:
                texts.setdefault(text_of(examples[rng.integers(len(examples))], special))
        if len(texts) == before:
            break
    return Pool(tuple(texts), fired_on(dictionary, models, list(texts)), special)


def text_of(example: Example, special: frozenset[int]) -> str:
    """The text of an example as it is read on its own, without special tokens."""
    return "".join(t for i, t in zip(example.ids, example.tokens, strict=True) if i not in special).strip()


def _special_ids(dictionary: Dictionary, models: Sequence[LanguageModel]) -> frozenset[int]:
    return frozenset(special_ids(models[dictionary.config.first_model].tokenizer).tolist())


def _label(task: Task, labeler: Labeler) -> str:
    largest = max(e.value for e in task.shown)
    lines = [f"{max(1, round(10 * e.value / largest)):2}: {e}" for e in task.shown]
    answer = ask(labeler, LABEL_PROMPT.format(examples="\n".join(lines)), f"feature {task.feature}")
    return read_label(answer)


def said(answer: str) -> str:
    """An answer without what a reasoning model thinks before it; raises `Unusable` where the thinking has no end."""
    answer = re.sub(r"<think(ing)?>.*?</think(ing)?>", "", answer, flags=re.DOTALL | re.IGNORECASE)
    answer = re.split(r"<\|message\|>|</think(?:ing)?>", answer)[-1]
    if re.search(r"<think(ing)?>|<\|channel\|>", answer, flags=re.IGNORECASE):
        raise Unusable(f"the answer never ends its thinking: {answer[:80]!r}")
    return re.sub(r"<\|[^|<>]*\|>", "", answer)


def read_label(answer: str) -> str:
    """The label in an answer: its first line that says something; raises `Unusable` where there is none."""
    for line in said(answer).splitlines():
        if line.rstrip().endswith(":"):  # announces what comes
            continue
        text = re.sub(r"^\W*(label|answer|feature)\s*:\s*", "", line.strip(), flags=re.IGNORECASE)
        text = plain(text).strip(" \"'*`«»")
        if re.search(r"\w", text):
            if len(text) > _LONGEST_LABEL:
                break
            return text.rstrip(".")
    raise Unusable(f"no label in the answer {answer[:80]!r}")


def _score(task: Task, label: str, scorer: Labeler) -> float | None:
    """Balanced accuracy of the scorer, which sees label and texts, a few at a time; None of unusable answers."""
    says = np.zeros(len(task.texts), bool)
    for start in range(0, len(task.texts), _TEXTS_A_QUESTION):
        part = task.texts[start : start + _TEXTS_A_QUESTION]
        lines = "\n".join(f"{i}. {plain(text)}" for i, text in enumerate(part, 1))
        answer = ask(scorer, DETECT_PROMPT.format(label=label, texts=lines), f"feature {task.feature}, scoring")
        try:
            numbers = read_numbers(answer, len(part))
        except Unusable:
            return None
        for number in numbers:
            says[start + number - 1] = True
    return float((says[task.truth].mean() + (~says[~task.truth]).mean()) / 2)


def read_numbers(answer: str, n: int) -> list[int]:
    """The numbers from 1 to n in an answer, none if it says so; raises `Unusable` for others, and without any."""
    answer, numbers = said(answer), []
    for first, last in re.findall(r"(\d{1,6})(?:\s*[-–]\s*(\d{1,6}))?", answer):
        numbers += range(int(first), min(int(last or first), n + 1) + 1)
    none = bool(re.search(r"\bnone\b", answer, flags=re.IGNORECASE))
    if none and numbers:
        raise Unusable(f"the answer {answer[:80]!r} says both numbers and none")
    if not numbers and not none:
        raise Unusable(f"no numbers in the answer {answer[:80]!r}")
    if any(not 1 <= number <= n for number in numbers):
        raise Unusable(f"the answer {answer[:80]!r} names texts that are not there")
    return numbers
