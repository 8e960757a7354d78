"""What features of the embedded models mean, held against the truth of the atlas."""

import re
from functools import cached_property

import numpy as np

from hubsae import SAE, InterpretableModel, codes, concepts, tokens
from hubsae.concepts import ConceptMatch
from hubsae.demo import atlas

N_JUDGED = 1_200
_RARE = 20  # concepts on fewer words than this, in either half of the documents, are not judged
_WORD = re.compile(r"\w+|[^\w\s]")


class Judge:
    """An SAE's codes of fresh documents of the atlas, of which every concept is known.

    A feature fires on a word or sentence if it fires on one of its tokens. Features and thresholds are chosen on every
    other document and scored on the rest.
    """

    def __init__(self, sae: SAE, model: InterpretableModel, n_documents: int = N_JUDGED):
        self._documents = atlas.generate(n_documents, seed=1_000_003)
        config = tokens.TokenConfig()
        context = config.context_for(model.max_positions)
        chunks = list(tokens.chunks([d.text for d in self._documents], model.tokenizer, config, context))
        self._codes = codes.encode_chunks(sae, model, chunks)
        self._read = [self._documents[chunk.document] for chunk in chunks]
        encode = tokens.callable_tokenizer(model.tokenizer)
        self._last = [_last_characters(encode, document.text) for document in self._read]

    def words(self) -> list[ConceptMatch]:
        """The best feature of every concept that the words carry often enough to judge, best first."""
        return concepts.match_concepts(*self._words)

    def of_features(self) -> list[ConceptMatch]:
        """The concept that each feature tells best: of the word that it fires on, or of the one that comes next."""
        values, carried, names, fit = self._words
        following = np.zeros_like(carried)
        following[:-1] = carried[1:]
        following[self._last_words] = False
        both = np.concatenate([carried, following], axis=1)
        return concepts.concepts_of_features(values, both, [*names, *(f"next: {name}" for name in names)], fit)

    @cached_property
    def _words(self):
        """Values of the features on words, which words carry which concept, the concepts' names, and what to fit on."""
        ends = [np.array([match.end() - 1 for match in _WORD.finditer(d.text)]) for d in self._read]
        self._last_words = np.cumsum([len(e) for e in ends]) - 1
        values, fit = self._values(ends)
        names = list(atlas.concept_counts(self._documents))
        carried = atlas.concept_matrix(self._read, ends, names)
        common = np.flatnonzero(np.minimum(carried[fit].sum(axis=0), carried[~fit].sum(axis=0)) >= _RARE)
        return values, carried[:, common], [names[i] for i in common], fit

    def sentences(self, concept: str, feature: int) -> ConceptMatch:
        """How well one feature tells the sentences in which a concept begins."""
        values, fit = self._sentences
        carried = np.concatenate(
            [
                np.isin(_sentence_ends(d), [_sentence_of(d, s.start) for s in d.spans if s.concept == concept])
                for d in self._read
            ]
        )
        found = concepts.match_concepts(values[:, [feature]], carried[:, None], [concept], fit)[0]
        return ConceptMatch(feature, concept, found.precision, found.recall, found.f1)

    @cached_property
    def _sentences(self):
        return self._values([_sentence_ends(document) for document in self._read])

    def _values(self, ends: list[np.ndarray]):
        """(units, F) largest values on units that end at these characters; (units,) whether they are to choose by."""
        first = np.concatenate([[0], np.cumsum([len(e) for e in ends])])
        unit_of = [
            np.where(last >= 0, np.searchsorted(e, last) + start, -1)
            for last, e, start in zip(self._last, ends, first[:-1], strict=True)
        ]
        unit = np.array([unit_of[c][p] for c, p in zip(self._codes.chunk, self._codes.position, strict=True)])
        fit = np.concatenate([np.full(len(e), i % 2 == 0) for i, e in enumerate(ends)])
        return codes.pool(self._codes, unit, int(first[-1])), fit


def _sentence_ends(document: atlas.Document) -> np.ndarray:
    return np.array(sorted({span.end - 1 for span in document.spans if span.concept.startswith("topic:")}))


def _sentence_of(document: atlas.Document, character: int) -> int:
    ends = _sentence_ends(document)
    return int(ends[np.searchsorted(ends, character)])


def _last_characters(encode, text: str) -> np.ndarray:
    """Index of the last character of each token, -1 for tokens without any."""
    offsets = encode(text, return_offsets_mapping=True)["offset_mapping"]
    return np.array([end - 1 if end > start else -1 for start, end in offsets])
