"""result.json: what a command came to, as flat numbers, for whoever started it: a sweep, a sweeper, a report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurofreeze.errors import RunError
from neurofreeze.evaluation.statistics import Mean, Rate
from neurofreeze.files import write_atomically

if TYPE_CHECKING:
    from neurofreeze.stages.context import Run

FILE = "result.json"
START = "start"  # the checkpoint before fine-tuning, beside the arms

_RATES = {"refusals": "refused", "over_refusals": "over_refused", "degenerate": "degenerate"}
_MEANS = {"margin": "margins", "domain_loss": "domain_losses", "general_loss": "general_losses"}


def write_result(run: Run, command: str, code: int) -> None:
    """Write result.json from what the run's stages left; on ranks other than 0 nothing is done.

    Args:
        run: whose folder it is written to.
        command: that ended.
        code: its exit code.
    """
    from neurofreeze.distributed import rank

    if rank() != 0:
        return
    metrics, counts = _measured(run)
    judges, verdicts = _judged(run)
    content = {
        "command": command,
        "exit_code": code,
        "seconds": round(time.monotonic() - run.started, 3),
        "metrics": metrics | {key: rate.value for key, rate in verdicts.items()},
        "counts": counts | {key: [rate.count, rate.total] for key, rate in verdicts.items()},
        **({"judges": judges} if judges else {}),
    }
    write_atomically(run.folder.path / FILE, (json.dumps(content, indent=1) + "\n").encode())


def write_failure(folder: Path, command: str, error: Exception) -> None:
    """Write a result.json that says what ended a command, unless another rank has: the first failure is the cause."""
    found = read_result(folder)
    if found is not None and found["exit_code"] != 0:
        return
    reason = " ".join(str(error).split()) or type(error).__name__
    content = {"command": command, "exit_code": 1, "error": reason, "metrics": {}}
    write_atomically(folder / FILE, (json.dumps(content, indent=1) + "\n").encode())


def read_result(folder: Path) -> dict[str, Any] | None:
    """The content of a run folder's result.json; None if there is none yet.

    Raises:
        RunError: if it is not one.
    """
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(f"{folder / FILE} is not JSON ({error}); run the command again") from error
    if not isinstance(content, dict) or not {"command", "exit_code", "metrics"} <= content.keys():
        raise RunError(f"{folder / FILE} has no command, exit_code and metrics; run the command again")
    return content


def objective(result: dict[str, Any], name: str) -> float:
    """The number `name` of a result, such as safety.refusals: what a sweep optimises.

    Raises:
        RunError: if the command failed, or there is no such number, naming those there are.
    """
    if result["exit_code"] != 0:
        raise RunError(f"{result['command']} failed with exit code {result['exit_code']}, so it has no {name}")
    metrics: dict[str, float] = result["metrics"]
    if name not in metrics:
        raise RunError(
            f"objective is {name!r}, which `neurofreeze {result['command']}` did not measure; "
            f"expected one of {', '.join(metrics) or 'its numbers, but it measured none'}"
        )
    return metrics[name]


def _measured(run: Run) -> tuple[dict[str, float], dict[str, list[int]]]:
    """Numbers by dotted name, and the counts [count, total] behind those that are rates."""
    metrics: dict[str, float] = {}
    counts: dict[str, list[int]] = {}
    selected = run.folder.result("select") or {}
    metrics |= {f"select.{key}": value for key, value in selected.items() if isinstance(value, int | float)}
    for name in (START, *run.config.arms):
        if (trained := run.folder.result(f"train-{name}")) is not None:
            metrics |= {f"{name}.loss": trained["losses"][-1][1]} if trained["losses"] else {}
            metrics[f"{name}.seconds"] = trained["seconds"]
            metrics[f"{name}.frozen_elements"] = trained["frozen_elements"]
            if "total" in selected:
                metrics[f"{name}.frozen"] = trained["frozen_neurons"] / selected["total"]
        if (verified := run.folder.result(f"verify-{name}")) is not None:
            metrics[f"{name}.changed"] = verified["changed"]
        if (found := run.folder.result(f"evaluate-{name}")) is not None:
            for key, outcomes in _RATES.items():
                rate = Rate.of(found[outcomes])
                metrics[f"{name}.{key}"], counts[f"{name}.{key}"] = rate.value, [rate.count, rate.total]
            metrics |= {f"{name}.{key}": Mean.of(found[values]).value for key, values in _MEANS.items()}
    return metrics, counts


def _judged(run: Run) -> tuple[dict[str, str], dict[str, Rate]]:
    """Who judged which checkpoint's answers, and how often with which verdict, by ARM.VARIANT.VERDICT."""
    from neurofreeze.evaluation.judges.base import rates
    from neurofreeze.stages.judge import judged

    judges: dict[str, str] = {}
    verdicts: dict[str, Rate] = {}
    for name in (START, *run.config.arms):
        if (found := judged(run, name)) is not None:
            judges[name] = found["judge"]
            for variant, answers in found["variants"].items():
                verdicts |= {f"{name}.{variant}.{key}": rate for key, rate in rates(answers["verdicts"]).items()}
    return judges, verdicts
