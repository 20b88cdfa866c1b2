"""What NeST trains on."""

from __future__ import annotations

import pytest

from neurofreeze.data import Example, read
from neurofreeze.errors import DataError
from neurofreeze.evaluation.phrases import phrase_list
from neurofreeze.methods.nest.mixture import mixture

REFUSALS = [Example.of(f"harm {n}", "No.") for n in range(6)]
BENIGN = [Example.of(f"help {n}", "Sure.") for n in range(10)]


def mixed(share: float, seed: int = 0) -> tuple[list[Example], list[Example]]:
    return mixture([*BENIGN, *REFUSALS], lambda answer: answer == "No.", share, seed)


@pytest.mark.parametrize(("share", "benign"), [(0, 0), (0.25, 2), (0.5, 6), (0.6, 9), (0.9, 10)])
def test_benign_answers_make_up_their_share_until_there_are_no_more(share: float, benign: int) -> None:
    found = mixed(share)
    assert found[0] == REFUSALS
    assert len(found[1]) == len({example.key for example in found[1]}) == benign
    assert set(found[1]) <= set(BENIGN)


def test_the_choice_goes_with_the_seed() -> None:
    assert mixed(0.5) == mixed(0.5)
    assert mixed(0.5)[1] != mixed(0.5, seed=1)[1]


def test_refusals_are_needed_and_benign_answers_if_asked_for() -> None:
    with pytest.raises(DataError, match="trains on refusals"):
        mixture(BENIGN, lambda answer: answer == "No.", 0.5, 0)
    with pytest.raises(DataError, match="benign_share=0"):
        mixture(REFUSALS, lambda answer: answer == "No.", 0.5, 0)
    assert mixture(REFUSALS, lambda answer: answer == "No.", 0, 0) == (REFUSALS, [])


def test_the_bundled_refusals_are_told_by_the_phrase_list() -> None:
    sets = {name: read(f"bundled:{name}/align") for name in ("harmful", "lookalikes", "instructions")}
    everything = [example for examples in sets.values() for example in examples]
    refusals, benign = mixture(everything, phrase_list("strict-opening").is_refusal, 0.99, 0)
    assert refusals == sets["harmful"]
    assert len(benign) == len(sets["lookalikes"]) + len(sets["instructions"])
