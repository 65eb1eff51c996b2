"""Teacher signals: sequences, online against cached, guidance, clips and shards."""

from __future__ import annotations

import wave
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

from tests.distill_tasks import tiny_tokens
from tests.tiny import CAPTIONS, write_tone
from tinymusician.artifacts.blobs import blob_key
from tinymusician.artifacts.store import LocalStore
from tinymusician.codebooks import delay, inputs_for, valid
from tinymusician.data.shards import ShardCache, make_missing
from tinymusician.data.tokens import BLOCK_ROWS, TokenDataset, epoch_order, rows_of_step, tokenize_captions
from tinymusician.distill.cached import CachedTeacher, pack, shard_count, signal_shard, unpack
from tinymusician.distill.sequences import ClipCodes, TeacherSamples, mix
from tinymusician.distill.signals import OnlineTeacher, PrefetchingSource
from tinymusician.errors import DataError, DigestMismatchError
from tinymusician.models.conditional_decoder import ConditionedDecoder, encode_text
from tinymusician.models.musicgen import load_musicgen, load_tokenizer
from tinymusician.runtime.sampling import guide

FRAMES = 10


@pytest.fixture
def teacher(tiny_musicgen: Path) -> Any:
    return load_musicgen(str(tiny_musicgen))


@pytest.fixture
def tokens(tiny_musicgen: Path) -> TokenDataset:
    return tiny_tokens(tiny_musicgen, 37, FRAMES)


def plain_logits(model: Any, tokens: TokenDataset, rows: np.ndarray, null: bool) -> torch.Tensor:
    """transformers' own forward pass; the null condition as its `generate` makes it: zero states, zero mask."""
    inputs = torch.from_numpy(inputs_for(delay(tokens.codes[rows].astype(np.int64), 16), 16))
    ids, mask = torch.from_numpy(tokens.text_ids[rows]), torch.from_numpy(tokens.text_mask[rows])
    with torch.no_grad():
        states = model.text_encoder(input_ids=ids, attention_mask=mask)
        if null:
            states.last_hidden_state = torch.zeros_like(states.last_hidden_state)
            mask = torch.zeros_like(mask)
        output = model(encoder_outputs=states, attention_mask=mask, decoder_input_ids=inputs.flatten(0, 1))
    return output.logits.view(len(rows), 4, -1, 16)


def test_conditional_signals_have_both_passes(teacher: Any, tokens: TokenDataset) -> None:
    rows = np.array([3, 0, 11])
    signals = OnlineTeacher(teacher, tokens, "conditional", 3.0, torch.float32)(rows)
    torch.testing.assert_close(signals.logits[:3], plain_logits(teacher, tokens, rows, null=False))
    torch.testing.assert_close(signals.logits[3:], plain_logits(teacher, tokens, rows, null=True))
    assert signals.sequences.with_text.tolist() == [True] * 3 + [False] * 3
    assert np.array_equal(signals.sequences.mask[4].numpy(), valid(4, FRAMES))


def test_guided_signals_are_one_pass(teacher: Any, tokens: TokenDataset) -> None:
    rows = np.array([5, 6])
    signals = OnlineTeacher(teacher, tokens, "guided", 3.0, torch.float32)(rows)
    with_text, without = (plain_logits(teacher, tokens, rows, null) for null in (False, True))
    torch.testing.assert_close(signals.logits, guide(with_text, without, 3.0))
    torch.testing.assert_close(signals.logits, 3 * with_text - 2 * without)
    assert signals.sequences.with_text.all()


@pytest.mark.parametrize("target", ["conditional", "guided"])
def test_cached_signals_are_the_online_ones(teacher: Any, tokens: TokenDataset, tmp_path: Path, target: Any) -> None:
    online = OnlineTeacher(teacher, tokens, target, 3.0, torch.float32)
    shards = ShardCache(LocalStore(tmp_path / "store"), "signals", {"x": 1}, shard_count(37))
    assert shards.missing() == [0, 1]
    make = partial(signal_shard, online, rows=37, batch_size=5)
    for index in shards.missing():
        shards.write(index, make(index))
    assert shards.missing() == []
    rows = np.array([36, 2, 31, 32])
    cached = CachedTeacher(shards, tokens, target, 16, tmp_path / "cache", "cpu", make).request(rows)()
    expected = online(rows)
    assert all(torch.equal(a, b) for a, b in zip(cached.sequences[:5], expected.sequences[:5], strict=True))
    actual, true = (logits.float().log_softmax(-1) for logits in (cached.logits, expected.logits))
    torch.testing.assert_close(actual, true, rtol=1e-3, atol=1e-3)  # float16


def test_top_k_and_remaining_mass() -> None:
    """Against NumPy in float64: the kept codes' probabilities are theirs, the others share what is left evenly."""
    logits = 3 * torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(3))
    true = softmax(logits.double().numpy(), -1)
    for top in (1, 6, 15):
        packed_values = {name: torch.from_numpy(array) for name, array in pack(logits, top).items()}
        actual = softmax(unpack(packed_values, 16).double().numpy(), -1)
        order = np.argsort(-true, -1)
        expected = np.zeros_like(true)
        np.put_along_axis(expected, order[..., :top], np.take_along_axis(true, order[..., :top], -1), -1)
        rest = (1 - expected.sum(-1, keepdims=True)) / (16 - top)
        np.put_along_axis(expected, order[..., top:], np.broadcast_to(rest, order[..., top:].shape), -1)
        np.testing.assert_allclose(actual, expected, rtol=4e-3)


def test_top_k_of_all_codes_is_exact() -> None:
    logits = 3 * torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(4))
    whole, top = (
        unpack({name: torch.from_numpy(array) for name, array in pack(logits, count).items()}, 16)
        for count in (None, 16)
    )
    assert torch.equal(whole.float(), top)


def test_damaged_signal_shard_is_computed_again(
    teacher: Any, tokens: TokenDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = LocalStore(tmp_path / "store")
    shards = ShardCache(store, "signals", {}, shard_count(37))
    make = partial(signal_shard, OnlineTeacher(teacher, tokens, "guided", 3.0, torch.float32), rows=37, batch_size=5)
    made: list[int] = []
    for index in (0, 1):
        shards.write(index, make(index))
    digest = shards.fetch(1, tmp_path / "cache").stem
    store.put(blob_key(digest), b"?" + store.get(blob_key(digest))[1:])

    def again(index: int) -> dict[str, Any]:
        made.append(index)
        assert not shards.missing(), "to others it is damaged too, not missing"
        return make(index)

    fresh = ShardCache(store, "signals", {}, shard_count(37))
    source = CachedTeacher(fresh, tokens, "guided", 16, tmp_path / "other", "cpu", again)
    rows = np.array([33, 2])
    torch.testing.assert_close(
        source.request(rows)().logits.float().softmax(-1),
        OnlineTeacher(teacher, tokens, "guided", 3.0, torch.float32)(rows).logits.softmax(-1),
        rtol=1e-2,
        atol=1e-3,
    )
    assert made == [1]
    assert "shard-00001.json is computed again" in caplog.text


def test_prefetch_depth_is_respected() -> None:
    begun: list[int] = []

    def ask(rows: np.ndarray) -> Any:
        begun.append(int(rows[0]))
        return lambda: rows

    source = PrefetchingSource(ask, 2)
    batches = [np.array([step]) for step in range(10)]
    assert source(batches[0], batches[1:])[0] == 0
    assert begun == [0, 1, 2]
    assert source(batches[1], batches[2:])[0] == 1
    assert begun == [0, 1, 2, 3]
    assert source(batches[7], [])[0] == 7, "what was not announced is answered too"


def sampler(teacher: Any, folder: Path, samples: int = 2) -> TeacherSamples:
    return TeacherSamples(
        teacher, load_tokenizer(str(folder)), CAPTIONS, samples, FRAMES, 3.0, 16, 1.0, 7, 3, 4, torch.float32
    )


def test_samples_do_not_depend_on_the_worker(teacher: Any, tiny_musicgen: Path, tmp_path: Path) -> None:
    sets = []
    for name, world in (("alone", 1), ("shared", 2)):
        source = sampler(teacher, tiny_musicgen)
        shards = ShardCache(LocalStore(tmp_path / name), "samples", {}, source.shards)
        for rank in reversed(range(world)):
            make_missing(shards, source.make, rank, world, lambda index: None)
        sets.append(source.read(shards, tmp_path / f"{name}-cache", source.make))
    assert np.array_equal(sets[0].codes, sets[1].codes)
    assert sets[0].codes.shape == (8, 4, FRAMES)
    assert sets[0].codes.max() < 16
    assert not np.array_equal(sets[0].codes[0], sets[0].codes[1]), "two samples of one prompt differ"


def test_resumed_work_computes_only_missing_shards(teacher: Any, tiny_musicgen: Path, tmp_path: Path) -> None:
    source, made = sampler(teacher, tiny_musicgen), []
    shards = ShardCache(LocalStore(tmp_path), "samples", {}, source.shards)
    shards.write(0, source.make(0))
    make_missing(shards, source.make, 0, 1, made.append)
    assert made == [1]


def test_damaged_shard_is_named_and_computed_again(teacher: Any, tiny_musicgen: Path, tmp_path: Path) -> None:
    store, source = LocalStore(tmp_path / "store"), sampler(teacher, tiny_musicgen)
    shards = ShardCache(store, "samples", {}, source.shards)
    make_missing(shards, source.make, 0, 1, lambda index: None)
    digest = shards.fetch(1, tmp_path / "cache").stem
    store.put(blob_key(digest), store.get(blob_key(digest))[:-1] + b"?")
    fresh = ShardCache(store, "samples", {}, source.shards)
    with pytest.raises(DigestMismatchError, match=r"shard-00001\.json was dropped: run the job again"):
        fresh.fetch(1, tmp_path / "other")
    assert fresh.missing() == [1]


def test_other_attributes_are_other_shards(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    one, other = (ShardCache(store, "samples", {"seed": seed}, 1) for seed in (0, 1))
    one.write(0, {"codes": np.zeros(3)})
    assert one.missing() == []
    assert other.missing() == [0]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_sequence_once_per_epoch(world: int) -> None:
    """Over an epoch, the workers together read every row once, whatever their number."""
    rows = [rows_of_step(step, rank, world, 2, 12, 5) for step in range(12 // (2 * world)) for rank in range(world)]
    assert sorted(np.concatenate(rows)) == list(range(12))
    one_worker = [rows_of_step(step, 0, 1, 2 * world, 12, 5) for step in range(12 // (2 * world))]
    assert np.array_equal(np.concatenate(rows), np.concatenate(one_worker))
    second = [rows_of_step(step, 0, 1, 2 * world, 12, 5) for step in range(12 // (2 * world), 2 * 12 // (2 * world))]
    assert sorted(np.concatenate(second)) == list(range(12))
    assert not np.array_equal(np.concatenate(second), np.concatenate(one_worker))


def clip_codes(teacher: Any, tiny_musicgen: Path, folder: Path) -> TokenDataset:
    source = ClipCodes(teacher.audio_encoder, load_tokenizer(str(tiny_musicgen)), folder, FRAMES)
    shards = ShardCache(LocalStore(folder / "store"), "codes", source.facts, source.shards)
    make_missing(shards, source.make, 0, 1, lambda index: None)
    return source.read(shards, folder / "cache", source.make)


def test_clips_are_encoded_to_codes(teacher: Any, tiny_musicgen: Path, tmp_path: Path) -> None:
    """Over several shards, one of which holds nothing that is long enough."""
    for number in range(70):
        write_tone(tmp_path / f"{number:02d}.wav", 0.1 if 32 <= number < 64 else 0.45 if number == 1 else 0.2)
        (tmp_path / f"{number:02d}.txt").write_text(f"reel {'and jig ' * (number == 69)}{number}\n")
    clips = clip_codes(teacher, tiny_musicgen, tmp_path)
    assert clips.codes.shape == (1 + 2 + 30 + 6, 4, FRAMES), "0.45 s hold two pieces of 0.2 s"
    captions = [f"reel {n}" for n in (0, 1, 1, *range(2, 32), *range(64, 69))] + ["reel and jig 69"]
    expected = tokenize_captions(load_tokenizer(str(tiny_musicgen)), captions)
    assert np.array_equal(clips.text_ids, expected[0])
    with wave.open(str(tmp_path / "01.wav")) as file:
        samples = np.frombuffer(file.readframes(160), "<i2").astype(np.float32) / 32768
    with torch.no_grad():
        codes = teacher.audio_encoder.encode(torch.from_numpy(samples)[None, None]).audio_codes[0, 0]
    assert np.array_equal(clips.codes[1], codes.numpy())


def test_clips_of_another_rate_are_resampled_and_reported(
    teacher: Any, tiny_musicgen: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tone(tmp_path / "a.wav", 1.0, 1600)
    (tmp_path / "a.txt").write_text("a reel")
    assert len(clip_codes(teacher, tiny_musicgen, tmp_path).codes) == 5
    assert "clips 1 to 1: resampled from 1600 Hz: 1" in caplog.text


def test_other_clips_are_other_shards(teacher: Any, tiny_musicgen: Path, tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 0.4)
    (tmp_path / "a.txt").write_text("a reel")
    tokenizer = load_tokenizer(str(tiny_musicgen))
    before, longer = (ClipCodes(teacher.audio_encoder, tokenizer, tmp_path, n).facts for n in (FRAMES, FRAMES + 1))
    (tmp_path / "a.txt").write_text("a jig")
    same = ClipCodes(teacher.audio_encoder, tokenizer, tmp_path, FRAMES).facts
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:-1] + b"?")
    other = ClipCodes(teacher.audio_encoder, tokenizer, tmp_path, FRAMES).facts
    assert before == same, "captions are read again"
    assert before != longer
    assert before != other


def test_unusable_clips(teacher: Any, tiny_musicgen: Path, tmp_path: Path) -> None:
    def read() -> None:
        clip_codes(teacher, tiny_musicgen, tmp_path)

    with pytest.raises(DataError, match="no clip with a caption"):
        read()
    write_tone(tmp_path / "a.wav", 1.0)
    with pytest.raises(DataError, match="; 1 have no caption"):
        read()
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(DataError, match="1 have an empty caption"):
        read()
    (tmp_path / "a.txt").write_text("a reel")
    write_tone(tmp_path / "a.wav", 0.1)
    with pytest.raises(DataError, match=r"none is 0\.2 s long"):
        read()
    (tmp_path / "a.wav").write_bytes(b"RIFFnonsense")
    with pytest.raises(DataError, match="cannot be read as audio"):
        read()


def test_mixture_has_the_requested_share(tokens: TokenDataset) -> None:
    samples = TokenDataset(tokens.codes[:30], tokens.text_ids[:30], tokens.text_mask[:30])
    clips = TokenDataset(tokens.codes[30:34], np.ones((4, 20), np.int64), np.ones((4, 20), np.int64))
    mixed = mix(samples, clips, 0.25)
    from_clips = mixed.text_mask[:, -1] == 1
    assert from_clips.mean() == 0.25
    assert len({row.tobytes() for row in mixed.codes[from_clips]}) == 4
    assert mix(samples, clips, 1.0) is clips


def test_bfloat16_teacher_rounds_its_layers_and_not_its_heads(teacher: Any, tiny_musicgen: Path) -> None:
    """Against transformers' own decoder under autocast, with the heads applied in float32."""
    tokens, rows = tiny_tokens(tiny_musicgen), np.arange(4)
    exact = OnlineTeacher(load_musicgen(str(tiny_musicgen)), tokens, "conditional", 3.0, torch.float32)(rows)
    inputs, heads = exact.sequences.inputs, torch.stack([head.weight for head in teacher.decoder.lm_heads])
    with torch.no_grad():
        text = encode_text(teacher, exact.sequences.ids, exact.sequences.text_mask).dropped(~exact.sequences.with_text)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, states = ConditionedDecoder(teacher).with_states(inputs, text.states, text.mask)
    expected = torch.einsum("rsd,kvd->rksv", states[-1].float(), heads)
    for _ in range(2):  # a second source of the same teacher changes nothing
        halved = OnlineTeacher(teacher, tokens, "conditional", 3.0, torch.bfloat16)(rows).logits
        torch.testing.assert_close(halved, expected, rtol=1e-4, atol=1e-4)
    assert halved.dtype == torch.float32
    assert not torch.equal(halved, exact.logits)


@pytest.mark.parametrize(("count", "window"), [(1000, 64), (1000, 96), (64, 64), (65, 64), (31, 64)])
def test_windows_of_an_epoch(count: int, window: int) -> None:
    """Every row once; each shard of 32 rows within two neighbouring windows, and in another order in the next epoch."""
    order = epoch_order(7, 0, count, window)
    assert sorted(order) == list(range(count))
    positions = np.argsort(order)
    for block in range(0, count, BLOCK_ROWS):
        where = positions[block : block + BLOCK_ROWS] // window
        assert where.max() - where.min() <= 1
    assert not np.array_equal(order, epoch_order(7, 1, count, window))
    if count <= window:
        assert np.array_equal(order, epoch_order(7, 0, count, None)), "small sets are permuted as a whole"
    elif count > 2 * window:
        assert np.ptp(positions[:BLOCK_ROWS]) < 2 * window


def test_joined_shards_are_mapped(tmp_path: Path) -> None:
    """As the shards hold them, with one that has no rows; the next process of the machine reads no shard."""
    store = LocalStore(tmp_path / "store")
    shards = ShardCache(store, "samples", {}, 3)
    shapes = ((4, 2, 3), (0, 0, 3), (1, 2, 3))
    arrays = [np.arange(np.prod(shape), dtype=np.int16).reshape(shape) for shape in shapes]
    for index, array in enumerate(arrays):
        shards.write(index, {"codes": array, "pieces": np.array([len(array)]), "other": np.zeros(1)})
    joined = shards.join(("codes", "pieces"), tmp_path / "cache", None)
    assert joined.keys() == {"codes", "pieces"}
    assert np.array_equal(joined["codes"], np.concatenate([arrays[0], arrays[2]]))
    assert joined["pieces"].tolist() == [4, 0, 1]
    for entry in list(store.list("blobs/")):
        store.delete(entry.key)
    again = ShardCache(store, "samples", {}, 3).join(("codes", "pieces"), tmp_path / "cache", None)
    assert np.array_equal(again["codes"], joined["codes"])


def test_sparse_signals_against_numpy() -> None:
    """Codes and values of the largest logits, and the others' mass, in float64."""
    logits = torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(0)) * 4
    packed = pack(logits, 6)
    exact = logits.double().numpy()
    exact -= exact.max(-1, keepdims=True)
    order = np.argsort(-exact, -1)
    assert np.array_equal(packed["codes"], order[..., :6])
    assert packed["values"] == pytest.approx(np.take_along_axis(exact, order[..., :6], -1), abs=0.01)
    rest = np.log(np.exp(np.take_along_axis(exact, order[..., 6:], -1)).sum(-1))
    assert packed["rest"] == pytest.approx(rest, abs=0.01)
