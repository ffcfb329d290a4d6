"""Ten architectures at real widths, with few layers: importable as package.module:factory.

Each has a builder of a seed and samples of a seed and a count. Weights are random. Odd seeds make
weights that leave FP16's range somewhere, so that a search has something to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Sample = dict[str, Tensor]


class Attention(nn.Module):
    """Multi-head self-attention with an additive mask: (1, T, C) -> (1, T, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        shape = (x.shape[0], x.shape[1], self.heads, x.shape[2] // self.heads)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-1, -2) / math.sqrt(shape[-1]) + mask
        return self.out((torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(x.shape))


class Text(nn.Module):
    """A BERT-like encoder layer of width 256 and a pooler of 512 x 512."""

    def __init__(self, hot: float) -> None:
        super().__init__()
        self.hot = hot
        self.words = nn.Embedding(1000, 256)
        self.places = nn.Embedding(32, 256)
        self.attention = Attention(256, 4)
        self.norms = nn.ModuleList([nn.LayerNorm(256), nn.LayerNorm(256)])
        self.up, self.down = nn.Linear(256, 512), nn.Linear(512, 256)
        self.widen, self.pool = nn.Linear(256, 512), nn.Linear(512, 512)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.words(ids) + self.places(places)
        hidden = (1.0 - mask[:, None, None, :].float()) * -1e9
        x = self.norms[0](x + self.attention(x, hidden))
        x = self.norms[1](x * self.hot + self.down(F.gelu(self.up(x))))
        weight = mask[:, :, None].float()
        mean = (x * weight).sum(1) / weight.sum(1)
        return x, torch.tanh(self.pool(self.widen(mean)))


class Vision(nn.Module):
    """A residual network of 64 and 128 channels at 8 x 8."""

    def __init__(self, hot: float) -> None:
        super().__init__()
        self.hot = hot
        self.stem = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(64)
        self.wide = nn.Conv2d(64, 128, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(128, 128, 3, padding=1, groups=128)
        self.point = nn.Conv2d(128, 128, 1)
        self.head = nn.Linear(128, 512)
        self.classes = nn.Linear(512, 100)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(image)))
        x = F.hardswish(self.wide(x))
        x = x + self.point(F.relu6(self.deep(x)))
        x = x * self.hot
        x = x / (x.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return self.classes(F.hardswish(self.head(x.mean((2, 3)))))


class UNet(nn.Module):
    """Two levels of 64 and 128 channels, both ways up by transposed convolutions."""

    def __init__(self, hot: float) -> None:
        super().__init__()
        self.hot = hot
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.down = nn.Conv2d(64, 128, 3, stride=2, padding=1)
        self.below = nn.Conv2d(128, 128, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(8, 128)
        self.up = nn.ConvTranspose2d(128, 128, 2, stride=2)
        self.shifted = nn.ConvTranspose2d(256, 64, 3, stride=2, padding=1, output_padding=1)
        self.last = nn.Conv2d(128, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        first = F.silu(self.first(image))
        down = F.silu(self.down(first))
        below = F.silu(self.norm(self.below(down) * self.hot))
        x = torch.cat([self.up(below), down], 1)
        x = torch.cat([F.silu(self.shifted(x)), first], 1)
        return torch.sigmoid(self.last(x))


class Audio(nn.Module):
    """A spectrogram by a convolution of 256 taps, then an LSTM and a GRU of width 128."""

    def __init__(self, hot: float) -> None:
        super().__init__()
        self.hot = hot
        self.basis = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        time = torch.arange(256) * 2 * math.pi / 256
        angles = torch.arange(129)[:, None] * time * 1.0
        window = torch.hann_window(256)
        waves = torch.cat([angles.cos() * window, angles.sin() * window])
        self.basis.weight = nn.Parameter(waves[:, None])
        self.lstm = nn.LSTM(129, 128, batch_first=True)
        self.gru = nn.GRU(128, 128, batch_first=True)
        self.head = nn.Linear(128, 256)

    def forward(self, sound: Tensor) -> Tensor:
        real, imaginary = self.basis(sound[:, None] * self.hot).chunk(2, 1)
        power = real.square() + imaginary.square()
        x = torch.log(power.sqrt() + 1e-5).transpose(1, 2)
        x, _ = self.lstm(x)
        x, _ = self.gru(x)
        return torch.log_softmax(self.head(x), -1)


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Llama(nn.Module):
    """A decoder layer of width 256 with rotary positions, RMSNorm and SwiGLU of 512."""

    def __init__(self, hot: float) -> None:
        super().__init__()
        self.hot = hot
        self.words = nn.Embedding(1000, 256)
        self.norms = nn.ModuleList([RMSNorm(256), RMSNorm(256)])
        self.q, self.k = nn.Linear(256, 256, bias=False), nn.Linear(256, 128, bias=False)
        self.v, self.out = nn.Linear(256, 128, bias=False), nn.Linear(256, 256, bias=False)
        self.gate, self.up = nn.Linear(256, 512, bias=False), nn.Linear(256, 512, bias=False)
        self.down = nn.Linear(512, 256, bias=False)
        self.head = nn.Linear(256, 1000, bias=False)

    def turned(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        rates = 10000.0 ** (-torch.arange(half) / half)
        angles = torch.arange(x.shape[2])[:, None] * rates
        a, b = x.chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) * self.hot
        h = self.norms[0](x)
        batch, length = ids.shape
        q = self.turned(self.q(h).view(batch, length, 4, 64).transpose(1, 2))
        k = self.turned(self.k(h).view(batch, length, 2, 64).transpose(1, 2))
        v = self.v(h).view(batch, length, 2, 64).transpose(1, 2)
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        later = torch.full((length, length), -torch.finfo(torch.float32).max).triu(1)
        weights = torch.softmax(q @ k.transpose(-1, -2) / 8 + later, -1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, length, 256))
        h = self.norms[1](x)
        return self.head(x / self.hot + self.down(F.silu(self.gate(h)) * self.up(h)))


class Detector(nn.Module):
    """Features of 64 and 128 channels, scores on a grid, and the boxes of the eight best."""

    def __init__(self, hot: float) -> None:
        super().__init__()
        self.hot = hot
        self.first = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        self.second = nn.Conv2d(64, 128, 3, stride=2, padding=1)
        self.lateral = nn.Conv2d(64, 128, 1)
        self.scores = nn.Conv2d(128, 1, 3, padding=1)
        self.boxes = nn.Conv2d(128, 4, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        first = F.leaky_relu(self.first(image), 0.1)
        second = F.leaky_relu(self.second(first), 0.1)
        x = self.lateral(first) + F.interpolate(second, scale_factor=2.0, mode="nearest")
        scores = (self.scores(x) * 20).flatten(1).sigmoid()
        size = x.shape[2]
        line = torch.linspace(0.0, 1.0, size) * self.hot
        centers = torch.stack([line.repeat(size), line.repeat_interleave(size)], -1)
        sizes = self.boxes(x).flatten(2).transpose(1, 2).exp()
        best, places = scores.topk(8)
        boxes = torch.cat([centers + sizes[..., :2], sizes[..., 2:] * self.hot], -1)
        return best, boxes.gather(1, places[..., None].expand(-1, -1, 4))


class VAE(nn.Module):
    """A decoder from (1, 64) by 128 channels to a picture, with attention over its pixels."""

    def __init__(self, hot: float) -> None:
        super().__init__()
        self.hot = hot
        self.start = nn.Linear(64, 2048)
        self.norm = nn.GroupNorm(32, 128)
        self.attention = Attention(128, 1)
        self.up = nn.Conv2d(128, 64, 3, padding=1)
        self.norm_up = nn.GroupNorm(16, 64)
        self.last = nn.Conv2d(64, 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.start(latent).view(-1, 128, 4, 4)
        h = self.norm(x).flatten(2).transpose(1, 2)
        x = x + self.attention(h, torch.zeros(1)).transpose(1, 2).reshape(x.shape)
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        x = F.silu(self.norm_up(self.up(x) * self.hot))
        return torch.tanh(self.last(F.interpolate(x, scale_factor=2.0, mode="nearest")))


class Points(nn.Module):
    """A PointNet of widths 64 to 512 on 64 points, with features of their distances."""

    def __init__(self, hot: float) -> None:
        super().__init__()
        self.hot = hot
        self.first = nn.Conv1d(3 + 8, 128, 1)
        self.second = nn.Conv1d(128, 512, 1)
        self.turn = nn.Linear(512, 9)
        self.head, self.classes = nn.Linear(512, 512), nn.Linear(512, 40)

    def forward(self, points: Tensor) -> Tensor:
        x = points - points.mean(1, keepdim=True)
        squares = (x[:, :, None] - x[:, None]).square().sum(-1)
        scales = 10 ** torch.linspace(-1.0, 1.0, 8)
        near = torch.exp(-squares[..., None] * scales).mean(2)
        x = torch.cat([x, near], -1).transpose(1, 2)
        x = self.second(F.relu(self.first(x * self.hot)) / self.hot)
        top = F.relu(x).amax(2)
        turn = self.turn(top).view(-1, 3, 3) + torch.eye(3)
        spread = (points @ turn).var(1, unbiased=False)
        return self.classes(F.relu(self.head(top))) * (1 + spread.sum(-1, keepdim=True)).log()


class States(nn.Module):
    """Attention over a cache of 8 places, a state, that is written at place 1."""

    def __init__(self, hot: float) -> None:
        super().__init__()
        self.hot = hot
        self.register_buffer("keys", torch.zeros(1, 8, 256))
        self.norm = nn.LayerNorm(256)
        self.k, self.q = nn.Linear(256, 256), nn.Linear(256, 256)
        self.wide, self.out = nn.Linear(256, 512), nn.Linear(512, 512)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        self.keys[:, 1:2, :] = self.k(h)
        weights = torch.softmax(self.q(h) @ self.keys.transpose(-1, -2) / 16, -1)
        h = self.wide(x + weights @ self.keys) * self.hot
        return self.out(h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6))


class Ints(nn.Module):
    """Integers in, of two dtypes: divided, compared, looked up, and counted."""

    def __init__(self, hot: float) -> None:
        super().__init__()
        self.hot = hot
        self.table = nn.Embedding(500, 256)
        self.mix, self.wide = nn.Linear(256, 512), nn.Linear(512, 512)
        self.last = nn.Linear(512, 64)

    def forward(self, ids: Tensor, position: Tensor) -> Tensor:
        share = position / torch.tensor(7)
        kept = (ids > 20).float()
        x = self.table(ids) * kept[..., None] * torch.sin(share)[..., None]
        x = x.sum(1) / (kept.sum(1, keepdim=True) + 1)
        h = F.softplus(self.mix(x)) * self.hot
        h = h / (h.sum(-1, keepdim=True) + 1e-3)
        return self.last(F.elu(self.wide(h * 512)))


@dataclass(frozen=True)
class Architecture:
    """A model to sweep over.

    Attributes
    ----------
    module
        Its class; the argument is the factor that leaves FP16's range where it is large.
    inputs
        Per input: its shape, and how it is drawn (``normal``, ``uniform``, ``mask``,
        ``int64:N``, ``int32:N``).
    hot
        The factor of odd seeds.
    states
        Buffers that are states.
    """

    module: Callable[[float], nn.Module]
    inputs: dict[str, tuple[tuple[int, ...], str]]
    hot: float
    states: tuple[str, ...] = ()

    def build(self, seed: int) -> nn.Module:
        """The model in eval mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.module(self.hot if seed % 2 else 1.0).eval()

    def samples(self, seed: int, count: int) -> list[Sample]:
        """So many samples, each with a batch axis of 1."""
        generator = torch.Generator().manual_seed(seed)
        return [
            {name: _drawn(*spec, generator) for name, spec in self.inputs.items()}
            for _ in range(count)
        ]


def _drawn(shape: tuple[int, ...], kind: str, generator: torch.Generator) -> Tensor:
    if kind == "normal":
        return torch.randn(shape, generator=generator)
    if kind == "uniform":
        return torch.rand(shape, generator=generator)
    if kind == "mask":
        length = int(torch.randint(shape[-1] // 2, shape[-1] + 1, (1,), generator=generator))
        return (torch.arange(shape[-1]) < length).long().expand(shape).clone()
    dtype, _, below = kind.partition(":")
    drawn = torch.randint(0, int(below), shape, generator=generator)
    return drawn.to(getattr(torch, dtype))


ARCHITECTURES: dict[str, Architecture] = {
    "text": Architecture(
        Text, {"ids": ((1, 16), "int64:1000"), "mask": ((1, 16), "mask")}, hot=3e4
    ),
    "vision": Architecture(Vision, {"image": ((1, 3, 16, 16), "uniform")}, hot=2e3),
    "unet": Architecture(UNet, {"image": ((1, 3, 8, 8), "uniform")}, hot=1e6),
    "audio": Architecture(Audio, {"sound": ((1, 1280), "normal")}, hot=60.0),
    "llama": Architecture(Llama, {"ids": ((1, 12), "int64:1000")}, hot=600.0),
    "detector": Architecture(Detector, {"image": ((1, 3, 16, 16), "normal")}, hot=640.0),
    "vae": Architecture(VAE, {"latent": ((1, 64), "normal")}, hot=1e6),
    "points": Architecture(Points, {"points": ((1, 64, 3), "normal")}, hot=1e5),
    "states": Architecture(States, {"x": ((1, 1, 256), "normal")}, hot=1e3, states=("keys",)),
    "ints": Architecture(
        Ints, {"ids": ((1, 12), "int32:500"), "position": ((1, 12), "int64:40")}, hot=1e3
    ),
}


def worst(references: dict[str, Any], outputs: dict[str, Any]) -> float:
    """A metric without targets: the largest difference over the largest value."""
    differences = [
        abs(outputs[name].astype("f8") - r).max() / max(abs(r).max(), 1e-6)
        for name, r in references.items()
    ]
    return float(max(differences))


def agreement(outputs: list[dict[str, Any]], targets: Any) -> float:
    """A task metric: the less a mean of the first output is from its target, the better."""
    means = [float(next(iter(out.values())).astype("f8").mean()) for out in outputs]
    return -sum(abs(m - float(t)) for m, t in zip(means, targets, strict=True)) / len(means)


def targets(count: int) -> list[float]:
    """What :func:`agreement` compares with."""
    return [0.1 * place for place in range(count)]


def __getattr__(name: str) -> Callable[[], Any]:
    """Callables for the shell, as package.module:callable.

    ``text_7`` is the factory of ``text`` with seed 7; ``text_samples_7_4`` gives four samples of
    seed 7, and ``text_pairs_7_4`` the same with a target each.
    """
    kind, *rest = name.split("_")
    if kind in ARCHITECTURES and rest and rest[-1].isdigit():
        architecture, numbers = ARCHITECTURES[kind], [int(n) for n in rest if n.isdigit()]
        if rest[0] == "samples":
            return lambda: architecture.samples(*numbers)
        if rest[0] == "pairs":
            return lambda: list(
                zip(architecture.samples(*numbers), targets(numbers[1]), strict=True)
            )
        return lambda: architecture.build(*numbers)
    raise AttributeError(name)
