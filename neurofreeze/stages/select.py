"""Select: score neurons on safety and utility data, group them, choose what to freeze, and draw the random control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from neurofreeze.console import say, stage
from neurofreeze.data import Example
from neurofreeze.mask import NeuronMask
from neurofreeze.methods import ssah
from neurofreeze.models.load import load_config, load_model, load_tokenizer
from neurofreeze.neurons import NeuronMap
from neurofreeze.stages.context import Run
from neurofreeze.strategies import NeuronScores, select
from neurofreeze.verification import weights_fingerprint

GROUPS_FILE = "groups.safetensors"


def run(run: Run) -> None:
    """Write selection/safety, selection/random and the groups of all neurons."""
    folder = run.folder.path / "selection"
    outputs = [run.mask("safety"), run.mask("random"), folder / GROUPS_FILE]
    run.folder.run("select", run.select_settings(), lambda: _select(run, folder), *outputs)


def _select(run: Run, folder: Path) -> dict[str, Any]:
    from safetensors.numpy import save

    from neurofreeze.files import write_atomically

    c = run.config
    # Before any weights are loaded: an architecture that cannot be mapped must not cost a download or a minute.
    NeuronMap.of(load_config(run.start), c.granularity)  # type: ignore[arg-type]
    ratios = ssah.Ratios(**vars(c.method.ratios))
    model, tokenizer = load_model(run.start), load_tokenizer(run.start)
    safety = _score(run, model, tokenizer, "safety", run.data.safety)
    utility = _score(run, model, tokenizer, "utility", run.data.utility)
    groups = ssah.group(safety, utility, ratios)
    mask = ssah.freeze_mask(groups, safety, utility, c.fraction)

    random = NeuronMask.random_like(mask, c.seed)
    for name, chosen in (("safety", mask), ("random", random)):
        chosen.with_config(
            model=c.model,
            revision=c.revision,
            fingerprint=weights_fingerprint(run.start, chosen),
            calibration=run.data.digests("safety", "utility") if name == "safety" else {},
        ).save_pretrained(run.mask(name))
    write_atomically(folder / GROUPS_FILE, save({name: np.array(codes) for name, codes in groups.codes.items()}))
    counts = {name: groups.mask(code).count for code, name in enumerate(ssah.GROUPS)}
    say(f"select: {', '.join(f'{name} {count:,}' for name, count in counts.items())}; freezing {mask.count:,} neurons")
    return {"neurons": mask.count, "total": mask.total, "groups": counts}


def _score(run: Run, model: Any, tokenizer: Any, role: str, examples: list[Example]) -> NeuronScores:
    config = run.config.strategy
    with stage(f"select on {role} data", -(-len(examples) // config.batch_size)) as bar:
        return select(
            model,
            tokenizer,
            examples,
            config.name,
            granularity=run.config.granularity,
            batch_size=config.batch_size,
            max_length=config.max_length,
            progress=bar.advance,
            **config.options,
        )
