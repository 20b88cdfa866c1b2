"""The report is one file that needs no network and shows what was measured, whatever the run looked like."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from neurofreeze.evaluation.statistics import Mean, Rate
from neurofreeze.report.content import Arm, Content, Site
from neurofreeze.report.html import write_report
from neurofreeze.strategies.stability import Overlap

from .contents import content, judged, measurements, pruned, ratio_curves, sites

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """What a browser would see: tags with attributes, text; fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def every(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def html(found: Content, folder: Path) -> str:
    path = write_report(found, folder / "report.html")
    assert list(folder.iterdir()) == [path]
    return path.read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the time goes into pixels that these tests do not look at."""
    monkeypatch.setattr("neurofreeze.report.figures.canvas.DPI", 40)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return html(content(), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_nothing_is_requested(source: str, page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    style = source.split("<style>")[1].split("</style>")[0]
    assert not re.search(r"url\(|@import|@font-face", style)


def test_it_can_be_sent_by_mail(source: str) -> None:
    assert len(source) < 1_000_000


def test_links_inside_the_page_lead_somewhere(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {f"#{name}" for name in ids} >= {attributes["href"] for attributes in page.every("a")}


def test_it_can_be_read_without_seeing_it(page: Page) -> None:
    assert page.every("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in page.every("img"))
    assert len(page.every("caption")) == len(page.every("table"))
    assert all(cell["scope"] in ("col", "row") for cell in page.every("th"))


def test_counts_stand_with_their_intervals(page: Page) -> None:
    for expected in (
        "58/64 81-96 %", "21/64 23-45 %", "49/64 65-85 %", "4/40 4-23 %", "5,987,520 4.5 %",
        "p = 0.035", "p < 0.001",
    ):  # fmt: skip
        assert expected in page.text


def test_it_says_how_to_do_it_again(page: Page) -> None:
    assert content().command in page.text
    assert "name: HuggingFaceTB/SmolLM2-135M-Instruct" in page.text
    assert "a1b2c3d4e5f6" in page.text


def test_changed_frozen_elements_are_shouted(page: Page, tmp_path: Path) -> None:
    assert "intact" in page.text
    assert "CHANGED" not in page.text
    *others, last = content().arms
    broken = Page(html(content(arms=[*others, replace(last, verified_changed=1)]), tmp_path))
    assert "1 frozen element CHANGED" in broken.text
    assert "5,987,520 1 CHANGED" in broken.text
    assert {"class": "alarm"} in broken.every("p")


def test_what_users_name_is_text_not_markup(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"&"
    arms = [replace(arm, label=f"{arm.label} $x_1 {evil}") for arm in content().arms]
    found = content(
        title=evil, model=evil, model_source=evil, phrase_list=evil, command=evil, config_yaml=evil,
        notes=[evil], method={evil: evil}, arms=arms,
    )  # fmt: skip
    page = Page(html(found, tmp_path))
    assert page.every("script") == []
    assert page.text.count("<script>alert('x')</script>\"&") > 10


def test_a_run_with_little_to_show(tmp_path: Path) -> None:
    start = Arm("aligned", "Aligned start", measurements(0, 0, 0.0, 1.0))
    found = content(arms=[start], comparisons=[], data=[], notes=[], method={}, config_yaml="")
    page = Page(html(replace(found, sites=[], total_neurons=0), tmp_path))
    for said in (
        "No paired tests",
        "No neurons",
        "No training losses",
        "No arm had frozen neurons",
        "No data sets",
    ):
        assert said in page.text


def test_no_arms_at_all(tmp_path: Path) -> None:
    assert "one run with one seed" in Page(html(content(arms=[], comparisons=[]), tmp_path)).text


def test_intervals_that_are_not_numbers(tmp_path: Path) -> None:
    nan = float("nan")
    odd = replace(measurements(1, 1, 0.0, 1.0), refusals=Rate(1, 1, nan, nan), margin=Mean.of([0.5]))
    text = Page(html(content(arms=[Arm("none", "No freezing", odd, [(1, nan)])]), tmp_path)).text
    assert "1/1 no interval" in text
    assert "0.500 no interval" in text


def test_how_the_neurons_were_chosen(tmp_path: Path) -> None:
    overlaps = [Overlap(0.61, 0.082), Overlap(0.55, 0.08)]
    page = Page(html(content(search=ratio_curves(), pruned=pruned(), overlaps=overlaps), tmp_path))
    for expected in (
        "ESU exclusive safety units 1 % yes", "EUU exclusive utility units 20 % yes the largest ratio tried",
        "RU redundant units 0.5 % no ratio fits, the smallest is taken even the smallest worsens",
        "ESU 1 % taken 480 3.000 2.77-3.23 0.081 0.05-0.11",
        "chosen 6.104 5.58-6.62 0.213 0.17-0.25", "random 2 0.500 0.30-0.70",
        "overlap by 0.580 (Jaccard index, mean of 2 splits, 0.550 to 0.610); "
        "random choices of their sizes would by 0.081",
    ):  # fmt: skip
        assert expected in page.text
    assert page.text.count("% taken") == 3
    told = [image["alt"] or "" for image in page.every("img") if "by group and ratio" in (image["alt"] or "")]
    assert len(told) == 2
    assert all("ESU 1 %, EUU 20 %, RU 0.5 %" in alt for alt in told)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"search": ratio_curves()}, "Ratios found by pruning"),
        ({"pruned": pruned(1)}, "The model without them"),
        ({"overlaps": [Overlap(0.61, 0.08)]}, "With other prompts"),
    ],
)
def test_a_check_that_was_not_made_leaves_nothing_behind(made: dict[str, Any], said: str, tmp_path: Path) -> None:
    parts = ("Ratios found by pruning", "The model without them", "With other prompts")
    text = Page(html(content(**made), tmp_path)).text
    assert [part for part in parts if part in text] == [said]


def test_nothing_is_said_of_the_choice_where_nothing_is_known(page: Page, tmp_path: Path) -> None:
    assert {"href": "#choice"} in page.every("a")
    bare = Page(html(content(method={}), tmp_path))
    assert "How the neurons were chosen" not in bare.text
    assert {"href": "#choice"} not in bare.every("a")


def test_methods_without_groups_have_a_picture_of_what_is_frozen(tmp_path: Path) -> None:
    plain = [replace(site, groups=np.empty(0, np.uint8)) for site in content().sites]
    page = Page(html(content(sites=plain), tmp_path))
    assert any("Share of each layer" in (image["alt"] or "") for image in page.every("img"))
    frozen = sum(int(site.frozen.sum()) for site in plain if site.layer == 1 and site.kind == "mlp")
    assert f"1 {frozen} of 96" in page.text
    assert "exclusive safety units" not in page.text
    assert "No neurons" not in page.text


def _site(kind: Literal["attention", "mlp"], layer: int, neurons: int) -> Site:
    place = np.arange(neurons)
    return Site(f"layers.{layer}.{kind}", kind, layer, (place % 4).astype(np.uint8), place < 1)


ODD_SITES = {
    "two layers": sites(2, 4, 1),
    "many wide layers": [_site("mlp", layer, 30_000) for layer in range(80)],
    "attention only": [_site("attention", layer, 8) for layer in range(2)],
    "a tiny layer beside a wide one": [_site("mlp", 0, 3), _site("mlp", 1, 30_000)],
    "an empty site": [_site("mlp", 0, 0), _site("mlp", 1, 70)],
    "several sites a layer": [_site("mlp", 0, 100), _site("mlp", 0, 100)],
    "every other layer": [_site("mlp", layer, 70) for layer in (1, 3, 5)],
}


@pytest.mark.parametrize("name", ODD_SITES)
def test_models_of_any_size(name: str, tmp_path: Path) -> None:
    source = html(content(sites=ODD_SITES[name], arms=content().arms[:1], comparisons=[]), tmp_path)
    assert "No neurons" not in Page(source).text


def test_judged_answers_have_their_variant_their_judge_and_intervals(tmp_path: Path) -> None:
    page = Page(html(content(judged=judged()), tmp_path))
    assert "Judged answers" in page.text
    row = "no freezing for-fiction strict-opening v1 12/64 11-30 % 47/64 62-83 % 5/64 3-17 % 2/64 1-11 %"
    assert row in page.text


def test_without_a_judge_there_is_no_table_of_verdicts(tmp_path: Path) -> None:
    assert "Judged answers" not in html(content(), tmp_path)
