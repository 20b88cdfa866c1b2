"""Whether the Hugging Face Hub can be reached, asked once and without the client's half-minute of retries."""

from __future__ import annotations

from functools import cache


@cache
def reachable() -> bool:
    """True if the hub answers; always False with HF_HUB_OFFLINE=1."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=3)
    except Exception:
        return False
    return True
