"""The judge that the settings ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from neurofreeze.config.judge import WITHOUT_WEIGHTS, JudgeConfig
from neurofreeze.errors import ModelError
from neurofreeze.evaluation.judges.base import NO_YES, SAFE_UNSAFE, Judge, Verdict
from neurofreeze.evaluation.judges.phrases import PhraseJudge
from neurofreeze.evaluation.phrases import phrase_list


def require_judge(config: JudgeConfig) -> None:
    """Look at all of a judge but what its weights are: what it is asked to judge may take hours to come by.

    Raises:
        JudgeError: if it cannot judge.
        ModelError: if its model cannot be found, naming the setting.
    """
    from neurofreeze.evaluation.judges.classifier import unsafe_indices
    from neurofreeze.models.load import load_config, plain_tokenizer
    from neurofreeze.models.resolve import resolve

    if config.name in WITHOUT_WEIGHTS:
        load_judge(config, "strict-opening")  # whichever list: the settings know its name
        return
    try:
        folder = resolve(str(config.model), config.revision).folder
        found, tokenizer = load_config(folder), plain_tokenizer(folder)
        if not any(folder.glob("*.safetensors")):
            raise ModelError(f"{folder} has no safetensors weights; expected model.safetensors or shards")
    except ModelError as error:
        raise ModelError(f"{config.KEY}.model: {error}") from error
    if config.name == "classifier":
        unsafe_indices(found, config.unsafe, str(config.model))
    else:
        _dialect(config, tokenizer, str(config.model))


def load_judge(config: JudgeConfig, phrases: str) -> Judge:
    """The judge of `config`; `phrases` names the list of judge.name=phrases.

    Raises:
        JudgeError: if it cannot judge.
        ModelError: if its model cannot be found or loaded.
    """
    if config.name == "phrases":
        return PhraseJudge(phrase_list(phrases))
    model = str(config.model)
    if config.name == "endpoint":
        from neurofreeze.evaluation.judges.endpoint import EndpointJudge

        return EndpointJudge(config.endpoint, model)
    from neurofreeze.models.resolve import resolve

    at = f" at {config.revision[:8]}" if config.revision else ""
    label = f"{model}{at} ({config.name})"
    return _from_checkpoint(resolve(model, config.revision).folder, label, config)


def _from_checkpoint(folder: Path, label: str, config: JudgeConfig) -> Judge:
    from neurofreeze.evaluation.judges.classifier import ClassifierJudge
    from neurofreeze.evaluation.judges.generative import GenerativeJudge
    from neurofreeze.models.load import load_model, plain_tokenizer

    tokenizer = plain_tokenizer(folder)
    if config.name == "classifier":
        model = _classifier(folder, tokenizer.pad_token_id)
        return ClassifierJudge(model, tokenizer, config.unsafe, config.pair, label, config.batch_size)
    render, verdicts = _dialect(config, tokenizer, label)
    return GenerativeJudge(load_model(folder).eval(), tokenizer, render, verdicts, label, config.batch_size)


def _dialect(config: JudgeConfig, tokenizer: Any, label: str) -> tuple[Any, dict[str, Verdict]]:
    """How a judge that speaks is asked, and what its words mean."""
    from neurofreeze.evaluation.judges.generative import through_prompt, through_template

    if config.name == "guard":
        return through_template(tokenizer, label), SAFE_UNSAFE
    return through_prompt(Path(str(config.prompt))), NO_YES


def _classifier(folder: Path, pad_token_id: int | None) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    # A base model without a classification head would judge at random.
    if missing := sorted(found["missing_keys"]):
        raise ModelError(f"{folder} is no trained classifier: it lacks {', '.join(missing[:3])}")
    model.config.pad_token_id = pad_token_id
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
