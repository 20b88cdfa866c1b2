"""neurofreeze monitor: a stream of prompts beside the reference of a model's safety neurons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from neurofreeze.commands.settings import compose
from neurofreeze.config.monitor import MonitorCommandConfig
from neurofreeze.console import console, say, stage
from neurofreeze.errors import ConfigError

if TYPE_CHECKING:
    from neurofreeze.data.examples import Example
    from neurofreeze.guard.monitor import Monitor, Reference, Verdict


def main(overrides: Sequence[str]) -> int:
    """Print each alarm and a summary, and add a row a prompt to the output; alarms do not change the exit code."""
    return compose("monitor", overrides, _monitor, "monitor", needs_folder=False)


def _monitor(config: MonitorCommandConfig, _: Path, __: str) -> int:
    from neurofreeze.data import read
    from neurofreeze.guard.monitor.calibrating import observations
    from neurofreeze.guard.monitor.monitor import Monitor
    from neurofreeze.guard.monitor.reference_file import CONFIG
    from neurofreeze.guard.monitor.sinks import RowFile
    from neurofreeze.guard.places import require_file, require_folder

    made = (Path(config.reference) / CONFIG).is_file()
    if not made and not (config.calibrate and config.mask):
        raise ConfigError(
            f"{config.reference} holds no reference; pass calibrate= (a file of benign prompts) and mask= (the "
            "folder of the safety neurons) to make it"
        )
    require_file(config.output, "output")
    if not made:
        require_folder(config.reference, "reference")
    examples = read(config.prompts, responses=False)
    model, tokenizer = _load(config)
    reference = _reference(config, made, model, tokenizer, examples)
    monitor = Monitor(reference, config.detection, [_tell])
    _print_reference(monitor)
    with RowFile(config.output) as rows, _tracked(config, monitor), stage("monitoring", len(examples)) as shown:
        monitor.sinks += [rows, lambda _: shown.advance()]
        for found in observations(model, tokenizer, examples, reference.mask, reference.pooling, config.batch_size):
            monitor.see(found)
    console.print(_summary(monitor))
    say(f"rows: {config.output}")
    return 0


def _load(config: MonitorCommandConfig) -> tuple[Any, Any]:
    from neurofreeze.console import quiet_transformers
    from neurofreeze.models.load import load_model, load_tokenizer
    from neurofreeze.models.resolve import resolve

    quiet_transformers()
    folder = resolve(config.model, config.revision).folder
    return load_model(folder).eval(), load_tokenizer(folder)


def _reference(
    config: MonitorCommandConfig, made: bool, model: Any, tokenizer: Any, stream: Sequence[Example]
) -> Reference:
    import numpy as np

    from neurofreeze.data import read
    from neurofreeze.data.splits import require_disjoint
    from neurofreeze.guard.monitor.calibrating import calibrate
    from neurofreeze.guard.monitor.reference import Reference
    from neurofreeze.guard.monitor.thresholds import conformal
    from neurofreeze.mask import NeuronMask

    if made:
        if config.calibrate or config.mask:
            say(f"{config.reference} holds a reference already, which is used; remove it to make another")
        reference = Reference.from_pretrained(config.reference, model=model, other_weights=config.other_weights)
        reference.require_template(tokenizer)
        return reference
    calibration = read(str(config.calibrate), responses=False)
    require_disjoint({"calibrate": calibration, "prompts": stream})
    conformal(np.zeros(len(calibration) // 2), config.detection.false_alarm_rate)  # before a reference is made in vain
    mask = NeuronMask.from_pretrained(str(config.mask), model=model)
    with stage("calibrating", -(-len(calibration) // config.batch_size)) as shown:
        reference = calibrate(
            model,
            tokenizer,
            calibration,
            mask,
            most=config.neurons,
            pooling=config.pooling,  # type: ignore[arg-type]
            batch_size=config.batch_size,
            seed=config.seed,
            progress=shown.advance,
        )
    reference.save_pretrained(config.reference)
    say(f"reference: {config.reference}")
    return reference


@contextmanager
def _tracked(config: MonitorCommandConfig, monitor: Monitor) -> Iterator[None]:
    """The settings' tracker, if they name one, takes each verdict."""
    from neurofreeze.guard.monitor.monitor import ALARMS
    from neurofreeze.tracking.making import make

    tracker = make(config, Path(config.output).parent, "monitor")
    if tracker is None:
        yield
        return

    def log(verdict: Verdict) -> None:
        raised = {alarm: int(alarm in verdict.alarms) for alarm in ALARMS}  # series, which a list would not be
        tracker.log({"stage": "monitor", "global_step": verdict.number, **verdict.row, "alarms": raised})

    monitor.sinks.append(log)
    code = 1
    try:
        yield
        code = 0
    finally:
        tracker.finish(code)


def _tell(verdict: Verdict) -> None:
    if verdict.alarms:
        far = f"{verdict.farthest} at {verdict.deviation:+.1f} standard deviations"
        say(f"prompt {verdict.number}: {', '.join(verdict.alarms)}; p {verdict.p_value:.2g}, {far}")


def _print_reference(monitor: Monitor) -> None:
    reference, made = monitor.reference, monitor.reference.made_of
    say(
        f"{reference.neurons} neurons, pooling={reference.pooling}, {made['prompts']} prompts and {made['held']} held "
        f"out; of these {monitor.calibrated} are past the threshold for {monitor.config.false_alarm_rate:.1%} false "
        "alarms"
    )


def _summary(monitor: Monitor) -> Table:
    table = Table("alarm", title=f"{monitor.prompts:,} prompts", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("raised", justify="right")
    table.add_column("expected if nothing has changed", justify="right")
    expected = monitor.prompts / monitor.config.run_length
    table.add_row("mahalanobis", str(monitor.alarm_rate), f"{monitor.prompts * monitor.config.false_alarm_rate:.1f}")
    for name in monitor.detectors:
        table.add_row(name, str(monitor.counts[name]), f"{expected:.1f}")
    table.add_row("not_finite", str(monitor.counts["not_finite"]), "0")
    return table
