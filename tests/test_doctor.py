"""What `neurofreeze doctor` shows of a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from neurofreeze.cli import main
from neurofreeze.console import console
from tests import tiny


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_width", 160)


def shown(architecture: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    tiny.model(architecture).save_pretrained(folder)
    assert main(["doctor", f"model={folder}"]) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_what_is_not_covered_is_shown_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown("deepseek_v3", tmp_path, capsys)
    title = next(i for i, line in enumerate(out) if line.startswith("not covered"))
    assert any(line.startswith("model.layers.*.self_attn latent attention") for line in out[title:])


def test_elements_of_experts_and_sinks_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown("gpt_oss", tmp_path, capsys)
    assert "mlp 2 50 mlp.experts.gate_up_proj 5x36x20 2 columns" in out
    assert "mlp 2 50 mlp.experts.gate_up_proj_bias 5x20 2 elements" in out
    assert "mlp 2 50 mlp.experts.down_proj 5x10x36 1 row" in out
    assert "attention 2 6 self_attn.sinks 6 1 row" in out
    assert not any(line.startswith("not covered") for line in out)


@pytest.mark.parametrize(("architecture", "owned"), [("phi3", "18 rows, partly shared"), ("gpt2", "18 columns")])
def test_a_fused_projection_is_shown_as_shared_only_where_it_is(
    architecture: str, owned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert any(
        line.startswith("attention") and line.endswith(f" {owned}") for line in shown(architecture, tmp_path, capsys)
    )
