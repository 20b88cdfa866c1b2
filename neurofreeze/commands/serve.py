"""neurofreeze serve: a guarded model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from neurofreeze.commands.settings import compose
from neurofreeze.config.guard import with_filters
from neurofreeze.config.serve import ServeConfig
from neurofreeze.console import say, stage
from neurofreeze.errors import ConfigError


def main(overrides: Sequence[str]) -> int:
    """Serve until SIGTERM or Ctrl-C; exit code 0 then."""
    return compose("serve", with_filters(overrides), _serve, "serve", needs_folder=False)


def _serve(config: ServeConfig, _: Path, __: str) -> int:
    if missing := [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]:
        raise ConfigError(f"serving needs {', '.join(missing)}: pip install 'neurofreeze[serve]'")
    from neurofreeze.serving.loading import guarded_by, load_guarded
    from neurofreeze.serving.server import bound, serve
    from neurofreeze.serving.service import Service

    with bound(config.host, config.port) as address:
        with stage("loading"):
            chain, monitor = load_guarded(config)
            service = Service(config, chain, monitor)
        say(f"model: {service.name}, guarded by {guarded_by(chain, monitor)}")
        say(f"callers: {'anyone on this machine' if config.token_env is None else 'those with the token'}")
        serve(service, address)
    say("stopped")
    return 0
