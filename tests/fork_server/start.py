"""Starting and ending a fork server, and the variables by which processes find it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
MODULES = (
    "torch",
    "torch.distributed.device_mesh",
    "deepspeed",
    "transformers",
    "transformers.models.musicgen.modeling_musicgen",
    "transformers.models.t5.modeling_t5",
    "transformers.models.encodec.modeling_encodec",
    "transformers.models.clap.modeling_clap",
    "boto3",
    "cryptography.hazmat.primitives.asymmetric.ed25519",
    "fastapi",
    "matplotlib.pyplot",
    "onnx",
    "onnxruntime",
    "onnxruntime.quantization.matmul_nbits_quantizer",
    "onnxscript",
    "opentelemetry.exporter.prometheus",
    "pandas",
    "pyarrow.fs",
    "requests",
    "scipy.stats",
    "soundfile",
    "soxr",
    "typer",
)
"""What a job's processes import, and is slow. Not Ray: its library reads its variables when it is loaded, for good."""


@contextlib.contextmanager
def fork_server(
    address: Path, environment: dict[str, str], modules: Sequence[str] = MODULES
) -> Iterator[dict[str, str]]:
    """A server on a socket; yields what to add to the environment of the processes that it forks for.

    Its forks have one thread for each of their parallel regions, and no GPU.
    """
    variables = {"FORK_SERVER": str(address), "PYTHONPATH": str(FOLDER)}
    variables_here = {
        **environment,
        "FORK_SERVER": str(address),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, str(FOLDER / "server.py"), str(address), *modules]
    server = subprocess.Popen(command, env=variables_here, stdin=subprocess.PIPE, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not address.exists():
            assert server.poll() is None, "the fork server does not start"
            assert time.monotonic() < deadline, "the fork server does not answer"
            time.sleep(0.05)
        yield variables
    finally:
        assert server.stdin is not None
        server.stdin.close()
        try:
            server.wait(30)
        finally:
            server.kill()
