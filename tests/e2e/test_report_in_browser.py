"""Real parts: the reports as a real Chromium draws them, on a wide screen and on a phone."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from neurofreeze.report.html import write_report
from neurofreeze.report.sweep.gather import gather
from neurofreeze.report.sweep.html import write_sweep
from tests.e2e.devtools import FLAGS
from tests.report.contents import content
from tests.report.sweep.folders import sweep

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH (package chromium); .ci/run installs it"),
]


def chromium(page: Path, *flags: str) -> str:
    command = [
        str(CHROMIUM),
        *FLAGS,
        "--hide-scrollbars",
        f"--user-data-dir={page.parent / 'profile'}",
        *flags,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return write_report(content(), tmp_path / "report.html")


@pytest.mark.parametrize("width", [1200, 420])
def test_the_report_draws_its_figures(page: Path, width: int) -> None:
    picture = page.parent / "page.png"
    chromium(page, f"--window-size={width},4000", f"--screenshot={picture}")
    pixels = imread(picture)[..., :3]
    assert pixels.shape[1] == width
    # Text on one background has a few hundred shades; figures bring saturated colour.
    saturation = pixels.max(-1) - pixels.min(-1)
    assert (saturation > 0.4).mean() > 0.002
    assert len(np.unique((pixels * 255).astype(int).reshape(-1, 3), axis=0)) > 500


def test_a_sweep_s_page_draws_its_figure(tmp_path: Path) -> None:
    page = write_sweep(gather(sweep(tmp_path / "s")))
    picture = tmp_path / "page.png"
    chromium(page, "--window-size=420,3000", f"--screenshot={picture}")
    pixels = imread(picture)[..., :3]
    saturation = pixels.max(-1) - pixels.min(-1)
    assert (saturation > 0.4).mean() > 0.0005
    drawn = chromium(page, "--dump-dom")
    assert drawn.count('src="data:image/png;base64,') == drawn.count("<img") == 1


def test_the_browser_loads_every_figure_from_the_file_itself(page: Path) -> None:
    drawn = chromium(page, "--dump-dom")
    assert drawn.count("<img") >= 4
    assert drawn.count('src="data:image/png;base64,') == drawn.count("<img")
