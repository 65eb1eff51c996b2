"""laion-clap as an embedder: an actor in its own environment."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinymusician.errors import ModelError
from tinymusician.evaluate.clip_embeddings import Floats
from tinymusician.evaluate.laion_clap import RATE, LaionClap
from tinymusician.inputs import input_path
from tinymusician.json_types import JsonObject
from tinymusician.recipe import LaionClapEmbeddingConfig
from tinymusician.runtime.audio_reader import Wave


class LaionClapActor:
    """A text embedder that runs laion-clap itself."""

    rate = RATE

    def __init__(self, config: LaionClapEmbeddingConfig) -> None:
        """Start the actor.

        Raises:
            ModelError: environment, checkpoint or tokenizer are missing, or do not match.
        """
        import ray

        python = Path(config.environment).expanduser() / "bin" / "python"
        checkpoint, tokenizer = input_path(config.checkpoint), input_path(config.tokenizer)
        if shlex.quote(str(python)) != str(python):  # a home folder with a space; the recipe's own value was checked
            raise ModelError(
                f"evaluate.embedding: {str(python)!r} has characters that a shell interprets; Ray uses one"
            )
        for path in (python, checkpoint, tokenizer / "vocab.json"):
            if not path.exists():
                raise ModelError(f"evaluate.embedding: {path} is not there; make the environment with {_MADE}")
        code = {"PYTHONPATH": str(Path(__file__).parents[2])}
        kind = ray.remote(num_cpus=0, runtime_env={"py_executable": str(python), "env_vars": code})(LaionClap)
        self._actor: Any = kind.remote(str(checkpoint), str(tokenizer), config.audio_model)
        try:
            self.facts: JsonObject = ray.get(self._actor.facts.remote())
        except Exception as error:  # whatever happens within another environment
            said = " ".join(str(error).split())[-300:]
            raise ModelError(f"evaluate.embedding: laion-clap cannot be used ({said})") from error

    def __call__(self, waves: Sequence[Wave]) -> list[Floats]:
        """Vectors [windows, D] of every wave."""
        import ray

        embeddings: list[Floats] = ray.get(self._actor.audio.remote(list(waves)))
        return embeddings

    def text(self, prompts: Sequence[str]) -> Floats:
        """A vector for every prompt, [N, D]."""
        import ray

        embeddings: Floats = ray.get(self._actor.text.remote(list(prompts)))
        return embeddings


_MADE = "`infra/environments/install laion-clap FOLDER`, and see docs/evaluation.md for the other files"
