"""Secrets are found by name, by form and in the environment; ordinary settings stay as they are."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from omegaconf import OmegaConf

from neurofreeze.config.schema import Config
from neurofreeze.tracking.redaction import REDACTED, is_secret, redact, redact_yaml

SECRET = "s3cr3t-0123456789"


@pytest.mark.parametrize(
    "name", ["token", "hf_token", "HF_TOKEN", "hfToken", "api_key", "apikey", "WANDB_API_KEY", "client.secret",
             "password", "Authorization", "aws_secret_access_key", "tokens"],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)
    assert redact({name: SECRET}, {}) == {name: REDACTED}
    assert redact({name: [SECRET], "other": 1}, {}) == {name: [REDACTED], "other": 1}
    assert redact({"setup": {name: {"inner": SECRET}}}, {}) == {"setup": {name: {"inner": REDACTED}}}


@pytest.mark.parametrize("name", ["tokenizer", "monkey", "keyboard", "author", "secretary", "model", "passes"])
def test_names_that_only_look_like_them(name: str) -> None:
    assert not is_secret(name)
    assert redact({name: "value"}, {}) == {name: "value"}


@pytest.mark.parametrize(
    "text",
    [
        f"export HF_TOKEN={SECRET}",
        f"curl --token {SECRET} https://example.org",
        f"curl --api-key={SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"https://user:{SECRET}@example.org/data.jsonl",
        f"https://{SECRET}@example.org",
        f"https://example.org/data?api_key={SECRET}&split=train",
        f'tracker.password="{SECRET} and more"',
        '{"token": "' + SECRET + '"}',
        f"+hf.token={SECRET}",
    ],
)
def test_secrets_in_text(text: str) -> None:
    found = redact(text, {})
    assert SECRET not in found
    assert "and more" not in found
    assert REDACTED in found


@pytest.mark.parametrize(
    "secret",
    ["hf_abcdefghijklmnopqrstuvwx", "sk-abcdefghijklmnop1234", "ghp_abcdefghijklmnop1234", "AKIAABCDEFGHIJKLMNOP"],
)
def test_credentials_of_a_known_form(secret: str) -> None:
    assert redact([f"python x.py {secret}"], {}) == [f"python x.py {REDACTED}"]


def test_a_secret_of_the_environment_is_found_under_any_name() -> None:
    environment = {"MY_TOKEN": SECRET, "HOME": "/home/someone", "SHORT_KEY": "train"}
    settings = {"notes": f"see {SECRET}.", "home": "/home/someone", "split": "train"}
    assert redact(settings, environment) == {**settings, "notes": f"see {REDACTED}."}


def test_numbers_are_secrets_only_under_names_that_count_nothing() -> None:
    settings = {"max_new_tokens": 20, "use_token": True, "password": 12345678}
    assert redact(settings, {}) == {**settings, "password": REDACTED}
    assert redact("max_new_tokens=20 password=12345678", {}) == f"max_new_tokens=20 password={REDACTED}"


def test_the_default_settings_hold_no_secret() -> None:
    settings: Any = asdict(Config())
    assert redact(settings, {}) == settings


@pytest.mark.parametrize(
    "text",
    ["evaluation.max_new_tokens=20", "the token of a bank: keys", "model=/models/tiny", "data.train=s3://bucket/a@b.json",
     "training.learning_rate=5e-5", "git@github.com:someone/project", ""],
)  # fmt: skip
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text, {}) == text


def test_yaml_is_changed_only_where_there_is_a_secret() -> None:
    text = "name: support\ncluster:\n  setup:\n  - module load cuda\nfraction:   0.15\n"
    assert redact_yaml(text, {}) == text
    secret = text + f"hub_token: {SECRET}\n"
    assert OmegaConf.create(redact_yaml(secret, {})) == {**OmegaConf.create(text), "hub_token": REDACTED}
