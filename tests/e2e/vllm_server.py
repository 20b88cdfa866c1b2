"""vLLM in an environment of its own, as a server of one checkpoint."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

# Not in the tests' own environment: its transformers is older than what NeuroFreeze needs.
PYTHON = Path(os.environ.get("NEUROFREEZE_VLLM", Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"))
needs_vllm = pytest.mark.skipif(
    not PYTHON.is_file(),
    reason=f"no vLLM: make {PYTHON.parents[1]} with python3 -m venv and pip install --no-deps -r tests/e2e/vllm.txt",
)


@contextmanager
def serving(checkpoint: Path, log: Path) -> Iterator[str]:
    """The address of vLLM's OpenAI-compatible server, which calls the model `served`; killed at the end."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    options = ["--model", str(checkpoint), "--served-model-name", "served", "--host", "127.0.0.1", "--port", port]
    options += ["--dtype", "float32", "--max-model-len", "512", "--enforce-eager"]
    quiet = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", *options]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | quiet
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(process, address, log)
            yield address
        finally:
            os.killpg(process.pid, 9)  # its engine and workers are processes too
            process.wait()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    until = time.monotonic() + 600
    while True:
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < until, log.read_text()[-4000:]
        try:
            if httpx.get(f"{address}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
