"""Select: score neurons on the calibration sets, choose what to freeze, and draw the random control."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from neurofreeze.console import say
from neurofreeze.mask import NeuronMask
from neurofreeze.methods import ssah
from neurofreeze.methods.ratio_search import Curve
from neurofreeze.models.load import load_config
from neurofreeze.neurons import NeuronMap
from neurofreeze.stages import hardening
from neurofreeze.stages.choosing import Chooser
from neurofreeze.stages.context import Run
from neurofreeze.verification import weights_fingerprint

GROUPS_FILE = "groups.safetensors"
UNFINISHED = "unfinished"  # folder of the scores of a choice that was interrupted


def run(run: Run) -> None:
    """Write selection/safety, selection/random and the groups of SSAH, or what the method needs to teach refusals."""
    if run.config.hardens:
        hardening.stages(run).select(run)
        return
    outputs = [run.mask("safety"), run.mask("random")]
    run.folder.run("select", run.select_settings(), lambda: _select(run), *outputs)


def searched(run: Run) -> list[Curve]:
    """The curves of the ratio search that the masks come from; none if no ratios were searched for."""
    return [Curve.from_dict(found) for found in run.folder.required("select", "select")["search"]]


def kept_groups(run: Run) -> ssah.Groups:
    """SSAH's groups that the masks come from, by the ratios that were given or found.

    Raises:
        RunError: if nothing is selected yet.
    """
    from safetensors.numpy import load_file

    run.folder.required("select", "select")
    neuron_map = NeuronMap.of(load_config(run.start), run.config.granularity)  # type: ignore[arg-type]
    mask = NeuronMask.from_pretrained(run.mask("safety"), model=neuron_map)
    ratios = ssah.Ratios(**mask.config.strategy["ratios"])
    return ssah.Groups(neuron_map, load_file(run.folder.path / "selection" / GROUPS_FILE), ratios)


def _select(run: Run) -> dict[str, Any]:
    sets = {"safety": run.data.safety, "utility": run.data.utility}
    choice = Chooser(run).choose(sets, "select", run.folder.path / "selection" / UNFINISHED)
    mask, groups = choice.mask.with_rest(*run.config.freeze.kinds), choice.groups
    return keep(run, "safety", mask, groups, choice.search)


def keep(
    run: Run, arm: str, mask: NeuronMask, groups: ssah.Groups | None = None, search: Sequence[Curve] = ()
) -> dict[str, Any]:
    """Save an arm's mask, a random one of its size, and the groups; returns the stage's result.

    Scores that an interrupted choice would go on from are removed.
    """
    c, folder = run.config, run.folder.path / "selection"
    for name, chosen in ((arm, mask), ("random", NeuronMask.random_like(mask, c.seed))):
        chosen.with_config(
            model=c.model,
            revision=c.revision,
            fingerprint=weights_fingerprint(run.start, chosen),
            calibration=run.data.digests("safety", "utility") if name == arm else {},
        ).save_pretrained(run.mask(name))
    if groups is not None:
        _save_groups(groups, folder / GROUPS_FILE)
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    counts = {name: groups.mask(code).count for code, name in enumerate(ssah.GROUPS)} if groups else {}
    of = f"{', '.join(f'{name} {count:,}' for name, count in counts.items())}; " if counts else ""
    say(f"select: {of}freezing {mask.count:,} of {mask.total:,} neurons ({mask.fraction:.1%})")
    curves = [asdict(curve) for curve in search]
    return {"neurons": mask.count, "total": mask.total, "groups": counts, "search": curves}


def _save_groups(groups: ssah.Groups, path: Path) -> None:
    from safetensors.numpy import save

    from neurofreeze.files import write_atomically

    write_atomically(path, save({name: np.array(codes) for name, codes in groups.codes.items()}))
