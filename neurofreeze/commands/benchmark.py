"""neurofreeze benchmark suite=NAME: arms x seeds x fine-tuning sets from one checkpoint, compared over seeds."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from neurofreeze.commands.settings import compose
from neurofreeze.config.benchmark import BenchmarkConfig
from neurofreeze.console import quiet_transformers, say
from neurofreeze.errors import RunError

_OWN = ("suite", "name", "hydra")  # settings that are not a run's


def main(overrides: Sequence[str]) -> int:
    """Run the cells that are not complete, print the tables, and write them with a figure."""
    own = [text for text in overrides if _key(text) in _OWN or "=" not in text or text.startswith("-")]
    composed: list[tuple[BenchmarkConfig, Path]] = []

    def keep(config: BenchmarkConfig, folder: Path, _: str) -> int:
        composed.append((config, folder))
        return 0

    code = compose("benchmark", own, keep, "benchmark")
    if not composed:  # --cfg and --info print the settings only
        return code
    of_runs = [text for text in overrides if text not in own]
    # Not within `compose`: Hydra composes one thing at a time, and each arm has settings to compose.
    return _benchmark(*composed[0], of_runs, shlex.join(["neurofreeze", "benchmark", *overrides]))


def _benchmark(config: BenchmarkConfig, folder: Path, overrides: Sequence[str], command: str) -> int:
    from neurofreeze.benchmark import output, suite
    from neurofreeze.benchmark.gather import gather
    from neurofreeze.benchmark.plan import Plan
    from neurofreeze.report.formatting import number
    from neurofreeze.training.stopping import StopSignals

    quiet_transformers()
    signals = StopSignals()
    with signals.listening():
        plan = Plan.of(config.suite, overrides)
        outcome = suite.run(plan, folder, signals)
    results = gather(outcome, config.suite)
    output.show(results, config.suite)
    say(f"written: {', '.join(map(str, output.write(results, plan, command, folder)))}")
    if outcome.failed:
        told = "; ".join(f"{place}: {error}" for place, error in outcome.failed.items())
        raise RunError(
            f"{number(len(outcome.failed), 'cell')} failed ({told}); see {folder / 'logs'}, and run the same command "
            "again: the others are complete"
        )
    return 0


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition(".")[0].partition("@")[0]
