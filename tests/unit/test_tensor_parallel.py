"""A teacher that two processes share has the logits and samples of the whole one."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.s3_server import free_port
from tests.tiny import CAPTIONS
from tinymusician.data.tokens import TokenDataset, tokenize_captions
from tinymusician.distill.signals import OnlineTeacher, TensorParallelTeacher
from tinymusician.errors import ModelError
from tinymusician.models.conditional_decoder import encode_text
from tinymusician.models.musicgen import load_musicgen, load_tokenizer
from tinymusician.models.sampling import sample_codes
from tinymusician.models.shape import check_tensor_parallel

ROWS = np.array([[3, 0], [1, 5]])
"""What each of the two asks about."""


def token_set(model: str, vocabulary: int) -> TokenDataset:
    codes = np.random.default_rng(0).integers(0, vocabulary, (8, 4, 12)).astype(np.int16)
    return TokenDataset(codes, *tokenize_captions(load_tokenizer(model), CAPTIONS * 2))


def answers(model: str, rank: int | None) -> dict[str, Any]:
    """Guided logits on rows, and samples, of the teacher split over two, or of the whole one."""
    teacher = load_musicgen(model)
    tokens = token_set(model, teacher.config.decoder.vocab_size)
    source: Any = OnlineTeacher(teacher, tokens, "guided", 3.0, torch.float32)
    if rank is not None:
        from torch.distributed.device_mesh import init_device_mesh

        from tinymusician.models.tensor_parallel import shard_decoder

        mesh = init_device_mesh("cpu", (2,))
        shard_decoder(teacher, mesh)
        source = TensorParallelTeacher(source, mesh.get_group())
    worker_rows = ROWS if rank is None else ROWS[rank : rank + 1]
    ids, mask = torch.from_numpy(tokens.text_ids[:4]), torch.from_numpy(tokens.text_mask[:4])
    with torch.no_grad():
        text = encode_text(teacher, ids, mask)
        codes = sample_codes(teacher, text, 6, [5, 6, 7, 8], 3.0, 16, 1.0)
    slice_ = sum(p.numel() for p in (getattr(p, "to_local", lambda p=p: p)() for p in teacher.decoder.parameters()))
    return {"logits": [source(rows).logits for rows in worker_rows], "codes": codes, "parameters": slice_}


def one_of_two(rank: int, port: int, model: str, out: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    torch.save(answers(model, rank), f"{out}-{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "band-large"])
def test_two_shards_equal_the_whole_model(tiny_musicgen: Path, tmp_path: Path, name: str) -> None:
    model = str(tiny_musicgen) if name == "tiny" else name
    port, context = free_port(), multiprocessing.get_context("spawn")
    halves = [context.Process(target=one_of_two, args=(rank, port, model, str(tmp_path / "half"))) for rank in range(2)]
    for half in halves:
        half.start()
    whole = answers(model, None)
    for half in halves:
        half.join()
    assert [half.exitcode for half in halves] == [0, 0]
    for rank in range(2):
        result = torch.load(tmp_path / f"half-{rank}.pt")
        probabilities = [logits.softmax(-1) for logits in (result["logits"][0], whole["logits"][rank])]
        torch.testing.assert_close(*probabilities, rtol=1e-5, atol=1e-5)
        assert torch.equal(result["codes"], whole["codes"])
        assert result["parameters"] < 0.75 * whole["parameters"]


def test_indivisible_sizes() -> None:
    check_tensor_parallel(32, 8192, 4)
    with pytest.raises(
        ModelError, match=r"teacher\.tensor_parallel_size = 3: must divide the teacher's 32 attention heads"
    ):
        check_tensor_parallel(32, 8192, 3)
