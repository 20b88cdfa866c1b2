"""The command line: quick where nothing is to be computed, and every failure one line with the right exit code."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pytest

from neurofreeze import __version__
from neurofreeze.cli import COMMANDS, main
from neurofreeze.config.location import conf_folder

PACKAGE = Path(__file__).resolve().parents[1]
# Runs a command and tells, as the last line of stdout, whether torch was imported for it.
PROBE = """
import os, sys
os.environ["HYDRA_FULL_ERROR"] = "1"
from neurofreeze.cli import main
code = main(sys.argv[1:])
print("imported:", *(name for name in ("torch", "transformers", "datasets") if name in sys.modules))
sys.exit(code)
"""


def probe(*arguments: str) -> tuple[int, str, str, str]:
    """Exit code, stdout, stderr and which heavy libraries were imported."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=60,
    )
    out, _, imported = done.stdout.rpartition("imported:")
    return done.returncode, out, done.stderr, imported.strip()


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr says, which must be one line that names the program."""
    text = capsys.readouterr().err
    assert text.startswith("neurofreeze: ")
    assert text.endswith("\n")
    assert text.count("\n") == 1
    return text.removeprefix("neurofreeze: ").rstrip()


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"]])
def test_help_lists_the_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: neurofreeze COMMAND")
    assert all(f"  {name}" in out for name in COMMANDS)


def test_no_arguments_show_the_help_and_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().out


def test_every_command_has_its_file() -> None:
    from importlib import import_module

    assert all(callable(import_module(f"neurofreeze.commands.{name}").main) for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"neurofreeze {__version__}\n"


def test_help_answers_within_half_a_second() -> None:
    resource = pytest.importorskip("resource")

    def seconds() -> float:
        # Processor time, since other tests may hold the processor.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        code, _, _, imported = probe("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert code == 0
        assert imported == ""
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert median(seconds() for _ in range(3)) < 0.5


def test_the_module_runs_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "neurofreeze", "runn"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("neurofreeze: no command 'runn'")


def test_a_misspelt_command_is_corrected(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evalute"]) == 2
    assert one_line(capsys).startswith("no command 'evalute', did you mean 'evaluate'?")


def test_an_unknown_command_is_not_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zzz"]) == 2
    assert "did you mean" not in one_line(capsys)


def test_an_argument_that_is_no_setting_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "foo"]) == 2
    assert one_line(capsys).startswith("'foo' is not a setting; expected key=value")


def test_an_unknown_option_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--mutlirun", "fraction=0.1,0.2"]) == 2
    assert one_line(capsys).startswith("no option '--mutlirun', did you mean '--multirun'?; neurofreeze --help lists")


def test_a_wrong_setting_of_a_benchmark_is_corrected(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as the console script does
    assert main(["benchmark", "modle=a"]) == 2
    assert one_line(capsys).startswith("suite, set domain: unknown setting 'modle', did you mean 'model'?; expected")
    assert main(["benchmark", "suite.onyl=[none]"]) == 2
    told = "unknown setting 'suite.onyl', did you mean 'suite.only'?; expected one of suite.arms, suite.only, "
    assert one_line(capsys).startswith(told)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+foo=1", "unknown setting 'foo'"),
        ("+training.foo=1", "unknown setting 'training.foo'"),
        ("training=3", "Config group override must be a string"),
        ("model=", "model is ''; expected a checkpoint folder"),
        ("fractoin=0.1", "unknown setting 'fractoin', did you mean 'fraction'?"),
        ("training.stepz=3", "unknown setting 'training.stepz', did you mean 'training.steps'?"),
        ("strategy.options.scaled=true", "strategy.options.scaled is not set, so that it cannot be changed; pass +"),
        ("seed=many", "seed: Value 'many' of type 'str' could not be converted to Integer"),
        ("training.steps=some", "training.steps: Value 'some' of type 'str' could not be converted to Integer"),
        ("overwrite=perhaps", "overwrite: Value 'perhaps' is not a valid bool"),
        ("fraction=null", "fraction: "),
        ("fraction=1.5", "fraction is 1.5; expected a number in (0, 1]"),
        ("fraction=0", "fraction is 0.0; expected a number in (0, 1]"),
        ("seed=-1", "seed is -1; expected a number not below 0"),
        ("arms=[none,most]", "arms is ['none', 'most']; expected one or more of"),
        ("arms=[]", "arms is []; expected one or more of"),
        ("granularity=layer", "granularity is 'layer'; expected head or channel"),
        ("training.steps=0", "training.steps is 0; expected a positive number or null"),
        ("training.learning_rate=0", "training.learning_rate is 0.0; expected a number above 0"),
        ("training.bf16=maybe", "training.bf16 is 'maybe'; expected auto, true or false"),
        ("alignment.mode=sometimes", "alignment.mode is 'sometimes'; expected auto, always or never"),
        ("alignment.threshold=2", "alignment.threshold is 2.0; expected a number in (0, 1]"),
        ("evaluation.limit=0", "evaluation.limit is 0; expected a positive number or null"),
        ("evaluation.phrases=gcg", "evaluation.phrases is 'gcg'; expected one of strict-opening, zou-qi, wei"),
        ("evaluation.phrases=wei", "evaluation.max_new_tokens is 20; expected at least 40 with phrases=wei"),
        (
            "evaluation.variants=[politely]",
            "evaluation.variants has 'politely'; expected some of plain, for-protection",
        ),
        ("evaluation.judge.name=guard", "evaluation.judge.model is None; expected a value, since judge.name=guard"),
        (
            "evaluation.judge.endpoint.key_variable=sk-secret",
            "evaluation.judge.endpoint.key_variable is '...'; expected",
        ),
        ("method.grid=[]", "method.grid is []; expected growing ratios between 0 and 1"),
        ("method.grid=[0.1,0.1]", "method.grid is [0.1, 0.1]; expected growing ratios between 0 and 1"),
        ("method.grid=[0,0.1]", "method.grid is [0.0, 0.1]; expected growing ratios between 0 and 1"),
        ("method.grid=[0.1,1]", "method.grid is [0.1, 1.0]; expected growing ratios between 0 and 1"),
        ("method.grid=[0.1,nan]", "method.grid is [0.1, nan]; expected growing ratios between 0 and 1"),
        ("method.grid=[0.4]", "method.grid is [0.4]; expected a smallest ratio below a third"),
        ("method.tolerance.margin=-1", "method.tolerance.margin is -1.0; expected a number of nats not below 0"),
        ("method.tolerance.loss=nan", "method.tolerance.loss is nan; expected a number of nats not below 0"),
        ("method.search_prompts=1", "method.search_prompts is 1; expected a number above 1 or null"),
        ("validate.draws=0", "validate.draws is 0; expected a positive number"),
        ("validate.splits=-1", "validate.splits is -1; expected a number not below 0"),
        ("training=slow", "slow"),
        ("fraction=", "fraction: Value ''"),
        ("fraction=[", "fraction=[: "),
    ],
)
def test_a_wrong_setting_is_one_line(
    override: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as the console script does
    assert main(["run", override]) == 2
    assert message in one_line(capsys)
    assert not Path("runs").exists() or not any(Path("runs").rglob("*.json"))


@pytest.mark.parametrize("override", ["fractoin=0.1", "seed=many", "fraction=1.5"])
def test_a_wrong_setting_is_found_before_torch_is_imported(override: str) -> None:
    code, out, err, imported = probe("run", override)
    assert (code, out, imported) == (2, "", "")
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_verify_needs_all_three_or_none(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert main(["verify", "base=a", "tuned=b"]) == 2
    assert "base=, tuned= and mask= together" in one_line(capsys)
    assert main(["verify", "bass=a"]) == 2
    assert one_line(capsys).startswith("unknown setting 'bass', did you mean 'base'?; expected one of base, tuned")


@pytest.mark.parametrize(
    ("override", "method"), [("method=top", "top"), ("strategy=contrast", "above"), ("strategy=wanda", "difference")]
)
def test_only_ssah_has_ratios_to_search_for(
    override: str, method: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as the console script does
    assert main(["run", override, "method.search=true"]) == 2
    assert one_line(capsys) == f"method.search is True; expected false, since method is {method}"


def test_checks_of_the_choice_are_a_group_of_settings() -> None:
    from omegaconf import OmegaConf

    for override, mode in ((), "none"), (("validate=prune", "validate.splits=2"), "prune"):
        code, out, _, _ = probe("select", "--cfg", "job", *override)
        assert code == 0
        printed = OmegaConf.create(out).validate
        assert (printed.mode, printed.draws, printed.splits) == (mode, 3, 2 if override else 0)


@pytest.mark.parametrize("cluster", ["local", "torchrun"])
def test_a_dry_run_without_a_script_to_print_is_refused(
    cluster: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as the console script does
    assert main(["run", f"cluster={cluster}", "backend=ddp", "cluster.dry_run=true"]) == 2
    assert one_line(capsys) == f"cluster.dry_run is True; expected false: cluster={cluster} has no script to print"


def test_settings_are_printed_as_yaml() -> None:
    from omegaconf import OmegaConf

    code, out, _, imported = probe("run", "--cfg", "job", "fraction=0.25")
    assert code == 0
    assert imported == ""
    printed = OmegaConf.create(out)
    assert printed.fraction == 0.25
    assert printed.data.train == "bundled:retail_bank/train"
    assert printed.training.steps == 16


def test_the_settings_are_found_beside_or_in_the_package() -> None:
    assert (conf_folder() / "config.yaml").is_file()


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "fraction=1.5", "--debug"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert err.splitlines()[-1] == "neurofreeze: fraction is 1.5; expected a number in (0, 1]"


def test_an_unknown_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "model=./nowhere"]) == 1
    assert one_line(capsys).startswith("no folder ./nowhere; expected a checkpoint folder")


def test_a_wrong_data_file_is_found_before_the_model_is_looked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neurofreeze.stages.context.resolve", lambda *_: pytest.fail("looked for the model"))
    assert main(["run", "data.train=nowhere.jsonl"]) == 1
    assert one_line(capsys).startswith("nowhere.jsonl: no such file")


def test_too_little_disk_space_is_told_before_anything_is_computed(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1, used=1, free=1000))
    assert main(["run", f"model={tiny_checkpoint}"]) == 1
    assert "but 0.0 GB are free; free some space" in one_line(capsys)
    assert not Path("runs/quickstart/stages").exists()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "Kein Platz"), 1, "no space left on the disk; free some and run the same"),
        (RuntimeError("write failed: No space left on device"), 1, "no space left on the disk"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on from here"),
        (ZeroDivisionError("division by zero\nmore"), 1, "unexpected ZeroDivisionError: division by zero (--debug"),
        (ValueError(), 1, "unexpected ValueError:"),
    ],
)
def test_other_failures_are_one_line_too(
    error: BaseException,
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr("neurofreeze.commands.run.main", fail)
    assert main(["run"]) == code
    assert one_line(capsys).startswith(message)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_fills_up_while_training_is_one_line(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run").mkdir()
    Path("run/metrics.jsonl").symlink_to("/dev/full")
    overrides = ["alignment.mode=always", "alignment.training.steps=1", "hydra.run.dir=run", "evaluation.limit=1"]
    assert main(["select", f"model={tiny_checkpoint}", *overrides]) == 1
    assert "neurofreeze: no space left on the disk" in capsys.readouterr().err
    assert not Path("run/aligned").exists()


def test_doctor_shows_the_neurons_of_a_checkpoint(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", f"model={tiny_checkpoint}"]) == 0
    out = capsys.readouterr().out
    assert "152 neurons" in out
    assert "local folder" in out
    assert "layers.*" in out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("strategy=prob", "no strategy 'prob', did you mean 'probe'?; expected one of change, contrast, "),
        ("method=tpo", "no method 'tpo', did you mean 'top'?; expected one of above, auto, budget, "),
        ("validate=prun", "no validate 'prun', did you mean 'prune'?; expected one of groups, none, prune"),
        ("strategy=safe_layers", "strategy.options.first has no value, and none can be guessed; pass "),
    ],
)
def test_a_choice_that_does_not_exist_or_lacks_a_value_is_explained(
    override: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as the console script sets it
    assert main(["select", override, f"hydra.run.dir={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith(f"neurofreeze: {message}")
