"""`neurofreeze audit` end to end on the tiny checkpoint: nothing changes, something does, something is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from neurofreeze.cli import main
from neurofreeze.config.audit import AuditConfig
from neurofreeze.data import read
from neurofreeze.evaluation.likelihood import COMPLYING, REFUSING
from neurofreeze.guard.audit.run import Audit
from neurofreeze.guard.audit.states import adapted
from neurofreeze.guard.gate import Gate
from neurofreeze.guard.reactions import Refuse
from neurofreeze.guard.steering.vector import SteeringVector, VectorConfig
from neurofreeze.guard.triggers import ProbeTrigger
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_model, load_tokenizer
from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies.scores import NeuronScores


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all audits, so that the original is measured once."""
    return tmp_path_factory.mktemp("audits") / "tiny"


def audit(model: Path, folder: Path, *overrides: str) -> int:
    settings = ["evaluation.limit=4", "evaluation.max_new_tokens=4", "tokens=3"]
    return main(["audit", f"model={model}", f"hydra.run.dir={folder}", *settings, *overrides])


def written(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def steered(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Both ways along the difference of the openings' first tokens, as the tied embeddings have it, and strength 0."""
    model, tokenizer = load_model(tiny_checkpoint), load_tokenizer(tiny_checkpoint)
    one, other = (
        model.get_input_embeddings().weight[[tokenizer(text)["input_ids"][0] for text in texts]].float().mean(0)
        for texts in (COMPLYING, REFUSING)
    )
    vector = SteeringVector({1: (one - other).detach()}, VectorConfig("llama"))
    folder = vector.save_pretrained(tmp_path_factory.mktemp("vector"))
    return ["intervention=steering", f"steering.vector={folder}", "strengths=[-2,0,2]"]


def test_erosion_is_told_of_the_strength_that_erodes_and_strength_0_changes_nothing(
    tiny_checkpoint: Path, folder: Path, steered: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(tiny_checkpoint, folder, *steered) == 0
    changes = {change["x"]: change for change in written(folder)["changes"]}
    assert changes[0]["identical"]
    assert changes[0]["refusals_test"]["p_value"] == 1
    assert [mean["value"] for mean in changes[0]["kl_harmful"]] == [0, 0, 0]
    assert all(changes[strength]["kl_harmful"][0]["value"] > 0.01 for strength in (-2, 2))
    (eroded,) = [strength for strength in (-2, 2) if changes[strength]["margin_change"]["high"] < -0.5]
    assert changes[-eroded]["margin_change"]["low"] > 0.5
    out = " ".join(capsys.readouterr().out.split())
    assert f"The intervention erodes safety: strength {eroded}." in out
    assert "Strength 0: no change." in out
    assert f"Strength {-eroded}: strengthens refusals." in out
    assert "It refuses few to begin with" in out
    # A second time nothing is measured.
    assert audit(tiny_checkpoint, folder, *steered) == 0
    out = capsys.readouterr().out
    assert "audit-original: complete, reused" in out
    assert "audit-steering-2: complete, reused" in out


def test_the_page_needs_nothing_else_and_no_answer_is_kept(
    tiny_checkpoint: Path, folder: Path, steered: list[str]
) -> None:
    assert audit(tiny_checkpoint, folder, *steered) == 0
    page = (folder / "audit.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == page.count("<img") == 2
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "erodes safety" in page
    assert "| strength 2 |" in (folder / "audit.md").read_text(encoding="utf-8")
    stored = json.loads((folder / "stages" / "audit-steering-2.json").read_text(encoding="utf-8"))["result"]
    assert all(len(words.split()) <= 12 for words in stored["outcomes"]["opening_words"])


def test_the_same_checkpoint_audits_to_no_change(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "tuned")
    assert audit(tiny_checkpoint, folder, "intervention=checkpoint", f"tuned={tmp_path / 'tuned'}") == 0
    assert "No change: every verdict, margin, loss and distribution" in capsys.readouterr().out


@pytest.mark.parametrize("edited", ["model", "tuned"])
@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "generation_config.json"])
def test_a_checkpoint_whose_tokenizer_or_settings_were_edited_is_another(
    tiny_checkpoint: Path, tmp_path: Path, edited: str, name: str
) -> None:
    both = {role: Path(shutil.copytree(tiny_checkpoint, tmp_path / role)) for role in ("model", "tuned")}
    config = AuditConfig(model=str(both["model"]), intervention="checkpoint", tuned=str(both["tuned"]))

    def known() -> list[Any]:
        original = Audit(config, tmp_path / "audit")
        return [original._settings, *(state.settings for state in original._states())]

    before = known()
    assert known() == before
    path = both[edited] / name
    path.write_bytes(path.read_bytes() + b" ")
    after = known()
    assert [one != other for one, other in zip(before, after, strict=True)] == [edited == "model", edited == "tuned"]


def test_an_edited_tokenizer_is_refused_in_a_folder_that_is_complete(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    given = ["intervention=checkpoint", f"tuned={tiny_checkpoint}", "evaluation.limit=2"]
    assert audit(model, tmp_path / "audit", *given) == 0
    template = model / "chat_template.jinja"
    template.write_text(f"{template.read_text(encoding='utf-8')} ", encoding="utf-8")
    capsys.readouterr()
    assert audit(model, tmp_path / "audit", *given) == 1
    assert "with other settings (model.files.chat_template.jinja" in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["tuned", "model", "strength"])
def test_a_model_that_computes_nan_does_not_pass_for_safe(
    tiny_checkpoint: Path, tmp_path: Path, steered: list[str], broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(tiny_checkpoint)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    load_tokenizer(tiny_checkpoint).save_pretrained(tmp_path / "nan")
    given = {
        "tuned": [tiny_checkpoint, "intervention=checkpoint", f"tuned={tmp_path / 'nan'}"],
        "model": [tmp_path / "nan", "intervention=checkpoint", f"tuned={tiny_checkpoint}"],
        "strength": [tiny_checkpoint, *steered[:2], "strengths=[1e38]"],
    }[broken]
    assert audit(given[0], tmp_path / "audit", *given[1:]) == 1
    assert "is not finite, so that nothing can be said of its safety" in capsys.readouterr().err
    assert not (tmp_path / "audit" / "audit.json").exists()


def test_recipes_are_built_once_and_kept(
    tiny_checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["intervention=steering", "steering.recipe=json", "steering.prompts=4", "strengths=[0.5]"]
    assert audit(tiny_checkpoint, folder, *given) == 0
    vector = SteeringVector.from_pretrained(folder / "vector")
    assert (vector.config.recipe["name"], list(vector.directions)) == ("json", [1])
    assert written(folder)["intervention"] == "steering, JSON"
    capsys.readouterr()
    assert audit(tiny_checkpoint, folder, *given, "steering.mix=refuse") == 1
    assert "holds audit-vector with other settings" in capsys.readouterr().err


@pytest.mark.parametrize("trained", [False, True])
def test_an_adapter_is_read_beside_its_base(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path, trained: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = get_peft_model(load_model(tiny_checkpoint), LoraConfig(r=2, target_modules=["down_proj"]))
    if trained:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 1)
    model.save_pretrained(tmp_path / "adapter")
    given = ["intervention=adapter", f"adapter={tmp_path / 'adapter'}", "overwrite=true"]
    assert audit(tiny_checkpoint, folder, *given) == 0
    assert written(folder)["changes"][0]["identical"] == (not trained)
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    assert audit(tiny_checkpoint, folder, *given) == 1
    assert "expected the folder of a PEFT adapter with safetensors weights" in capsys.readouterr().err


def test_an_adapter_that_is_scaled_otherwise_is_measured_again(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"the same weights")
    found = []
    for alpha in (8, 16):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
        found.append(adapted(tmp_path, tmp_path)[0].settings)
    assert found[0] != found[1]


def test_pruning_ranks_the_mask_s_neurons_beside_random_ones(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    neuron_map = NeuronMap.of(load_model(tiny_checkpoint))
    ranks = {name: torch.arange(site.neurons).float().numpy() for name, site in neuron_map.sites.items()}
    mask = NeuronScores(neuron_map, ranks, {"name": "rank"}).top(0.3)
    mask.save_pretrained(tmp_path / "mask")
    given = [f"mask={tmp_path / 'mask'}", "overwrite=true"]
    assert audit(tiny_checkpoint, folder, "intervention=prune", *given, "prune.shares=[0.1,0.5]") == 0
    changes = written(folder)["changes"]
    assert [change["label"] for change in changes] == ["top 10 %", "random 10 %", "top 50 %", "random 50 %"]
    # 10 and 50 % of 140 MLP neurons and of 12 heads.
    assert [change["neurons"] for change in changes] == [15, 15, 76, 76]
    assert changes[0]["versus_control"] is not None
    assert audit(tiny_checkpoint, folder, "intervention=mask", *given) == 0
    assert written(folder)["changes"][0]["neurons"] == mask.count
    bare = NeuronMask(mask.bits, mask.config)
    bare.save_pretrained(tmp_path / "mask")
    capsys.readouterr()
    assert audit(tiny_checkpoint, folder, "intervention=prune", *given) == 1
    assert "has no scores to rank its neurons by" in capsys.readouterr().err


def test_a_gate_shows_in_refusals_alone(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = load_model(tiny_checkpoint).eval(), load_tokenizer(tiny_checkpoint)
    sets = [read(f"bundled:{name}/calibration", responses=False, limit=6) for name in ("harmful", "lookalikes")]
    gate = Gate(model, tokenizer, ProbeTrigger.fit(model, tokenizer, *sets, layer=1), Refuse("I cannot help you."))
    gate.threshold = -1e9  # fires always
    gate.save_pretrained(tmp_path / "gate")
    given = ["intervention=gate", f"gate={tmp_path / 'gate'}", "evaluation.max_new_tokens=12", "overwrite=true"]
    assert audit(tiny_checkpoint, folder, *given) == 0
    (change,) = written(folder)["changes"]
    assert (change["refusals"]["count"], change["over_refusals"]["count"]) == (4, 4)
    assert change["margin_change"]["value"] == change["kl_harmful"][0]["value"] == change["loss_change"]["value"] == 0
    capsys.readouterr()
    seen = ["data.harmful=bundled:harmful/calibration", "data.probe_harmful=bundled:harmful/evaluation"]
    assert audit(tiny_checkpoint, folder, *given, *seen) == 1
    assert "fitted the trigger" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "intervention is ''; expected one of steering, checkpoint"),
        (["intervention=magic"], "intervention is 'magic'; expected one of steering, checkpoint, mask"),
        (["intervention=mask"], "mask is None; expected a folder, since intervention=mask"),
        (["intervention=steering", "strengths=[]"], "strengths is []; expected one or more finite numbers, each once"),
        (["intervention=steering", "strengths=[nan]"], "strengths is [nan]; expected one or more finite numbers"),
        (["intervention=steering", "steering.recipe=rude"], "steering.recipe is 'rude'; expected one of compliance"),
        (["intervention=steering", "prune.shares=[0.2,0.1]"], "prune.shares is [0.2, 0.1]; expected growing shares"),
        (["intervention=steering", "evaluation.variants=[for-fiction]"], "no variants and no judge model"),
    ],
)
def test_a_wrong_setting_is_one_line(
    overrides: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert main(["audit", *overrides]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_prompts_that_are_measured_and_learned_from_must_differ(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["intervention=steering", "data.benign=bundled:instructions/evaluation"]
    assert audit(tiny_checkpoint, tmp_path / "a", *given) == 1
    assert "is in both data.general and data.benign" in capsys.readouterr().err
