"""Architectures as people have them: transformers, diffusers and plain torch, with random weights.

Each entry makes a model and its samples; ``real`` at the size that is published (in part with fewer
layers, so that it fits 20 GiB and an hour), otherwise narrow and shallow, to see whether it goes
through at all. Those in ``HELD_OUT`` are only measured, never looked at while something is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Samples = list[dict[str, Tensor]]
Made = tuple[nn.Module, Samples]

#: What narrows a transformer: its width, heads, layers and vocabulary under their usual names.
_NARROW = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 200,
}


def _make(library: str, model: str, config: str, **options: Any) -> nn.Module:
    module = importlib.import_module(library)
    torch.manual_seed(0)
    made = getattr(module, model)(getattr(module, config)(**options))
    return made.eval()


def _settled(model: nn.Module, samples: Samples) -> nn.Module:
    """A model whose batch norms have seen its samples, without which random weights vanish."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for sample in samples if norms else []:
            model(**sample)
    return model.eval()


def _tokens(vocabulary: int, length: int, mask: bool = True, **more: int) -> Callable[[], Samples]:
    def draw() -> Samples:
        generator = torch.Generator().manual_seed(1)
        found = []
        for place in range(8):
            ids = torch.randint(3, vocabulary, (1, length), generator=generator)
            sample = {"input_ids": ids}
            if mask:
                seen = torch.ones(1, length, dtype=torch.long)
                seen[:, length - place % 3 * 2 :] = 0
                sample["attention_mask"] = seen if place % 3 else torch.ones_like(seen)
            for name, size in more.items():
                sample[name] = torch.randint(3, vocabulary, (1, size), generator=generator)
            found.append(sample)
        return found

    return draw


def _floats(name: str, *shape: int) -> Callable[[], Samples]:
    def draw() -> Samples:
        generator = torch.Generator().manual_seed(1)
        return [{name: torch.randn(*shape, generator=generator)} for _ in range(8)]

    return draw


def _text(
    model: str,
    config: str,
    real: dict[str, Any],
    narrow: dict[str, Any] | None = None,
    mask: bool = True,
) -> Callable[[bool], Made]:
    """A transformer over tokens; a decoder without its cache."""

    def build(full: bool) -> Made:
        options = real if full else {**real, **_NARROW, **(narrow or {})}
        made = _make("transformers", model, config, **options, use_cache=False)
        return made, _tokens(200, 64 if full else 16, mask)()

    return build


def _vision(
    model: str,
    config: str,
    real: dict[str, Any],
    narrow: dict[str, Any] | None = None,
    size: tuple[int, int] = (224, 64),
    name: str = "pixel_values",
) -> Callable[[bool], Made]:
    def build(full: bool) -> Made:
        options = real if full else {**real, **(narrow or {})}
        side = size[0] if full else size[1]
        samples = _floats(name, 1, 3, side, side)()
        return _settled(_make("transformers", model, config, **options), samples), samples

    return build


def _audio(
    model: str, config: str, real: dict[str, Any], narrow: dict[str, Any], *shape: int, name: str
) -> Callable[[bool], Made]:
    def build(full: bool) -> Made:
        options = real if full else {**real, **(narrow or {})}
        return _make("transformers", model, config, **options), _floats(name, *shape)()

    return build


def _diffused(
    model: str, real: dict[str, Any], narrow: dict[str, Any], draw: Callable[[bool], Samples]
) -> Callable[[bool], Made]:
    def build(full: bool) -> Made:
        torch.manual_seed(0)
        options = real if full else {**real, **(narrow or {})}
        made = getattr(importlib.import_module("diffusers"), model)(**options)
        return made.eval(), draw(full)

    return build


_SMALL_VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 16,
}
_SMALL_SPEECH = {
    **{k: v for k, v in _NARROW.items() if k != "vocab_size"},
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_ENCODER = {"vocab_size": 30522}
_DECODER = {"vocab_size": 32000, "num_hidden_layers": 4, "hidden_size": 1024}
_KV = {"num_key_value_heads": 2}


def _t5(full: bool) -> Made:
    options: dict[str, Any] = {} if full else {"d_model": 64, "d_kv": 16, "d_ff": 128}
    options |= {"num_layers": 6 if full else 2, "num_heads": 8 if full else 4, "vocab_size": 1000}
    made = _make("transformers", "T5EncoderModel", "T5Config", **options)
    return made, _tokens(200, 64 if full else 16)()


def _t5_whole(full: bool) -> Made:
    options: dict[str, Any] = {} if full else {"d_model": 64, "d_kv": 16, "d_ff": 128}
    options |= {"num_layers": 6 if full else 2, "num_heads": 8 if full else 4, "vocab_size": 1000}
    made = _make("transformers", "T5Model", "T5Config", **options, use_cache=False)
    return made, _tokens(200, 32 if full else 12, False, decoder_input_ids=8)()


def _gpt2(full: bool) -> Made:
    narrow = {} if full else {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 200}
    made = _make("transformers", "GPT2LMHeadModel", "GPT2Config", **narrow, use_cache=False)
    return made, _tokens(200, 64 if full else 16)()


def _distilbert(full: bool) -> Made:
    narrow = {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4, "vocab_size": 200}
    made = _make("transformers", "DistilBertModel", "DistilBertConfig", **({} if full else narrow))
    return made, _tokens(200, 64 if full else 16)()


_WHISPER = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "vocab_size": 200,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "max_source_positions": 50,
}


class _WhisperEncoder(nn.Module):
    def __init__(self, full: bool) -> None:
        super().__init__()
        options = {} if full else _WHISPER
        self.encoder = _make("transformers", "WhisperModel", "WhisperConfig", **options).encoder

    def forward(self, input_features: Tensor) -> Tensor:
        return self.encoder(input_features).last_hidden_state


class _WhisperDecoder(nn.Module):
    def __init__(self, full: bool) -> None:
        super().__init__()
        options = {} if full else _WHISPER
        self.decoder = _make("transformers", "WhisperModel", "WhisperConfig", **options).decoder

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        found = self.decoder(
            input_ids, encoder_hidden_states=encoder_hidden_states, use_cache=False
        )
        return found.last_hidden_state


def _whisper_decoder(full: bool) -> Made:
    made = _WhisperDecoder(full).eval()
    width, length = (384, 1500) if full else (64, 50)
    samples = _tokens(200, 16, False)()
    for sample, more in zip(samples, _floats("x", 1, length, width)(), strict=True):
        sample["encoder_hidden_states"] = more["x"]
    return made, samples


def _clip_text(full: bool) -> Made:
    options = {} if full else {**_NARROW, "eos_token_id": 199}
    made = _make("transformers", "CLIPTextModel", "CLIPTextConfig", **options)
    return made, _tokens(200, 77 if full else 16, False)()


def _unet(full: bool) -> Made:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "sample_size": 32 if full else 16,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (160, 320) if full else (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 768 if full else 32,
        "attention_head_dim": 8,
    }
    made = importlib.import_module("diffusers").UNet2DConditionModel(**options).eval()
    generator = torch.Generator().manual_seed(1)
    side, width = options["sample_size"], options["cross_attention_dim"]
    samples = [
        {
            "sample": torch.randn(1, 4, side, side, generator=generator),
            "timestep": torch.tensor([place * 100]),
            "encoder_hidden_states": torch.randn(1, 16, width, generator=generator),
        }
        for place in range(8)
    ]
    return made, samples


class _Decoder(nn.Module):
    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        return self.vae.decode(z).sample


def _vae(full: bool) -> Made:
    torch.manual_seed(0)
    widths = (64, 128, 256) if full else (32, 32)
    vae = importlib.import_module("diffusers").AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        latent_channels=4,
    )
    return _Decoder(vae).eval(), _floats("z", 1, 4, 32 if full else 8, 32 if full else 8)()


class _Tagger(nn.Module):
    """LSTM over word vectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, num_layers=2, bidirectional=True, batch_first=True)
        self.out = nn.Linear(2 * width, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0])


def _lstm(full: bool) -> Made:
    torch.manual_seed(0)
    width = 256 if full else 32
    return _Tagger(width).eval(), _floats("x", 1, 32, width)()


class _Padded(nn.Module):
    """PyTorch's own encoder with a padding mask."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=padding)


def _padded(full: bool) -> Made:
    torch.manual_seed(0)
    width = 512 if full else 32
    samples = _floats("x", 1, 24, width)()
    for place, sample in enumerate(samples):
        sample["padding"] = torch.arange(24)[None] >= 24 - place % 4
    return _Padded(width, 6 if full else 2).eval(), samples


class _GRU(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x)[0]


def _gru(full: bool) -> Made:
    torch.manual_seed(0)
    width = 256 if full else 32
    return _GRU(width).eval(), _floats("x", 1, 32, width)()


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.BatchNorm2d(width),
            nn.Hardswish(),
            nn.Conv2d(width, width, 1),
            nn.GroupNorm(4, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _mobile(full: bool) -> Made:
    torch.manual_seed(0)
    width, side = (96, 128) if full else (16, 32)
    made = nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1),
        *[_Block(width) for _ in range(8 if full else 2)],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    )
    samples = _floats("input", 1, 3, side, side)()
    return _settled(made.eval(), samples), samples


def _spectrogram(full: bool) -> Made:
    narrow: dict[str, Any] = {k: v for k, v in _NARROW.items() if k != "vocab_size"}
    narrow |= {"max_length": 128, "num_mel_bins": 32}
    options = {"num_hidden_layers": 6} if full else narrow
    made = _make("transformers", "ASTModel", "ASTConfig", **options)
    size = (1024, 128) if full else (128, 32)
    return made, _floats("input_values", 1, *size)()


ARCHITECTURES: dict[str, Callable[[bool], Made]] = {
    "bert": _text("BertModel", "BertConfig", _ENCODER),
    "distilbert": _distilbert,
    "roberta": _text("RobertaModel", "RobertaConfig", {}),
    "albert": _text("AlbertModel", "AlbertConfig", {"hidden_size": 768}, {"embedding_size": 32}),
    "electra": _text("ElectraModel", "ElectraConfig", {}, {"embedding_size": 32}),
    "mpnet": _text("MPNetModel", "MPNetConfig", {}),
    "deberta_v2": _text("DebertaV2Model", "DebertaV2Config", {}),
    "modernbert": _text(
        "ModernBertModel", "ModernBertConfig", {"num_hidden_layers": 4}, {"pad_token_id": 0}
    ),
    "xlm_roberta": _text("XLMRobertaModel", "XLMRobertaConfig", {}),
    "t5_encoder": _t5,
    "t5": _t5_whole,
    "gpt2": _gpt2,
    "llama": _text("LlamaForCausalLM", "LlamaConfig", _DECODER, _KV),
    "mistral": _text("MistralForCausalLM", "MistralConfig", _DECODER, _KV),
    "qwen2": _text("Qwen2ForCausalLM", "Qwen2Config", _DECODER, _KV),
    "qwen3": _text("Qwen3ForCausalLM", "Qwen3Config", _DECODER, {**_KV, "head_dim": 16}),
    "gemma": _text("GemmaForCausalLM", "GemmaConfig", _DECODER, {**_KV, "head_dim": 16}),
    "gemma2": _text("Gemma2ForCausalLM", "Gemma2Config", _DECODER, {**_KV, "head_dim": 16}),
    "phi": _text("PhiForCausalLM", "PhiConfig", _DECODER),
    "gpt_neox": _text("GPTNeoXForCausalLM", "GPTNeoXConfig", _DECODER),
    "opt": _text("OPTForCausalLM", "OPTConfig", {}, {"word_embed_proj_dim": 64, "ffn_dim": 128}),
    "bloom": _text("BloomForCausalLM", "BloomConfig", {"n_layer": 4}, {"n_head": 4}),
    "clip_text": _clip_text,
    "clip_vision": _vision("CLIPVisionModel", "CLIPVisionConfig", {}, _SMALL_VISION),
    "siglip_vision": _vision("SiglipVisionModel", "SiglipVisionConfig", {}, _SMALL_VISION),
    "vit": _vision("ViTModel", "ViTConfig", {}, _SMALL_VISION),
    "deit": _vision("DeiTModel", "DeiTConfig", {}, _SMALL_VISION),
    "dinov2": _vision(
        "Dinov2Model", "Dinov2Config", {"image_size": 518}, {**_SMALL_VISION, "image_size": 96}
    ),
    "beit": _vision("BeitModel", "BeitConfig", {}, _SMALL_VISION),
    "swin": _vision(
        "SwinModel",
        "SwinConfig",
        {},
        {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "image_size": 64},
    ),
    "convnext": _vision(
        "ConvNextModel", "ConvNextConfig", {}, {"hidden_sizes": [16, 32, 64, 64], "depths": [1] * 4}
    ),
    "segformer": _vision(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {},
        {"hidden_sizes": [16, 32, 40, 64], "depths": [1] * 4, "decoder_hidden_size": 32},
    ),
    "mobilevit": _vision("MobileViTModel", "MobileViTConfig", {}, {}, (256, 64)),
    "mobilenet_v2": _vision("MobileNetV2Model", "MobileNetV2Config", {}, {}),
    "resnet50": _vision(
        "ResNetModel",
        "ResNetConfig",
        {},
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]},
    ),
    "efficientnet": _vision(
        "EfficientNetModel",
        "EfficientNetConfig",
        {"width_coefficient": 1.0, "hidden_dim": 1280},
        {},
        (224, 64),
    ),
    "regnet": _vision(
        "RegNetModel",
        "RegNetConfig",
        {},
        {"hidden_sizes": [16, 32], "depths": [1, 1], "embedding_size": 16, "groups_width": 8},
    ),
    "sam_vision": _vision(
        "SamVisionModel",
        "SamVisionConfig",
        {"image_size": 512, "num_hidden_layers": 6, "initializer_range": 0.02},
        {**_SMALL_VISION, "mlp_dim": 128, "output_channels": 32, "global_attn_indexes": [1]},
        (512, 64),
    ),
    "whisper_encoder": lambda full: (
        _WhisperEncoder(full).eval(),
        _floats("input_features", 1, 80, 3000 if full else 100)(),
    ),
    "whisper_decoder": _whisper_decoder,
    "wav2vec2": _audio(
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        {"num_hidden_layers": 6},
        _SMALL_SPEECH,
        *(1, 16000),
        name="input_values",
    ),
    "hubert": _audio(
        "HubertModel",
        "HubertConfig",
        {"num_hidden_layers": 6},
        _SMALL_SPEECH,
        *(1, 16000),
        name="input_values",
    ),
    "ast": _spectrogram,
    "unet": _unet,
    "vae_decoder": _vae,
    "lstm": _lstm,
    "gru": _gru,
    "padded_encoder": _padded,
    "mobile_blocks": _mobile,
}

#: Never looked at while something is built.
HELD_OUT = frozenset(sorted(ARCHITECTURES)[1::2])
