"""The mixture has the share that was asked for, as many pairs as it can, and is the same for the same seed."""

from __future__ import annotations

import pytest

from neurofreeze.data.preferences import About, Preference
from neurofreeze.errors import DataError
from neurofreeze.methods.safeneuron.mixture import mixture


def pairs(about: About, count: int) -> list[Preference]:
    return [Preference((("user", f"{about} {number}"),), "yes", "no", about) for number in range(count)]


@pytest.mark.parametrize(
    ("safety", "helpfulness", "share", "expected"),
    [(90, 180, 0.3, (77, 180)), (30, 700, 0.3, (30, 70)), (10, 10, 0.5, (10, 10)), (10, 0, 1.0, (10, 0))],
)
def test_as_many_as_the_share_allows(safety: int, helpfulness: int, share: float, expected: tuple[int, int]) -> None:
    found = mixture(pairs("safety", safety) + pairs("helpfulness", helpfulness), share, seed=0)
    assert tuple(sum(pair.about == about for pair in found) for about in ("safety", "helpfulness")) == expected
    assert len({pair.prompt for pair in found}) == len(found)


def test_choice_and_order_follow_the_seed() -> None:
    every = pairs("safety", 20) + pairs("helpfulness", 20)
    first, same, other = (mixture(every, 0.3, seed) for seed in (1, 1, 2))
    assert first == same
    assert {pair.prompt for pair in first} != {pair.prompt for pair in other}
    assert len({pair.about for pair in first[:9]}) == 2, "the kinds are shuffled"


def test_a_kind_that_is_needed_and_missing_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.preferences\.helpfulness has no pairs"):
        mixture(pairs("safety", 3), 0.3, seed=0)
