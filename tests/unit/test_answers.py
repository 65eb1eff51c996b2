"""Training and reading answers: tokens, batches, probabilities of options, generation, and the benchmark's scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from tinymusician.errors import DataError, ModelError
from tinymusician.evaluate.bootstrap import cluster_interval
from tinymusician.models.audio_encoder import AudioEncoderShape
from tinymusician.models.audio_lm import AudioLM, AudioLMShape, LanguageModelShape, copy_layers
from tinymusician.runtime.answers import Floats, OptionProbabilities
from tinymusician.understand.answer_task import AnswerTask, AnswerTeacher, padded, question_set
from tinymusician.understand.answering import TorchAnswerer
from tinymusician.understand.benchmark import (
    majority_choices,
    mismatched_clips,
    score_choices,
    score_model,
    score_probabilities,
    score_rotations,
)
from tinymusician.understand.features import noises
from tinymusician.understand.questions import Question
from tinymusician.understand.tokenizer import END_ID, train_tokenizer

COLOURS = ("red", "green", "blue", "white")
CLIPS = 16


def choice(clip: int, options: tuple[str, ...] = COLOURS) -> Question:
    """A question whose answer is in the clip's audio: its number modulo four."""
    answer, tune = COLOURS[clip % 4], f"tune {clip}"
    return Question(
        format="choice", attribute="colour", clip=clip, tune=tune, text="Which?", options=options, answer=answer
    )


def yes_no(clip: int, colour: str) -> Question:
    value, tune = COLOURS[clip % 4], f"tune {clip}"
    answer, text = "yes" if value == colour else "no", f"Is it {colour}?"
    return Question(format="yes_no", attribute="colour", clip=clip, tune=tune, text=text, answer=answer, value=value)


def questions() -> list[Question]:
    return [choice(clip) for clip in range(CLIPS)] + [
        yes_no(clip, colour) for clip in range(CLIPS) for colour in COLOURS
    ]


def tokenizer() -> Tokenizer:
    return train_tokenizer([text for q in questions() for text in (q.prompt, f" {q.target}")], 320)


def features() -> np.ndarray:
    """Vectors that are the colour, alike in all steps, beside noise."""
    vectors = np.random.default_rng(0).normal(0, 0.1, (CLIPS, 3, 40)).astype(np.float16)
    for clip in range(CLIPS):
        vectors[clip, :, clip % 4] += 1
    return vectors


def model() -> AudioLM:
    torch.manual_seed(0)
    encoder = AudioEncoderShape(width=8, layers=1, heads=2, feed_forward=16, block_columns=4)
    lm = LanguageModelShape(vocabulary=320, width=32, layers=2, heads=4, key_value_heads=2, feed_forward=64)
    return AudioLM(AudioLMShape(encoder, 32, lm))


def task(number: int = 80, **options: object) -> AnswerTask:
    """The task on the first questions; the first 16 are multiple choice."""
    tokens, vectors = tokenizer(), features()
    train = question_set(tokens, END_ID, questions()[:number], vectors)
    nothing = np.zeros((2, 3, 40), np.float16)
    return AnswerTask(model(), tokens, train, train, nothing, 16, 0, **options)  # type: ignore[arg-type]


def trained() -> TorchAnswerer:
    fitted = task(16, no_music_share=0.2)
    optimizer = torch.optim.AdamW(fitted.module.parameters(), lr=3e-3)
    for step in range(100):
        loss, _ = fitted.loss(fitted.module, fitted.batch(step, 0, 1), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return TorchAnswerer(fitted.model, tokenizer())


@pytest.fixture(scope="module")
def answerer() -> TorchAnswerer:
    return trained()


def text_of(ids: list[int]) -> str:
    return tokenizer().decode(ids, skip_special_tokens=False).strip()


def of(items: list[Question]) -> np.ndarray:
    return features()[[question.clip for question in items]].astype(np.float32)


def test_letters_are_single_tokens() -> None:
    assert [token for token in tokenizer().encode("Which? (B) green (C) blue").ids if token < 10] == [3, 4]
    assert text_of(tokenizer().encode(" green (B)").ids) == "green (B)"


def test_every_question_is_in_an_epoch_once() -> None:
    fitted = task()
    rows = np.concatenate([fitted.rows(step, 0, 1) for step in range(len(questions()) // 16)])
    assert sorted(rows) == list(range(len(questions())))


def test_batch_is_prompt_answer_and_end() -> None:
    fitted = task()
    batch = fitted.batch(3, 0, 1)
    for ids, is_answer, row in zip(batch.ids, batch.answers, fitted.rows(3, 0, 1), strict=True):
        question = questions()[row]
        answer = ids[is_answer].tolist()
        assert answer[-1] == END_ID
        assert text_of(answer[:-1]) in (question.target, "cannot tell")
        start = int(is_answer.nonzero()[0])
        assert ids[:start].tolist() == tokenizer().encode(question.prompt).ids


def test_lost_audio_is_answered_with_cannot_tell() -> None:
    fitted = task(no_music_share=1.0)
    batch = fitted.batch(0, 0, 1)
    assert not batch.features.any()  # type: ignore[union-attr]
    written = {text_of(ids[mask].tolist()) for ids, mask in zip(batch.ids, batch.answers, strict=True)}
    assert written == {"cannot tell<end>"}


def test_text_only_model_gets_no_audio() -> None:
    assert task(is_text_only=True).batch(0, 0, 1).features is None


def test_student_of_all_layers_begins_as_its_teacher() -> None:
    teacher, student = model().eval(), model().eval()
    torch.nn.init.normal_(student.projector.linear1.weight)
    copy_layers(teacher, student, (0, 1))
    ids, answers = padded([np.array([3, 4])], [np.array([7, 0])])
    audio = torch.randn(1, 3, 40)
    with torch.no_grad():
        torch.testing.assert_close(student(audio, ids, answers), teacher(audio, ids, answers))
    with pytest.raises(ModelError, match="the teacher's layers are 0 to 1"):
        copy_layers(teacher, student, (0, 2))


def test_loss_of_a_student_is_kl_plus_weighted_cross_entropy() -> None:
    torch.manual_seed(5)
    teacher = model()
    for parameter in teacher.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    fitted = task(teacher=AnswerTeacher(teacher, hard=0.25))
    batch = fitted.batch(0, 0, 1)
    loss, scalars = fitted.loss(fitted.module, batch, 0)
    with torch.no_grad():
        p = teacher(*batch).double().softmax(-1)
        log_q = fitted.model(*batch).double().log_softmax(-1)
    kl = (p * (p.log() - log_q)).sum(-1).mean()
    hard = -log_q[range(len(log_q)), batch.ids[batch.answers]].mean()
    assert loss.item() == pytest.approx((kl + 0.25 * hard).item(), rel=1e-4)
    assert scalars["kl"].item() == pytest.approx(kl.item(), rel=1e-4)
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_padding_changes_no_logits() -> None:
    ids, answers = padded([np.array([3, 4]), np.array([3, 4, 5, 6])], [np.array([7, 0]), np.array([8, 9, 0])])
    audio, lm = torch.randn(2, 3, 40), model().eval()
    with torch.no_grad():
        both = lm(audio, ids, answers)
        alone = lm(audio[:1], ids[:1, :4], answers[:1, :4])
    torch.testing.assert_close(both[:2], alone, atol=1e-5, rtol=1e-5)


def test_model_learns_to_listen(answerer: TorchAnswerer) -> None:
    """By probability and by generated text."""
    items = [choice(clip) for clip in range(CLIPS)]
    results = answerer.probabilities(of(items), items)
    assert [question.options[result.choice] for question, result in zip(items, results, strict=True)] == [
        question.answer for question in items
    ]
    assert answerer.generate(of(items), [q.prompt for q in items]) == [q.target for q in items]


def test_silence_is_answered_with_cannot_tell(answerer: TorchAnswerer) -> None:
    items = [choice(0), choice(1)]
    assert all(r.cannot_tell > 0.5 for r in answerer.probabilities(np.zeros((2, 3, 40), np.float32), items))
    assert all(r.cannot_tell < 0.5 for r in answerer.probabilities(of(items), items))


def test_score_of_a_listener_and_of_what_hears_nothing(answerer: TorchAnswerer) -> None:
    items = [choice(clip) for clip in range(CLIPS)]
    score = score_model("m", items, answerer, of(items), frozenset({"Which?"}))
    assert (score.overall.interval.value, score.held_out_phrasing) == (1.0, 1.0)
    assert (score.official_parsed, score.official_accuracy) == (1.0, 1.0)
    assert (score.strict_parsed, score.strict_accuracy) == (1.0, 1.0)
    assert score.letters == {"A": 4, "B": 4, "C": 4, "D": 4}
    assert score.circular is not None
    assert score.circular.interval == score.overall.interval
    silent = score_model("none", items, answerer, None)
    assert silent.overall.interval.value == 0.25
    assert silent.overall.contains_chance


class FirstOption:
    def probabilities(self, features: Floats | None, questions: Sequence[Question]) -> list[OptionProbabilities]:
        return [OptionProbabilities((0.7, 0.1, 0.1, 0.1), 0.0) for _ in questions]

    def generate(self, features: Floats | None, prompts: Sequence[str]) -> list[str]:
        return ["A" for _ in prompts]


def test_a_preferred_place_is_never_right_in_all_rotations() -> None:
    """Who always takes the first option is right in one order of four."""
    items, answerer = [choice(clip) for clip in range(CLIPS)], FirstOption()
    first = answerer.probabilities(None, items)
    assert score_probabilities("first", items, first).overall.interval.value == 0.25
    assert score_rotations(items, answerer, None, first).interval.value == 0


def test_probabilities_are_softmaxes_of_the_likelihoods(answerer: TorchAnswerer) -> None:
    """Against the product of the tokens' probabilities, each from a sequence of its own."""
    question, vectors = choice(2), torch.from_numpy(of([choice(2)]))
    prompt = tokenizer().encode(question.prompt).ids
    logs = []
    for text in (*COLOURS, "cannot tell"):
        tokens, total = [*tokenizer().encode(f" {text}").ids, END_ID], 0.0
        for length, token in enumerate(tokens):
            ids = torch.tensor([[*prompt, *tokens[:length], 0]])
            is_next = torch.zeros(ids.shape, dtype=torch.bool)
            is_next[0, -1] = True
            with torch.no_grad():
                total += answerer._model(vectors, ids, is_next).double().log_softmax(-1)[0, token].item()
        logs.append(total)
    powers = np.exp(np.array(logs) - max(logs))
    (result,) = answerer.probabilities(of([question]), [question])
    np.testing.assert_allclose(result.options, powers[:4] / powers[:4].sum(), atol=1e-4)
    assert result.cannot_tell == pytest.approx(powers[4] / powers.sum(), abs=1e-4)


def test_scores_by_attribute_with_intervals_over_tunes() -> None:
    items = [choice(clip) for clip in range(CLIPS)] + [
        choice(clip, COLOURS[:2]).model_copy(update={"attribute": "pair"}) for clip in (0, 1, 4, 5)
    ]
    score = score_choices("s", items, [0] * len(items))
    assert score.attributes["colour"].interval.value == 0.25
    assert score.attributes["pair"].chance == 0.5
    assert score.overall.chance == pytest.approx((16 * 0.25 + 4 * 0.5) / 20)


def test_interval_over_clusters_is_wider_than_over_outcomes() -> None:
    """Equal outcomes in each cluster: the standard error is that of the clusters' means (closed form)."""
    outcomes = np.repeat([1, 0] * 50, 10)
    clusters = [str(number) for number in np.repeat(np.arange(100), 10)]
    interval = cluster_interval(outcomes, clusters)
    assert interval.value == 0.5
    error = 0.5 / np.sqrt(100)
    assert interval.low == pytest.approx(0.5 - 1.96 * error, abs=0.015)
    assert interval.high == pytest.approx(0.5 + 1.96 * error, abs=0.015)
    wide = cluster_interval(outcomes, clusters, level=0.99)
    assert wide.high == pytest.approx(0.5 + 2.576 * error, abs=0.02)


def test_interval_of_all_clusters_alike_is_the_exact_one() -> None:
    """Of 40 clusters, however large, all are right: at the lower edge p, that has the probability p^40 = 2.5 %."""
    clusters = [str(number) for number in np.repeat(np.arange(40), 3)]
    interval = cluster_interval(np.ones(120), clusters)
    assert (interval.low, interval.high) == (pytest.approx(0.025 ** (1 / 40)), 1.0)
    none = cluster_interval(np.zeros(120), clusters, level=0.99)
    assert (none.low, none.high) == (0.0, pytest.approx(1 - 0.005 ** (1 / 40)))


def test_another_tune_is_of_another_family() -> None:
    """The clips of two tunes: for each question, a clip of the other one."""
    items = [choice(clip).model_copy(update={"tune": "even" if clip % 2 == 0 else "odd"}) for clip in range(CLIPS)]
    others = mismatched_clips(items, seed=0)
    assert all((clip - question.clip) % 2 == 1 for clip, question in zip(others, items, strict=True))


def test_majority_and_other_tunes() -> None:
    items = [choice(clip) for clip in range(CLIPS)]
    training = [choice(1), choice(5), choice(2)]
    assert majority_choices(items, training) == [1] * CLIPS
    others = mismatched_clips(items, seed=0)
    assert all(clip != question.clip for clip, question in zip(others, items, strict=True))
    assert len(set(others)) > CLIPS // 3
    with pytest.raises(DataError, match="about the tune 'tune 0'; at least two"):
        mismatched_clips([choice(0), choice(0)], seed=0)


def test_noises_have_their_levels_and_colours() -> None:
    waves = noises(40, 16_000, seed=0)
    levels = 20 * np.log10(waves.std(1))
    assert levels.min() >= -61
    assert levels.max() <= -5
    power = np.abs(np.fft.rfft(waves)) ** 2
    slopes = [np.polyfit(np.log(np.arange(100, 8000)), np.log(row[100:8000]), 1)[0] for row in power]
    assert min(slopes) < -1.5
    assert max(slopes) > -0.2


def test_choice_is_the_most_probable_option() -> None:
    assert OptionProbabilities((0.1, 0.7, 0.2), 0.0).choice == 1
