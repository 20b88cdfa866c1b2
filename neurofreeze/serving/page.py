"""The live page: one file, with no address in it but this server's."""

from __future__ import annotations

import secrets

from starlette.responses import HTMLResponse

from neurofreeze._version import __version__
from neurofreeze.report.templates import render


def page(model: str) -> HTMLResponse:
    """The page of a server. Its script may run and nothing else may, whatever an event should hold."""
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    text = render("live.html", model=model, version=__version__, nonce=nonce)
    return HTMLResponse(text, headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"})
