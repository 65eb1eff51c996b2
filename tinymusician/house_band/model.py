"""The house band's configuration: a small MusicGen family in MusicGen's own architecture."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer as WordTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    GenerationConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
)

from tinymusician.models.protocols import Codec, Musicgen, Tokenizer

WIDTH, HEADS, FEED_FORWARD = 256, 8, 1024
TEACHER_LAYERS, STUDENT_LAYERS = 8, 2
TEXT_LAYERS, TEXT_TOKENS = 2, 48
MAX_POSITIONS = 1024
GUIDANCE, TOP_K, TEMPERATURE = 2.0, 64, 0.7
"""Sampling settings, chosen on validation captions (docs/lab-log.md)."""


def train_tokenizer(captions: Iterable[str]) -> Tokenizer:
    """A word-level tokenizer of the captions: lower case, punctuation split off, ending in `</s>` like T5's."""
    words = WordTokenizer(models.WordLevel(unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    special = ["<pad>", "</s>", "<unk>"]
    words.train_from_iterator(captions, trainers.WordLevelTrainer(vocab_size=512, special_tokens=special))
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer: Tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
    )
    return tokenizer


def _decoder_config(codes: int, num_codebooks: int, layers: int) -> MusicgenDecoderConfig:
    """The decoder's configuration; code `codes`, one past the codebook, starts and pads sequences."""
    config = MusicgenDecoderConfig(
        vocab_size=codes,
        hidden_size=WIDTH,
        ffn_dim=FEED_FORWARD,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_codebooks=num_codebooks,
        pad_token_id=codes,
        bos_token_id=codes,
        max_position_embeddings=MAX_POSITIONS,
        dropout=0.0,
        audio_channels=1,
        tie_word_embeddings=False,
    )
    config.decoder_start_token_id = codes
    return config


def build_musicgen(codec: Codec, vocabulary: int, layers: int) -> Musicgen:
    """A MusicGen with random language-model weights around a trained codec."""
    codes = codec.config.codebook_size
    text = T5Config(
        vocab_size=vocabulary,
        d_model=WIDTH,
        d_kv=32,
        d_ff=512,
        num_layers=TEXT_LAYERS,
        num_heads=8,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        is_encoder_decoder=False,
        use_cache=False,
    )
    decoder = _decoder_config(codes, codec.config.num_quantizers, layers)
    model: Musicgen = MusicgenForConditionalGeneration(
        MusicgenConfig.from_sub_models_config(text, codec.config, decoder)
    )
    model.audio_encoder.load_state_dict(codec.state_dict())
    model.generation_config = GenerationConfig(
        pad_token_id=codes,
        bos_token_id=codes,
        decoder_start_token_id=codes,
        do_sample=True,
        guidance_scale=GUIDANCE,
        max_length=254,
        top_k=TOP_K,
        temperature=TEMPERATURE,
    )
    return model
