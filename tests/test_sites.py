import pytest

from hubsae.errors import HubsaeError, SiteError
from hubsae.sites import Site, columns, parse_sites


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("layers.10.mlp", Site(10, "mlp")),
        ("layers.0", Site(0, "residual")),
        ("model.model.layers.10.mlp", Site(10, "mlp")),
        ("transformer.h.3.attn.in", Site(3, "attn_in")),
        ("blocks.2.resid_pre", Site(2, "residual_in")),
        ("layers.2.self_attn.o_proj.in", Site(2, "self_attn.o_proj.in")),
    ],
)
def test_text_and_site_are_two_forms_of_one_thing(text, site):
    assert Site.parse(text) == site
    assert Site.parse(str(site)) == site


@pytest.mark.parametrize("text", ["mlp", "layers.x.mlp", "layers.-1", "layers.1..mlp", "", "layers.1.mlp/../x"])
def test_what_is_no_site_is_refused_with_an_example(text):
    with pytest.raises(SiteError, match=r"layers|component"):
        Site.parse(text)


def test_input_and_module_follow_from_the_component():
    assert Site(1, "mlp_in").is_input
    assert Site(1, "mlp_in").module == "mlp"
    assert Site(1, "a.b.in").module == "a.b"
    assert not Site(1, "mlp").is_input


def test_columns_lie_side_by_side():
    sites = parse_sites(["layers.0", "layers.1.mlp"])
    assert columns(sites, [3, 5]) == {sites[0]: slice(0, 3), sites[1]: slice(3, 8)}


def test_a_negative_layer_is_refused():
    with pytest.raises(HubsaeError, match="from 0"):
        Site(-1, "mlp")
