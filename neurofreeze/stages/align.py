"""Align: teach a model to refuse, if it does not; everything after starts from the result."""

from __future__ import annotations

from typing import Any

from neurofreeze.checkpoints import stamps
from neurofreeze.console import say, stage
from neurofreeze.distributed import first_rank
from neurofreeze.errors import RunError
from neurofreeze.evaluation.statistics import Rate
from neurofreeze.stages import known
from neurofreeze.stages.context import Run


def run(run: Run) -> None:
    """Measure refusals of the calibration requests and fine-tune on refusals if there are too few."""
    known.require(run)
    run.require_freezable_rest()  # before anything is trained
    require_same_weights(run)
    done = run.folder.result("align")
    outputs = [run.aligned] if done is not None and done["aligned"] else []
    with run.signals.deferred():
        run.folder.run("align", run.align_settings(), lambda: _align(run), *outputs, together=True)


def require_same_weights(run: Run) -> None:
    """Raise RunError if the model is a folder whose weights were written anew since the run began. Collective.

    What its stages left is of the weights that were there, and no setting tells.
    """

    def compare() -> None:
        if run.folder.settings("align") != run.align_settings():
            return  # not begun, or with other settings, which are looked at elsewhere
        begun = run.folder.required("align", "run").get("weights")
        if begun is not None and begun != stamps(run.source.folder):
            raise RunError(
                f"the weights in {run.source.folder} were written anew since {run.folder.path} began with them; give "
                "the new ones a run of their own with name=..."
            )

    first_rank(compare)


def _align(run: Run) -> dict[str, Any]:
    start = {"origin": run.source.origin, **({"weights": stamps(run.source.folder)} if run.source.may_change else {})}
    return {**_aligned(run), **start}


def _aligned(run: Run) -> dict[str, Any]:
    config = run.config.alignment
    if config.mode == "never":
        return {"aligned": False}
    before = first_rank(lambda: _refusals(run))
    say(f"align: {run.config.model} refuses {before} of the calibration requests")
    if config.mode == "auto" and before.value >= config.threshold:
        return {"aligned": False, "refusals": [before.count, before.total]}

    from neurofreeze.training.sft import fine_tune

    with stage("align", config.training.steps) as bar:
        fine_tune(
            run.source.folder,
            run.aligned,
            run.data.alignment,
            config.training,
            backend=run.config.backend,
            seed=run.config.seed,
            log=run.folder.attempt("align"),
            progress=bar.update,
            signals=run.signals,
            overwrite=run.config.overwrite,
        )
    return {"aligned": True, "refusals": [before.count, before.total]}


def _refusals(run: Run) -> Rate:
    from neurofreeze.evaluation.generation import openings
    from neurofreeze.evaluation.phrases import phrase_list
    from neurofreeze.models.load import load_model, load_tokenizer

    config = run.config.evaluation
    phrases = phrase_list(config.phrases)
    model, tokenizer = load_model(run.source.folder), load_tokenizer(run.source.folder)
    with stage("refusals as shipped", -(-len(run.data.safety) // config.batch_size)) as bar:
        texts = openings(
            model.eval(),
            tokenizer,
            run.data.safety,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
            progress=bar.advance,
        )
    return Rate.of([phrases.is_refusal(text) for text in texts])
