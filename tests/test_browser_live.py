"""The dashboard that is served with a model, in a real browser."""

from collections.abc import Iterator

import pytest
from browser import TEXT, serving, stop, visit


@pytest.fixture(scope="module")
def sae(labelled_sae):
    return labelled_sae


@pytest.fixture(scope="module")
def served(sae, demo_folder, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served") / "sae"
    sae.save(folder)
    with serving(folder, demo_folder) as address:
        yield address


def test_a_typed_text_shows_its_features(chromium, served, sae, demo_model):
    with visit(chromium, served) as found:
        assert "token" not in found.page.url  # the key does not stay in the address
        found.page.click("#nav a:text-is('Try a text')")
        found.page.fill("textarea", TEXT)
        found.page.keyboard.press("Control+Enter")
        found.page.wait_for_selector(".heat")
        assert "".join(t.text_content() for t in found.page.locator(".passage .token").all()).endswith(TEXT)
        shown = [int(row.get_attribute("data-feature")) for row in found.page.locator(".heat tbody tr").all()]
        assert shown == [f.feature for f in sae.analyze_text(TEXT, demo_model).strongest(40)]
        found.page.fill("textarea", "  ")
        found.page.click("button[type=submit]")
        found.page.wait_for_selector(".answer .error")
        assert "expected 1 to" in found.text(".answer")
        found.problems = [p for p in found.problems if "400" not in p]  # the browser notes the refusal


def test_the_bench_puts_both_texts_side_by_side(chromium, served, sae, demo_model):
    with visit(chromium, served) as found:
        found.go("#/feature/7")
        found.page.click("text=steer with it")
        found.page.wait_for_selector(".strength-row")
        assert found.page.input_value(".feature-id") == "7"
        assert "countries of the atlas" in found.text(".strength-row")
        found.page.fill(".strength", "25")
        found.page.fill("textarea", "The capital of France is")
        found.page.click("text=Compare")
        found.page.wait_for_selector(".answer .two")
        expected = [
            demo_model.generate("The capital of France is", interventions=change, max_tokens=30)
            for change in (None, sae.intervene(add={7: 25.0}))
        ]
        said = [s.text_content().strip() for s in found.page.locator(".said").all()]
        assert said == [text.strip().replace("\n", "⏎\n") for text in expected]
        left, right = (s.bounding_box() for s in found.page.locator(".two > section").all())
        assert left["y"] == right["y"]


def test_the_bench_keeps_what_was_built_and_says_what_is_amiss(chromium, served):
    with visit(chromium, served) as found:
        found.go("#/steer?changes=7:set:2,9:ablate:0,99:add:-3.5")
        rows = found.page.locator(".strength-row")
        assert rows.count() == 3
        assert rows.nth(1).locator(".strength").is_hidden()
        assert found.page.input_value(".strength-row >> nth=2 >> .strength") == "-3.5"
        found.page.click("text=one more feature")
        assert found.page.evaluate("document.activeElement.className") == "feature-id"
        found.page.keyboard.type("99999")
        assert "there is no such feature" in rows.nth(3).inner_text()
        rows.nth(3).get_by_label("leave it out").click()
        found.page.fill("textarea", "The capital of Italy is")
        found.page.fill(".strength-row >> nth=2 >> .strength", "")
        found.page.click("text=Compare")  # the browser itself asks for a number
        found.page.wait_for_timeout(100)
        assert found.count(".answer .two") == 0
        found.page.fill(".strength-row >> nth=2 >> .strength", "2")
        found.page.click("text=Compare")
        found.page.wait_for_selector(".answer .two")
        found.page.fill("textarea", "The capital of Spain is")
        assert "stale" in found.page.get_attribute(".answer", "class")
        found.page.reload()
        found.settle()
        assert found.page.input_value("textarea") == "The capital of Spain is"
        assert rows.count() == 3


def test_an_answer_is_marked_as_soon_as_the_form_says_something_else(chromium, served):
    def is_stale():
        return "stale" in found.page.get_attribute(".answer", "class")

    with visit(chromium, served) as found:
        found.go("#/steer?changes=7:add:4")
        found.page.fill("textarea", "The capital of France is")
        found.page.evaluate(  # as fast as nobody is: the form is changed while the model computes
            """() => { document.querySelector("form").requestSubmit();
            const field = document.querySelector(".strength"); field.value = 12;
            field.dispatchEvent(new Event("input", { bubbles: true })); }"""
        )
        found.page.wait_for_selector(".answer .two")
        assert is_stale()
        assert "7%3Aadd%3A12" in found.page.url
        found.page.fill(".strength", "4")
        assert not is_stale()
        found.page.fill("[aria-label=tokens]", "5")
        assert is_stale()
        found.page.click("text=Compare")
        found.until("!document.querySelector('.answer').classList.contains('stale')")
        found.page.click("text=one more feature")
        found.page.keyboard.type("7")
        assert is_stale()
        found.page.click("text=Compare")
        found.page.wait_for_selector(".answer .error")
        assert not is_stale()
        found.go("#/try")
        found.page.fill("textarea", TEXT)
        found.page.click("button[type=submit]")
        found.page.wait_for_selector(".heat")
        found.go("#/features")
        found.go("#/try")
        assert found.count(".heat") == 1
        assert not is_stale()
        found.page.fill("textarea", "Paris")
        assert is_stale()
        found.problems = [p for p in found.problems if "400" not in p]


def test_a_server_that_was_stopped_and_parts_that_are_lost_are_told(chromium, sae, demo_folder, tmp_path):
    sae.save(tmp_path / "sae")
    with serving(tmp_path / "sae", demo_folder) as address, visit(chromium, address) as found:
        found.go("#/try")
        stop(address)
        found.page.fill("textarea", TEXT)
        found.page.click("button[type=submit]")
        found.page.wait_for_selector(".answer .error")
        assert "is it still running" in found.text(".answer .error")
        assert "does not answer" in found.go("#/feature/3").text(".error")
        found.problems.clear()  # the browser notes what could not be reached
    folder = sae.make_dashboard().write(tmp_path / "site")
    (folder / "data/0/features-1.js").write_text('hubsae.put("0/features-1", "bm8=");')
    (folder / "data/0/features-2.js").unlink()
    with visit(chromium, (folder / "index.html").as_uri()) as found:
        assert "features-1.js is damaged" in found.go("#/feature/64").text(".error")
        assert "features-2.js cannot be read" in found.go("#/feature/130").text(".error")
        assert found.go("#/feature/3").count(".examples") == 3
        for place in ("try", "steer"):
            assert "This needs a model" in found.go(f"#/{place}").text(".error")
        found.problems.clear()


def test_without_the_key_the_page_says_what_to_do(chromium, served):
    with visit(chromium, served.split("#")[0]) as found:
        found.go("#/try")
        assert "open the address that hubsae printed" in found.text(".error")
        assert found.count("textarea") == 1


def test_other_pages_cannot_read_the_server(chromium, served, tmp_path):
    """A page from elsewhere includes the data as a script, frames the site, and sends a question."""
    root = served.split("#")[0]
    page = f"""<script>window.got = []; window.hubsae = {{ put: (name) => got.push(name) }};</script>
    <script src="{root}data/about.js"></script><iframe src="{root}"></iframe>
    <script>fetch("{root}api/analyze", {{ method: "POST", body: "{{}}", headers: {{ "Content-Type": "text/plain" }} }})
      .then((r) => got.push(r.status), () => got.push("refused")).finally(() => {{ window.done = true }});</script>"""
    (tmp_path / "evil.html").write_text(page)
    context = chromium.new_context()
    evil = context.new_page()
    evil.goto((tmp_path / "evil.html").as_uri())
    evil.wait_for_function("window.done")
    assert evil.evaluate("got") == ["refused"]
    framed = evil.frames[1]
    assert "hubsae" not in framed.content() or framed.locator("#main").count() == 0
    context.close()
