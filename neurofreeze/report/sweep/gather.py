"""Reading a sweep's folder: result.json and resolved.yaml of every run, whatever became of it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from neurofreeze.errors import RunError
from neurofreeze.evaluation.statistics import Rate
from neurofreeze.launcher.folders import SWEEP, run_folders
from neurofreeze.launcher.job import SETTINGS
from neurofreeze.launcher.state import statuses
from neurofreeze.report.formatting import value
from neurofreeze.report.sweep.content import START, OverSeeds, Spread, Sweep, SweepArm, SweepRun
from neurofreeze.tracking.redaction import redact
from neurofreeze.tracking.result import FILE, read_result

SEED = "seed"
# Where and under what name a run happens says nothing of what it came to.
_ELSEWHERE = ("name", "cluster", "tracker", "monitor", "objective", "overwrite", "hydra")


def gather(folder: Path) -> Sweep:
    """The runs of a sweep; those that failed or left nothing are among them, with their state.

    Raises:
        RunError: if the folder holds no run.
    """
    folders = _folders(folder)
    given = _overrides(folder) or [_resolved(path) for path in folders]
    keys = [key for key in dict.fromkeys(key for found in given for key in found) if _differs(key, given)]
    runs = [
        _run(path, {key: found[key] for key in keys if key in found})
        for path, found in zip(folders, given, strict=True)
    ]
    starts = [arm for run in runs for arm in run.arms if arm.name == START]
    same = bool(starts) and all(start == starts[0] for start in starts)
    return Sweep(folder, _without_start(runs) if same else runs, starts[0] if same else None, _over_seeds(runs))


def _folders(folder: Path) -> list[Path]:
    if (folder / SWEEP).is_file():
        return run_folders(folder)
    found = sorted(
        {path.parent for name in (FILE, SETTINGS) for path in folder.glob(f"*/{name}")}, key=lambda path: path.name
    )
    if not found:
        raise RunError(
            f"{folder} holds no sweep: neither {SWEEP} nor folders of runs; expected one such as sweeps/NAME"
        )
    return found


def _overrides(folder: Path) -> list[dict[str, str]]:
    """What each job of the sweep was started with, by the names on the command line; [] if that is not known."""
    path = folder / SWEEP
    if not path.is_file():
        return []
    jobs = json.loads(path.read_text(encoding="utf-8"))["jobs"]
    found = [redact(list(job.get("overrides", []))) for job in jobs]
    if not any(found):
        return []
    pairs = [[text.lstrip("+~").partition("=") for text in texts] for texts in found]
    return [{key: text for key, _, text in of if _matters(key)} for of in pairs]


def _resolved(folder: Path) -> dict[str, str]:
    """All settings by dotted name, without secrets; none where the run never began."""
    path = folder / SETTINGS
    if not path.is_file():
        return {}
    found = redact(OmegaConf.to_container(OmegaConf.load(path)))
    return {key: text for key, text in _flat(found).items() if _matters(key)}


def _matters(key: str) -> bool:
    return key.partition(".")[0] not in _ELSEWHERE


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, setting in settings.items():
        key = f"{prefix}{name}"
        found |= _flat(setting, f"{key}.") if isinstance(setting, Mapping) else {key: value(setting)}
    return found


def _differs(key: str, given: Sequence[Mapping[str, str]]) -> bool:
    return len({found.get(key) for found in given if found}) > 1


def _run(folder: Path, settings: dict[str, str]) -> SweepRun:
    result = read_result(folder)
    if result is None:
        state = statuses([folder])[0].state if folder.is_dir() else "missing"
        return SweepRun(folder.name, state, settings)
    code = result["exit_code"]
    names = dict.fromkeys(name.partition(".")[0] for name in result["metrics"] if name.endswith(".refusals"))
    arms = [_arm(name, result) for name in names]
    return SweepRun(folder.name, "complete" if code == 0 else f"failed, code {code}", settings, arms)


def _arm(name: str, result: Mapping[str, Any]) -> SweepArm:
    metrics, counts = result["metrics"], result.get("counts", {})

    def rate(key: str) -> Rate | None:
        found = counts.get(f"{name}.{key}")
        return None if found is None else Rate.of([place < found[0] for place in range(found[1])])

    return SweepArm(
        name,
        refusals=rate("refusals"),
        over_refusals=rate("over_refusals"),
        margin=metrics.get(f"{name}.margin"),
        domain_loss=metrics.get(f"{name}.domain_loss"),
        frozen=metrics.get(f"{name}.frozen"),
        changed=metrics.get(f"{name}.changed"),
    )


def _without_start(runs: Sequence[SweepRun]) -> list[SweepRun]:
    return [SweepRun(run.name, run.state, run.settings, [arm for arm in run.arms if arm.name != START]) for run in runs]


def _over_seeds(runs: Sequence[SweepRun]) -> list[OverSeeds]:
    """Means over complete runs that differ in nothing but their seed."""
    groups: dict[tuple[tuple[str, str], ...], list[SweepRun]] = defaultdict(list)
    for run in runs:
        if run.complete:
            groups[tuple((key, text) for key, text in run.settings.items() if key != SEED)].append(run)
    return [
        _spread(dict(settings), name, [arm for run in group for arm in run.arms if arm.name == name])
        for settings, group in groups.items()
        if len({run.settings.get(SEED) for run in group}) > 1
        for name in dict.fromkeys(arm.name for run in group for arm in run.arms if arm.name != START)
    ]


def _spread(settings: dict[str, str], name: str, arms: Sequence[SweepArm]) -> OverSeeds:
    return OverSeeds(
        settings,
        name,
        len(arms),
        refusals=Spread.of([arm.refusals.value for arm in arms if arm.refusals]),
        over_refusals=Spread.of([arm.over_refusals.value for arm in arms if arm.over_refusals]),
        margin=Spread.of([arm.margin for arm in arms if arm.margin is not None]),
        domain_loss=Spread.of([arm.domain_loss for arm in arms if arm.domain_loss is not None]),
    )
