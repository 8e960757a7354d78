"""Dictionaries of other libraries compute here what they compute there."""

import numpy as np
import pytest
from foreign import Case, cases, distance, units_of

from hubsae.errors import ArtifactError

TOLERANCE = 1e-5
ACCEPTED = [case for case in cases(refused=False) if case.name not in ("sparsify_groupmax",)]
REFUSED = [case for case in cases(refused=True) if case.name != "saelens_expected_average_only_in_checkpoint"]


@pytest.mark.filterwarnings("ignore:.*its threshold is -1")
@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.name)
def test_code_and_reconstruction_are_those_of_the_library(case: Case, tmp_path):
    dictionary = case.load(tmp_path)
    assert dictionary.config.kind == case.info["kind"]
    expected = case.expected
    y = expected["y2"] * np.sqrt(16) if case.name == "gemma_scope_embedding" else expected["y"]
    found = distance(dictionary, expected["x"], expected["code"], y, units_of(case, dictionary))
    assert found.same_features
    assert found.code < TOLERANCE
    assert found.y < TOLERANCE


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_what_no_weights_can_do_is_refused_with_the_reason(case: Case, tmp_path):
    with pytest.raises(ArtifactError, match="would be another dictionary"):
        case.load(tmp_path)
