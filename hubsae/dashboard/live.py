"""What a local dashboard computes with a model: the features of a text, and the model's words with features changed."""

from collections.abc import Mapping, Sequence
from typing import Any

from hubsae import text_analysis
from hubsae.dashboard.page_data import Side, text_data
from hubsae.dashboard.shards import short
from hubsae.errors import ConfigError, DataError
from hubsae.lm import LanguageModel
from hubsae.settings import as_type
from hubsae.steer import Change, Intervention, change
from hubsae.tables import plain

MAX_LETTERS, MAX_TOKENS, MAX_CHANGES = 4_000, 200, 20
_MODES = ("add", "set", "amplify", "ablate")
_LIKELY = 8


class Live:
    """Answers for the dictionaries of a site whose models are at hand: models, for each, or None."""

    def __init__(self, sides: Sequence[Side], models: Sequence[tuple[LanguageModel, ...] | None]):
        self._sides, self._models = tuple(sides), tuple(models)

    @property
    def actions(self) -> dict[str, Any]:
        """By name, as a `LocalServer` takes them; none where there is no model at all."""
        if not any(self._models):
            return {}
        return {"about": self.about, "analyze": self.analyze, "steer": self.steer}

    def about(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """What can be asked of which dictionary."""
        has = [models is not None for models in self._models]
        steerable = [bool(models) and _writes_into_first(side) for side, models in zip(self._sides, has, strict=True)]
        return {"analyze": has, "steer": steerable, "max_letters": MAX_LETTERS, "max_tokens": MAX_TOKENS}

    def analyze(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """{side, text}: what `page_data.text_data` says of it."""
        side, models = self._side(question)
        text = _text(question, "text")
        analysis = text_analysis.analyze_text(side.dictionary, models, text, known=side.features)
        return text_data(analysis, side.features)

    def steer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """{side, prompt, max_tokens, changes: [{feature, mode, strength}]}: the model's words before and after."""
        side, models = self._side(question)
        prompt = _text(question, "prompt")
        length = as_type(question.get("max_tokens"), int, "max_tokens")
        if not 1 <= length <= MAX_TOKENS:
            raise ConfigError(f"max_tokens={length}: expected 1 to {MAX_TOKENS}")
        changed = Intervention(side.dictionary, self._change(side, question.get("changes")))
        model = models[0]
        return {"before": _words(model, prompt, length, None), "after": _words(model, prompt, length, changed)}

    def _side(self, question: Mapping[str, Any]) -> tuple[Side, tuple[LanguageModel, ...]]:
        number = as_type(question.get("side"), int, "side")
        models = self._models[number] if 0 <= number < len(self._sides) else None
        if models is None:
            raise ConfigError(f"there is no model at hand for dictionary {number}")
        return self._sides[number], models

    def _change(self, side: Side, changes: Any) -> Change:
        if not isinstance(changes, list) or not 1 <= len(changes) <= MAX_CHANGES:
            raise DataError(f"give 1 to {MAX_CHANGES} features to change")
        found: dict[str, dict[int, float]] = {mode: {} for mode in _MODES}
        for wanted in changes:
            if not isinstance(wanted, dict) or wanted.get("mode") not in _MODES:
                raise DataError(f"a change is one of {', '.join(_MODES)}")
            feature = side.features.check(as_type(wanted.get("feature"), int, "feature"))
            if any(feature in chosen for chosen in found.values()):
                raise DataError(f"feature {feature} is changed twice")
            found[wanted["mode"]][feature] = as_type(wanted.get("strength"), float, "strength")
        return change(
            side.dictionary,
            side.features,
            add=found["add"],
            set_to=found["set"],
            amplify=found["amplify"],
            ablate=list(found["ablate"]),
        )


def _writes_into_first(side: Side) -> bool:
    return any(site.model == 0 for site in side.dictionary.config.write_sites)


def _text(question: Mapping[str, Any], name: str) -> str:
    text = as_type(question.get(name), str, name)
    if not text.strip() or len(text) > MAX_LETTERS:
        raise DataError(f"{name}: expected 1 to {MAX_LETTERS:,} letters, found {len(text):,}")
    return text


def _words(model: LanguageModel, prompt: str, length: int, changed: Intervention | None) -> dict[str, Any]:
    with model.trace(prompt, changed) as trace:
        likely = model.get_token_predictions(trace.logits, _LIKELY)
    text = model.generate(prompt, interventions=changed, max_tokens=length)
    if likely[0].token[:1] == " " and text[:1] not in (" ", ""):
        text = f" {text}"  # some tokenizers drop it at the start of what they decode
    return {"text": plain(text), "next": [[plain(p.token), short(p.probability)] for p in likely]}
