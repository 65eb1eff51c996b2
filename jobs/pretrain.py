"""The pretrain job: trains the house band from scratch, each model in a stage with its own checkpoints.

codec → tokens → band-large and band-small → band-clap → band-tagger → one artifact with a folder for each model.
Finished stages are not repeated, so `--resume` continues inside the stage that was interrupted.
"""

from __future__ import annotations

import gc
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.worker.context import Work, WorkerContext
from jobs.worker.ended_training import best_checkpoint, history_of
from jobs.worker.ray_train import run_training_driver
from jobs.worker.stage import TrainingStage, train
from tinymusician.artifacts.authenticated_store import run_facts
from tinymusician.artifacts.manifest import publish
from tinymusician.artifacts.run_state import RunResult
from tinymusician.artifacts.runs import RunStore
from tinymusician.data.shards import make_missing
from tinymusician.errors import RecipeError
from tinymusician.models.licence import HOUSE_BAND_LICENCE
from tinymusician.recipe import PretrainConfig

if TYPE_CHECKING:
    from torch import Tensor

    from tinymusician.data.shards import Arrays, ShardCache
    from tinymusician.data.tokens import TokenDataset
    from tinymusician.house_band.pretrain import Corpus
    from tinymusician.models.protocols import Codec, Tokenizer
    from tinymusician.training.checkpoint import CheckpointManager
    from tinymusician.training.loop import TrainerConfig


def _config(context: WorkerContext) -> PretrainConfig:
    config = context.recipe.pretrain
    if config is None:
        raise RecipeError(
            f"recipe {context.recipe.name}: has no `pretrain` section; only the house band is trained from scratch"
        )
    return config


def _corpus(context: WorkerContext) -> Corpus:
    from tinymusician.house_band.pretrain import load_corpus

    config = _config(context)
    return load_corpus(context.cache / "corpus", config.train_clips, config.held_out_clips)


def _tokenizer(context: WorkerContext) -> Tokenizer:
    from tinymusician.house_band.model import train_tokenizer

    return train_tokenizer(_corpus(context).train.captions)


MONITORS = {
    "codec": "log_mel/4",
    "band-large": "cross_entropy/right",
    "band-small": "cross_entropy/right",
    "band-clap": "loss",
    "band-tagger": "loss",
}
"""By stage, the held-out metric that picks the best checkpoint."""


def _trainer_config(context: WorkerContext, steps: int, rate: float, stage: str) -> TrainerConfig:
    from tinymusician.training.loop import TrainerConfig

    training = context.recipe.training
    warmup = min(60, steps - 1)
    every = max(1, min(200, steps // 2))
    return TrainerConfig(
        steps,
        rate,
        warmup,
        min(training.log_every, steps),
        every,
        max(1, every // 2),
        MONITORS[stage],
        seed=training.seed,
        microbatches=1,
    )


def _codec_work(context: WorkerContext) -> None:
    """Train the codec from its closed-form start, in float32: its losses are spectra and logarithms."""
    import torch

    from tinymusician.house_band.train_codec import CodecTask
    from tinymusician.models.codec import codec_config, new_codec
    from tinymusician.training.engine import AdamConfig

    config, corpus, seed = _config(context), _corpus(context), context.recipe.training.seed
    torch.manual_seed(seed)
    task = CodecTask(new_codec(codec_config()), corpus.train, corpus.validation, config.codec_batch_size, seed)
    if not _checkpoints(context, "codec").steps():
        task.start()
    trainer = _trainer_config(context, config.codec_steps, config.codec_learning_rate, "codec")
    settings = AdamConfig(beta1=0.8, beta2=0.99)
    train(context, TrainingStage("codec", task, trainer, settings, config.codec_batch_size, 0, "float32"))


def _load_trained_codec(context: WorkerContext) -> Codec:
    """The best codec of this run, rounded to float16 as it is shipped, in evaluation mode."""
    from tinymusician.house_band.train_codec import TrainableCodec
    from tinymusician.models.codec import codec_config, new_codec

    trainable = TrainableCodec(new_codec(codec_config()))
    trainable.load_state_dict(_best_weights(context, "codec"))
    return trainable.codec.half().float().eval()


def _tokens_work(context: WorkerContext) -> None:
    """Encode the splits with the trained codec; the workers share the shards."""
    from tinymusician.house_band.corpus import RenderedSplit
    from tinymusician.house_band.pretrain import encode_split

    codec, tokenizer, corpus = _load_trained_codec(context).to(context.device), _tokenizer(context), _corpus(context)
    for name in ("train", "validation"):
        split: RenderedSplit = getattr(corpus, name)
        shards = _token_shards(context, name, len(split.clips))

        def make(index: int, split: RenderedSplit = split) -> Arrays:
            rows = slice(index * _CLIPS_PER_SHARD, (index + 1) * _CLIPS_PER_SHARD)
            return {
                "codes": encode_split(codec, tokenizer, RenderedSplit(split.samples[rows], split.clips[rows])).codes
            }

        make_missing(shards, make, context.rank, context.world, partial(_print_progress, context, name, shards.count))
    context.barrier()


_CLIPS_PER_SHARD = 500


def _token_shards(context: WorkerContext, split: str, clips: int) -> ShardCache:
    from tinymusician.data.shards import ShardCache

    facts = {**run_facts(context.run.store, context.run_id), "split": split, "clips": clips}
    return ShardCache(context.run.store, "tokens", facts, -(-clips // _CLIPS_PER_SHARD))


def _print_progress(context: WorkerContext, split: str, count: int, index: int) -> None:
    print(f"{split} tokens: shard {index + 1} of {count}", flush=True)
    context.run.report_progress(f"{split} tokens", index + 1, count)


def _tokens(context: WorkerContext, name: str) -> TokenDataset:
    import numpy as np

    from tinymusician.data.shards import read_arrays
    from tinymusician.data.tokens import TokenDataset, tokenize_captions

    split = getattr(_corpus(context), name)
    shards = _token_shards(context, name, len(split.clips))
    codes = np.concatenate([read_arrays(shards.fetch(index, context.cache))["codes"] for index in range(shards.count)])
    return TokenDataset(codes, *tokenize_captions(_tokenizer(context), split.captions))


def _language_model_work(context: WorkerContext, name: str, layers: int) -> None:
    """Train text encoder and decoder of band-large or band-small."""
    import torch

    from tinymusician.house_band.model import TEACHER_LAYERS, build_musicgen
    from tinymusician.house_band.train_lm import LanguageModelTask
    from tinymusician.training.engine import AdamConfig

    config, seed = _config(context), context.recipe.training.seed
    torch.manual_seed(seed)
    model = build_musicgen(_load_trained_codec(context), len(_tokenizer(context)), layers)
    tokens, held_out = _tokens(context, "train"), _tokens(context, "validation")
    task = LanguageModelTask(model, tokens, held_out, config.lm_batch_size, seed)
    task.module.to(context.device)
    steps = config.teacher_steps if layers == TEACHER_LAYERS else config.student_steps
    trainer = _trainer_config(context, steps, config.lm_learning_rate, name)
    settings = AdamConfig(weight_decay=0.05)
    train(context, TrainingStage(name, task, trainer, settings, config.lm_batch_size, 0, context.precision()))


def _clap_work(context: WorkerContext) -> None:
    """Train band-clap."""
    import torch

    from tinymusician.house_band.train_clap import ClapTask, new_clap
    from tinymusician.training.engine import AdamConfig

    config, corpus, seed = _config(context), _corpus(context), context.recipe.training.seed
    torch.manual_seed(seed)
    tokenizer = _tokenizer(context)
    task = ClapTask(new_clap(len(tokenizer)), tokenizer, corpus.train, corpus.validation, config.clap_batch_size, seed)
    trainer = _trainer_config(context, config.clap_steps, 1e-3, "band-clap")
    train(
        context,
        TrainingStage(
            "band-clap", task, trainer, AdamConfig(beta2=0.999), config.clap_batch_size, 0, context.precision()
        ),
    )


def _tagger_work(context: WorkerContext) -> None:
    """Train band-tagger, in float32: its spectra are computed inside."""
    import torch

    from tinymusician.house_band.tagger_model import BandTagger
    from tinymusician.house_band.train_tagger import CLASSES, TaggerTask
    from tinymusician.training.engine import AdamConfig

    config, corpus, seed = _config(context), _corpus(context), context.recipe.training.seed
    torch.manual_seed(seed)
    task = TaggerTask(BandTagger(CLASSES), corpus.train, corpus.validation, config.tagger_batch_size, seed)
    task.module.to(context.device)
    trainer = _trainer_config(context, config.tagger_steps, 2e-3, "band-tagger")
    train(context, TrainingStage("band-tagger", task, trainer, AdamConfig(), config.tagger_batch_size, 0, "float32"))


def finish(context: WorkerContext) -> RunResult:
    """Write a folder for each model in float16, and publish them as one artifact."""
    metrics = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_models(context, folder)
        for stage in _config(context).parts:
            history = history_of(context, stage)
            metrics[stage] = {"step": history.best_step, **history.best}
        record = context.record
        manifest = publish(
            context.run.store,
            folder,
            name=f"{context.recipe.name}-weights",
            kind="pretrained",
            recipe=record.recipe,
            lineage={"run": record.id, "versions": record.versions, "git": record.git, "seeds": record.seeds},
            metrics=metrics,
            licence=HOUSE_BAND_LICENCE,
        )
    return RunResult(artifact=manifest.reference, metrics=metrics)


def _write_models(context: WorkerContext, folder: Path) -> None:
    from tinymusician.house_band.model import STUDENT_LAYERS, TEACHER_LAYERS
    from tinymusician.house_band.pretrain import assemble, save_clap
    from tinymusician.house_band.tagger_model import BandTagger
    from tinymusician.house_band.train_tagger import CLASSES

    tokenizer, parts = _tokenizer(context), _config(context).parts
    for member, layers in (("band-large", TEACHER_LAYERS), ("band-small", STUDENT_LAYERS)):
        if member in parts:
            assemble(folder / member, _load_trained_codec(context), tokenizer, _best_weights(context, member), layers)
    if "band-clap" in parts:
        save_clap(folder / "band-clap", tokenizer, _best_weights(context, "band-clap"))
    if "band-tagger" in parts:
        tagger = BandTagger(CLASSES)
        tagger.load_state_dict(_best_weights(context, "band-tagger"))
        tagger.save(folder / "band-tagger")


def _checkpoints(context: WorkerContext, stage: str) -> CheckpointManager:
    from tinymusician.training.checkpoint import CheckpointManager

    return CheckpointManager(context.run.store, context.run.checkpoints_key(stage), MONITORS[stage])


def _best_weights(context: WorkerContext, stage: str) -> dict[str, Tensor]:
    return dict(best_checkpoint(context, stage).state.weights)


def work(context: WorkerContext) -> None:
    """Run all stages in order, each from its own checkpoint."""
    from tinymusician.house_band.model import STUDENT_LAYERS, TEACHER_LAYERS

    stages: dict[str, tuple[Work, ...]] = {
        "codec": (_codec_work, _tokens_work),
        "band-large": (partial(_language_model_work, name="band-large", layers=TEACHER_LAYERS),),
        "band-small": (partial(_language_model_work, name="band-small", layers=STUDENT_LAYERS),),
        "band-clap": (_clap_work,),
        "band-tagger": (_tagger_work,),
    }
    for name in [name for name in stages if name in _config(context).parts]:
        for stage in stages[name]:
            stage(context)
            gc.collect()  # the next stage needs the memory
            context.barrier()


def run(run: RunStore) -> RunResult:
    """The driver: all workers run the stages, one publishes the artifact."""
    return run_training_driver(run, work, finish)
