"""What transformers' configurations of a MusicGen's parts say where a config.json is silent."""

from __future__ import annotations

from tinymusician.json_types import JsonObject

T5: JsonObject = {"num_layers": 6, "d_model": 512, "num_heads": 8, "d_ff": 2048, "d_kv": 64, "vocab_size": 32128}
ENCODEC: JsonObject = {
    "audio_channels": 1,
    "codebook_size": 1024,
    "compress": 2,
    "hidden_size": 128,
    "kernel_size": 7,
    "last_kernel_size": 7,
    "norm_type": "weight_norm",
    "num_filters": 32,
    "num_lstm_layers": 2,
    "num_residual_layers": 1,
    "residual_kernel_size": 3,
    "sampling_rate": 24_000,
    "target_bandwidths": [1.5, 3.0, 6.0, 12.0, 24.0],
    "upsampling_ratios": [8, 5, 4, 2],
    "use_conv_shortcut": True,
}
DECODER: JsonObject = {
    "num_hidden_layers": 24,
    "hidden_size": 1024,
    "ffn_dim": 4096,
    "num_codebooks": 4,
    "vocab_size": 2048,
    "max_position_embeddings": 2048,
    "num_attention_heads": 16,
}
