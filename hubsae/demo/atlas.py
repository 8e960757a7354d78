"""A probabilistic grammar over a fixed world: documents with their exact probability and the concepts of every word.

Each random choice adds its logarithm to the document's, and no two derivations give the same text, so the sum is the
log probability of the text itself: the mean of `-log_probability` is the grammar's entropy, the floor of any language
model's loss. Facts are looked up, not drawn, and cost nothing.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from hubsae.demo.templates import FACTS, Fact
from hubsae.demo.world import WORLD, Entity, Form

MIN_SENTENCES, MAX_SENTENCES = 3, 8
P_STOP = 0.25  # after each sentence from the third
P_ASIDE = 0.06  # a later sentence comes from another topic
P_CHANGE = 0.15  # a later sentence turns to another subject of the same topic
P_NAME = 0.3  # a later sentence names its subject instead of using a pronoun


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` (exclusive) of a text carry `concept`."""

    start: int
    end: int
    concept: str


@dataclass(frozen=True)
class Document:
    """A short paragraph; `log_probability` (nats) is exact under the grammar of the topics that it was drawn from."""

    text: str
    spans: tuple[Span, ...]
    log_probability: float
    topic: str


TOPICS: tuple[str, ...] = tuple(FACTS)
_MARKS = {"v": ("verb", "present tense"), "d": ("verb", "past tense"), "n": ("plural",), "p": ("pronoun",)}
_PIECE = re.compile(r"\{(?P<path>[\w.@]+)\}|(?P<marked>\w+)/(?P<mark>[vdnp])|(?P<plain>\w+)|[ .,]+")


@functools.cache
def _pieces(template: str) -> tuple[re.Match, ...]:
    return tuple(_PIECE.finditer(template))


def _is_word(piece: re.Match) -> bool:
    return piece.lastgroup is not None


@dataclass
class _Memory:
    """What a document has said about one subject, and what was drawn for it."""

    drawn: dict[str, Entity]
    said: set[str] = field(default_factory=set)


# A chooser takes probabilities and returns an index; a tool that enumerates the grammar passes another one.
_Choose = Callable[[Sequence[float]], int]


class _Writer:
    """Writes one document: choices go in, text, spans and log probability come out."""

    def __init__(self, choose: _Choose) -> None:
        self._choose = choose
        self.log_probability = 0.0
        self.text = ""
        self.spans: list[Span] = []

    def choose(self, options: Sequence, probabilities: Sequence[float] | None = None):
        """One of `options` (uniform unless told), its log probability added."""
        if len(options) == 1:
            return options[0]
        probabilities = probabilities or [1 / len(options)] * len(options)
        index = self._choose(probabilities)
        self.log_probability += math.log(probabilities[index])
        return options[index]

    def happens(self, probability: float) -> bool:
        return self.choose((True, False), (probability, 1 - probability))

    def sentence(
        self, template: str, things: dict[str, Entity], known_from: dict[str, int], whole: Iterable[str]
    ) -> None:
        """Append a sentence. `known_from`: concept -> the slot or word (counted from 0) that its span starts with."""
        start = len(self.text) + (1 if self.text else 0)
        self.text += " " if self.text else ""
        words = 0
        starts = {}
        for match in _pieces(template):
            form = _form(match, things)
            text = form.text[0].upper() + form.text[1:] if len(self.text) == start else form.text
            if _is_word(match):
                starts |= {concept: len(self.text) for concept, word in known_from.items() if word == words}
                words += 1
            end = len(self.text) + len(text)
            self.spans += [Span(len(self.text), end, concept) for concept in form.concepts]
            self.text += text
        end = len(self.text)
        self.spans += [Span(first, end, concept) for concept, first in starts.items()]
        self.spans += [Span(start, end, concept) for concept in sorted(whole)]
        self.spans.append(Span(end - 1, end, "full stop"))


def _entity(thing: Entity | Form | None) -> Entity:
    assert isinstance(thing, Entity)  # the tables lead from entity to entity
    return thing


def _follow(path: str, things: dict[str, Entity]) -> Entity | Form:
    root, *steps = path.split(".")
    thing: Entity | Form = things[root]
    for step in steps:
        thing = _entity(thing).attributes[things[step[1:]].name if step.startswith("@") else step]
    return thing


def _form(match: re.Match, things: dict[str, Entity]) -> Form:
    if match["path"]:
        thing = _follow(match["path"], things)
        return thing.form(thing.name) if isinstance(thing, Entity) else thing
    if match["marked"]:
        word = match["marked"].lower()
        concepts = _MARKS[match["mark"]]
        return Form(match["marked"], (*concepts, f"pronoun:{word}") if "pronoun" in concepts else concepts)
    return Form(match[0], ())


def _pool(kind_or_names: str) -> list[Entity]:
    if kind_or_names in WORLD:
        return list(WORLD[kind_or_names].values())
    return [WORLD["number"][name] for name in kind_or_names.split()]


def _prefixes(fact: Fact, kind: str, template: str) -> list[tuple[str, ...]]:
    """The word classes that a reader has seen after each word of a template."""
    things = {kind: _pool(kind)[0], **{variable: _pool(names)[0] for variable, names in fact.draws}}
    if fact.needs:
        for other in (other for topic in FACTS.values() for other in topic.get(kind, ())):
            things = {variable: _pool(names)[0] for variable, names in other.draws} | things
    keys: list[str] = []
    for match in _pieces(template):
        if match["path"]:
            form = _form(match, things)
            keys.append("+".join(c for c in form.concepts if ":" not in c) or form.text)
        elif match["marked"] or match["plain"]:
            keys.append((match["marked"] or match["plain"]).lower())
    return [tuple(keys[: i + 1]) for i in range(len(keys))]


def _known_words() -> dict[tuple[str, str], int]:
    """(fact, template) -> the first word from which on only this fact's sentences begin so."""
    rows = [
        (fact.name, template, _prefixes(fact, kind, template))
        for kinds in FACTS.values()
        for kind, facts in kinds.items()
        for fact in facts
        for template in (*fact.named, *fact.leaning)
    ]
    names: dict[tuple[str, ...], set[str]] = {}
    for name, _, prefixes in rows:
        for prefix in prefixes:
            names.setdefault(prefix, set()).add(name)
    return {
        (name, template): next((i for i, prefix in enumerate(prefixes) if names[prefix] == {name}), len(prefixes) - 1)
        for name, template, prefixes in rows
    }


_KNOWN = _known_words()


def _subject_word(template: str, kind: str) -> int | None:
    words = [match for match in _pieces(template) if _is_word(match)]
    return next((i for i, match in enumerate(words) if (match["path"] or "").split(".")[0] == kind), None)


def _say(
    writer: _Writer, topic: str, subject: Entity, fact: Fact, drawn: dict[str, Entity], named: bool, whole: set[str]
):
    """Draw what the fact leaves open, then write it in one of its sentences."""
    home = subject.attributes.get("country")
    for variable, names in fact.draws:
        drawn[variable] = writer.choose([thing for thing in _pool(names) if thing is not subject and thing is not home])
    template = writer.choose(fact.named if named or not fact.leaning else fact.leaning)
    about, first = f"about:{subject.name}", _subject_word(template, subject.kind)
    known_from = {f"fact:{fact.name}": _KNOWN[fact.name, template]}
    if named and first is not None:
        known_from[about] = first
    else:
        whole = whole | {about}
    writer.sentence(template, {subject.kind: subject, **drawn}, known_from, {f"topic:{topic}", *whole})


def _aside(writer: _Writer, topics: Sequence[str]) -> None:
    topic = writer.choose(topics)
    kind = writer.choose(list(FACTS[topic]))
    subject = writer.choose(_pool(kind))
    fact = writer.choose([fact for fact in FACTS[topic][kind] if not fact.needs])
    _say(writer, topic, subject, fact, {}, True, {"aside"})


def _write(choose: _Choose, topics: Sequence[str], max_sentences: int = MAX_SENTENCES) -> Document:
    writer = _Writer(choose)
    topic = writer.choose(topics)
    others = [other for other in topics if other != topic]
    memories: dict[Entity, _Memory] = {}
    subject: Entity | None = None
    named = True
    for count in range(max_sentences):
        if count >= MIN_SENTENCES and writer.happens(P_STOP):
            break
        if count and others and writer.happens(P_ASIDE):
            _aside(writer, others)
            named = True  # a pronoun would now mean the aside's subject
            continue
        open_facts = _open_facts(topic, subject, memories) if subject else []
        if not open_facts or writer.happens(P_CHANGE):
            kind = writer.choose(list(FACTS[topic]))
            subject = _entity(writer.choose([thing for thing in _pool(kind) if thing not in memories]))
            memories[subject] = _Memory({})
            open_facts = _open_facts(topic, subject, memories)
            named = True
        subject = _entity(subject)
        fact = writer.choose(open_facts)
        memory = memories[subject]
        if fact.leaning and not named:
            named = writer.happens(P_NAME)
        _say(writer, topic, subject, fact, memory.drawn, named, {"opening"} if not count else set())
        memory.said.add(fact.name)
        if fact.moves_to:
            subject = _entity(subject.attributes[fact.moves_to])
            memories.setdefault(subject, _Memory({}))
        named = False
    return Document(writer.text, tuple(writer.spans), writer.log_probability, topic)


def _open_facts(topic: str, subject: Entity, memories: dict[Entity, _Memory]) -> list[Fact]:
    said = memories[subject].said
    facts = FACTS[topic][subject.kind]
    return [fact for fact in facts if fact.name not in said and (fact.needs is None or fact.needs in said)]


def generate(n_documents: int, *, seed: int, topics: Iterable[str] | None = None) -> list[Document]:
    """`n_documents` independent documents, the same for the same seed. `topics`: leave the others out altogether."""
    chosen = _checked(topics)
    rng = np.random.default_rng(seed)

    def choose(probabilities: Sequence[float]) -> int:
        left = rng.random()
        for index, probability in enumerate(probabilities):
            left -= probability
            if left < 0:
                return index
        return len(probabilities) - 1

    return [_write(choose, chosen) for _ in range(n_documents)]


def enumerate_documents(max_sentences: int, *, topics: Iterable[str] | None = None) -> Iterator[Document]:
    """Every document of the grammar cut off after `max_sentences`: their probabilities sum to one."""
    chosen = _checked(topics)
    script: list[tuple[int, int]] = []  # (choice, number of options) along the current branch
    while True:
        depth = 0

        def choose(probabilities: Sequence[float]) -> int:
            nonlocal depth
            if depth == len(script):
                script.append((0, len(probabilities)))
            depth += 1
            return script[depth - 1][0]

        yield _write(choose, chosen, max_sentences)
        while script and script[-1][0] + 1 == script[-1][1]:
            script.pop()
        if not script:
            return
        script[-1] = (script[-1][0] + 1, script[-1][1])


def _checked(topics: Iterable[str] | None) -> list[str]:
    chosen = list(TOPICS if topics is None else topics)
    unknown = [topic for topic in chosen if topic not in TOPICS]
    if unknown or not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"topics={chosen}: give distinct names among {', '.join(TOPICS)}")
    return chosen


def entropy_per_character(documents: Sequence[Document]) -> float:
    """Estimated entropy rate (nats per character): the sum of `-log_probability` over the sum of lengths."""
    return -sum(document.log_probability for document in documents) / sum(len(document.text) for document in documents)


def concept_matrix(documents: Sequence[Document], ends: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
    """(sum of tokens, len(names)) bool: token t carries a concept iff its last character lies in a span of it.

    `ends[i]`: index of the last character of each token of document i; -1 for a token without characters (BOS, EOS).
    """
    column = {name: j for j, name in enumerate(names)}
    blocks = []
    for document, offsets in zip(documents, ends, strict=True):
        offsets = np.asarray(offsets, dtype=np.int64)
        block = np.zeros((len(offsets), len(names)), dtype=bool)
        for span in document.spans:
            if span.concept in column:
                block[:, column[span.concept]] |= (span.start <= offsets) & (offsets < span.end)
        blocks.append(block)
    return np.concatenate(blocks) if blocks else np.zeros((0, len(names)), dtype=bool)


def concepts_at(document: Document, ends: Iterable[int]) -> list[frozenset[str]]:
    """For each token, given the index of its last character: the concepts that it carries."""
    return [frozenset(span.concept for span in document.spans if span.start <= end < span.end) for end in ends]


def concept_counts(documents: Iterable[Document]) -> dict[str, int]:
    """Every concept that occurs, with its number of spans, most frequent first."""
    counts: dict[str, int] = {}
    for document in documents:
        for span in document.spans:
            counts[span.concept] = counts.get(span.concept, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


# A prompt that can open a document, and the path of the one word that can follow. {kind} runs over all its entities.
_QUESTIONS = (
    ("country", "The capital of {country} is", "country.capital"),
    ("country", "In {country} people speak", "country.language"),
    ("country", "The currency of {country} is the", "country.currency"),
    ("country", "The neighbour of {country} is", "country.neighbour"),
    ("country", "In {country} people drink", "country.drink"),
    ("animal", "The colour of the {animal} is", "animal.colour"),
    ("animal", "{animal.plural} eat", "animal.diet"),
    ("animal", "{animal.plural} live in the", "animal.habitat"),
    ("food", "{food.plural} taste", "food.taste"),
    ("person", "{person} works as a", "person.job"),
    ("person", "{person} speaks", "person.country.language"),
    ("person", "Every day {person} goes to the", "person.job.place"),
)


def questions() -> list[tuple[str, str]]:
    """Prompts and the continuation (space and word) that the world's tables demand."""
    pairs = []
    for kind, prompt, answer in _QUESTIONS:
        for thing in WORLD[kind].values():
            things = {kind: thing}
            text = "".join(_form(match, things).text for match in _pieces(prompt))
            pairs.append((text[0].upper() + text[1:], f" {_entity(_follow(answer, things)).name}"))
    return pairs
