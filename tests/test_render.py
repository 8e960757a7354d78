import re
from pathlib import Path

import jinja2
import mlx.core as mx
import pytest
from conftest import random_sae
from huggingface_hub import ModelCard

from hubsae import render
from hubsae.dictionary import Dictionary, DictionaryConfig
from hubsae.errors import ConfigError, HubsaeWarning


@pytest.mark.parametrize("text", ["a|b", "<script>", "`x`", "[a](b)", "*b*", "line\nbreak", "a\\b", "‮evil"])
def test_untrusted_text_shows_as_itself(text):
    shown = render.escape(text)
    assert "<" not in shown
    assert "\n" not in shown
    assert "\u202e" not in shown
    for mark in "|`[*":
        assert shown.count(mark) == shown.count("\\" + mark)


@pytest.mark.parametrize("text", ["a", "a`b", "``", " x ", "a|b", "a\nb"])
def test_a_code_span_cannot_be_left(text):
    shown = render.code(text)
    fence = len(shown) - len(shown.lstrip("`"))
    inner = shown[fence:-fence]
    assert "`" * fence not in inner
    assert "|" not in shown
    assert "\n" not in shown


def test_a_name_that_the_template_lacks_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        render.fill("dictionary.md", {})


def test_a_generated_card_is_replaced_and_an_edited_one_kept():
    old, new = (render.sign(f"---\na: {n}\n---\n\n# Card {n}\n") for n in (1, 2))
    assert render.merge(None, new, "merge") == new
    assert render.merge(old, new, "merge") == new
    edited = old.replace("# Card 1", "# My card")
    with pytest.warns(HubsaeWarning, match="edited by hand"):
        merged = render.merge(edited, new, "merge")
    assert "# My card" in merged
    assert "a: 2" in merged
    assert render.merge(edited, new, "keep") == edited
    assert render.merge(edited, new, "replace") == new
    assert "mine: x" in render.merge(old.replace("a: 1", "a: 1\nmine: x"), new, "merge")
    assert "stale" not in render.merge(old.replace("a: 1", "a: 1\nbase_model: stale"), new, "merge")
    with pytest.raises(ConfigError, match="card='always'"):
        render.merge(old, new, "always")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "front", ["---\nlicense: mit\n---\n", "\ufeff---\r\nlicense: mit\r\n--- \r\n", "---\nlicense: mit\n---"]
)
def test_a_card_of_metadata_alone_gets_its_text_and_keeps_its_licence(front):
    new = render.sign("---\na: 2\ntags:\n- topk\n---\n\n# Card\n")
    merged = render.merge(front, new, "merge")
    assert merged.count("---\n") == 2
    assert "license: mit" in merged
    assert "# Card" in merged


def test_tags_of_people_stay_and_ours_are_renewed():
    old = "---\ntags:\n- relu\n- mine\n---\n"
    merged = render.merge(old, render.sign("---\ntags:\n- topk\n---\n\n# Card\n"), "merge")
    assert ModelCard(merged).data.to_dict()["tags"] == ["mine", "topk"]


# what a template itself says, or this package, or numbers that were checked
_OWN = {
    "alignment.md": {
        *("label", "control", "what", "text", "name", "kind.__name__", 'settings.matching | replace("_", " ")'),
        *("pairs[0].feature_a", "pairs[0].feature_b", "pair.feature_a", "pair.feature_b", "sides[1].width"),
        '(value | percent) if how == "percent" else (value | number)',
        'maps | map("code") | join(", ")',
    },
    "dashboard.md": {"hub"},
    "dictionary.md": {
        *("kind_name", "variable", "config.n_features", "config.d_out"),
    },
    "report.md": {
        'papers | map("md") | join("; ")',
    },
}


@pytest.mark.parametrize("template", sorted(_OWN))
def test_every_value_of_a_card_template_goes_through_a_filter(template):
    source = (Path(__file__).parent.parent / "cards" / template).read_text()
    macros = set(re.findall(r"{% macro (\w+)\(", source))
    for expression in re.findall(r"{{-?\s*(.*?)\s*-?}}", source):
        last = expression.split("|")[-1].strip().split("(")[0]
        if last in ("md", "code", "number", "percent", "tojson", "urlencode", "tex") or expression in _OWN[template]:
            continue
        is_choice = expression.startswith('"')  # between texts of the template
        is_coded = re.fullmatch(r'[\w.]+ \| map\("code"\) \| join\("[ +]+"\)', expression)
        assert is_choice or is_coded or expression.split("(")[0] in macros, expression


def test_a_card_of_a_bare_dictionary_has_no_empty_places():
    sae = random_sae()
    card = str(sae.generate_model_card())
    assert "More Information Needed" not in card
    assert "None" not in ModelCard(card).text.replace("(None:", "")
    assert "Results" not in card
    assert "| -" not in card


def test_hostile_names_stay_text_in_the_card():
    base = {"repo_id": "evil|<script>alert(1)</script>`", "revision": "a" * 40, "model_type": "x|y"}
    sae = random_sae(base_models=(base,))
    sae.statistics = {"rows": 5, "data": {"name": "</td><script>|`"}}
    text = ModelCard(str(sae.generate_model_card(repo_id="a/b"))).text
    outside_code = text.split("```python")[0]
    assert "<script>" not in outside_code


def test_a_citation_names_the_owner_and_the_address_and_is_left_out_without_one():
    card = str(random_sae().generate_model_card(repo_id="some-lab/sae_one"))
    assert '  author = "{some-lab}",\n' in card
    assert '  url = "https://huggingface.co/some-lab/sae_one",\n' in card
    assert "bibtex" not in str(random_sae().generate_model_card(repo_id="sae_one"))


def test_cards_of_two_dictionaries_do_not_share_metadata():
    one = random_sae(base_models=({"repo_id": "a/one"},)).generate_model_card()
    two = random_sae(base_models=({"repo_id": "a/two"},)).generate_model_card()
    three = random_sae().generate_model_card()
    assert one.data.to_dict()["base_model"] == "a/one"
    assert two.data.to_dict()["base_model"] == "a/two"
    assert "base_model" not in three.data.to_dict()
    assert two.data.to_dict()["base_model_relation"] == "adapter"
    assert {"mlx"}.isdisjoint(two.data.to_dict()["tags"])


@pytest.mark.parametrize(
    ("reads", "writes", "more", "what"),
    [
        (["layers.1.mlp_in"], ["layers.1.mlp"], {}, "A transcoder"),
        (["layers.1.mlp_in"], ["layers.1.mlp"], {"skip": True}, "A skip transcoder"),
        (["layers.0", "layers.1"], ["layers.0", "layers.1"], {}, "A crosscoder"),
        (
            ["layers.0", "1:layers.1"],
            ["layers.0", "1:layers.1"],
            {"base_models": ({}, {"repo_id": "a/b"})},
            "A crosscoder",
        ),
    ],
)
def test_cards_of_all_kinds_have_code_that_is_code_and_no_empty_places(reads, writes, more, what):
    d_in, d_out = 8 * len(reads), 8 * len(writes)
    sites = {"reads": reads, "writes": writes, "read_widths": [8] * len(reads), "write_widths": [8] * len(writes)}
    config = DictionaryConfig(**sites, n_features=4, sparsity={"name": "topk", "k": 2}, **more)
    shapes = Dictionary.array_shapes(config)
    card = Dictionary(config, {name: mx.zeros(shape) for name, shape in shapes.items()}).generate_model_card(
        repo_id="a/b_c"
    )
    assert (shapes["W_enc"][0], shapes["W_dec"][1]) == (d_in, d_out)
    assert f"\n{what} that reads" in card.text
    for block in re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL):
        compile(block, "card", "exec")
    assert r'title = "a/b\_c, a ' in card.text
    assert "None" not in card.text
    assert "| - |" not in card.text
    assert ("evaluate(texts=" in card.text) == (len(config.base_models) > 1)


def test_text_of_a_bibtex_entry_ends_nothing():
    assert render.tex('a_b"} \\input{x}\n%$#&~^```') == r"a\_b inputx"
