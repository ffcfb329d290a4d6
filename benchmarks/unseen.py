"""Two families of small models to judge the search by: ``flips:N``, ``mixed:N``, for any N.

The search was not made with them in view. In ``flips``, something flips on some inputs where FP16
computes it; in ``mixed``, easy and hard inputs come together.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BUDGETS = (3e-4, 1e-3, 3e-3, 1e-2)
FLIPS = "pick top ordered either steep levels cell nearest ratio scatter moments sharp waves angle"
MIXED = "spread level share decibels swell bell loud calm stream summary peak skew product decay"
KINDS = {
    "flips": [*FLIPS.split(), "kernel", "wrapped", "crossing", "signed"],
    "mixed": [*MIXED.split(), "contrast"],
}
LONG = {"angle": 32, "kernel": 14, "top": 14, "moments": 12}  # parts of many ops
LEAST = {"mixed:1": 1.5, "mixed:7": 1.4, "mixed:12": 0.9}  # strengths that are raised


class Part(torch.nn.Module):
    """Something hard, of one kind and a random strength, added to a stream, mixed in, or a gate."""

    def __init__(self, kind: str, width: int, random: np.random.Generator):
        super().__init__()
        self.kind = kind
        self.one = torch.nn.Linear(width, width)
        self.two = torch.nn.Linear(width, width)
        self.table = torch.nn.Parameter(torch.randn(16, width))
        self.strength = float(random.uniform())
        self.amount = float(10 ** random.uniform(-1.8, 0.0))
        self.mode = int(random.integers(3))

    def at(self, weak: float, strong: float) -> float:
        """The strength as a number between two, evenly in its logarithm."""
        return float(weak * (strong / weak) ** self.strength)

    def forward(self, x: Tensor) -> Tensor:
        compute = self.flips if self.kind in KINDS["flips"] else self.mixed
        value = compute(x, self.one(x), self.two(x))
        if self.mode == 0:
            return x + self.amount * value
        if self.mode == 1:
            return x + self.amount * (value - x)
        return x * (1.0 + self.amount * torch.tanh(value))

    def flips(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """What a part of ``flips`` computes from a stream and two maps of it."""
        match self.kind:
            case "pick":  # the token of the highest score
                best = (a[..., :1] + self.at(1, 100)).argmax(1, keepdim=True)
                return torch.gather(x, 1, best.expand(1, 1, x.shape[-1]))
            case "top":  # the tokens of the highest scores, by rank
                _, best = torch.topk(a[..., :1] * self.at(0.3, 1) + self.at(0.3, 10), 3, dim=1)
                taken = torch.gather(b, 1, best.expand(1, 3, x.shape[-1]))
                return taken[:, :1] + 0.5 * taken[:, 1:2] - 0.3 * taken[:, 2:]
            case "ordered":  # one map in the order of another
                return torch.gather(b, 1, torch.argsort(a + self.at(0.1, 10), dim=1))
            case "either":  # one of two maps, by which is larger
                return torch.where(a - b > self.at(0.01, 1), a, -b)
            case "steep":  # a gate that opens within a small difference
                return x * torch.clamp(self.at(3, 300) * (a - b), 0.0, 1.0)
            case "levels":  # rounded to a grid
                return torch.round(a * self.at(16, 1)) * (1.0 / self.at(16, 1))
            case "cell":  # a row of a table, by where a value falls
                place = torch.floor(torch.sigmoid(a[..., 0] * self.at(0.3, 2)) * 16.0)
                return F.embedding(torch.clamp(place, 0.0, 15.0).long(), self.table)
            case "nearest":  # the row of a table that is nearest
                rows = self.table * self.at(0.2, 2)
                apart = (x * x).sum(-1, keepdim=True) - 2.0 * x @ rows.T + (rows * rows).sum(-1)
                return F.embedding(apart.argmin(-1), self.table)
            case "ratio":  # a quotient by what can be nearly 0
                return a * b / (b * b + self.at(1e-1, 1e-4))
            case "scatter":  # deviations from the mean of tokens, by their spread
                c = (a + self.at(1, 50)) - (a + self.at(1, 50)).mean(1, keepdim=True)
                return c / torch.sqrt((c * c).mean(1, keepdim=True) + self.at(1e-2, 1e-5))
            case "moments":  # a variance as a difference of moments
                y = a + self.at(0.3, 10)
                mean = y.mean(-1, keepdim=True)
                var = torch.relu((y * y).mean(-1, keepdim=True) - mean * mean)
                return (y - mean) / torch.sqrt(var + self.at(1e-1, 1e-3))
            case "sharp":  # attention at a low temperature
                scores = a @ b.transpose(1, 2) * (self.at(2, 60) / x.shape[-1] ** 0.5)
                return torch.softmax(scores, -1) @ x
            case "waves":  # large phases
                return torch.cos(a * self.at(2, 60))
            case "angle":  # of a point in the plane, with a cut
                return torch.atan2(a, b - self.at(0.1, 1)) * 0.3
            case "kernel":  # linear attention with denominators that can be nearly 0
                q, k = torch.relu(a - self.at(0.1, 2)), F.elu(b) + 1.0
                total = q @ k.sum(1, keepdim=True).transpose(1, 2)
                return q @ (k.transpose(1, 2) @ x) / (total + self.at(1e-1, 1e-4))
            case "wrapped":  # beyond whole numbers
                y = a * self.at(0.3, 8)
                return y - torch.floor(y)
            case "crossing":  # a step where a running sum has passed a level
                return torch.where(torch.cumsum(a, 1) > self.at(0.1, 3), x, b)
        return torch.sign(a - b * self.at(0.1, 1)) * torch.sqrt(torch.abs(b) + 0.1)  # signed

    def mixed(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """What a part of ``mixed`` computes from a stream and two maps of it."""
        match self.kind:
            case "spread":  # a layer norm by hand, hardly guarded
                c = x - x.mean(-1, keepdim=True)
                return c * torch.rsqrt((c * c).mean(-1, keepdim=True) + self.at(1e-3, 1e-8))
            case "level":  # an RMS norm of something scaled
                y = a * self.at(1, 60)
                return y / torch.sqrt((y * y).mean(-1, keepdim=True) + self.at(1e-2, 1e-6))
            case "share":  # of a sum of sizes
                a = torch.abs(a)
                return 8.0 * a / (a.sum(1, keepdim=True) + self.at(1e-2, 1e-7))
            case "decibels":  # the logarithm of a power
                return 0.1 * torch.log(a * a + self.at(1e-2, 1e-9))
            case "swell":  # a softplus by hand, whose exponential grows
                grown = torch.exp(torch.clamp(a * self.at(0.3, 5), max=30.0))
                return torch.log(1.0 + grown) * (1.0 / self.at(0.3, 5))
            case "bell":  # how near one map is to another
                return torch.exp((a - b) * (a - b) * -self.at(0.03, 3))
            case "loud":  # open to what has energy
                power = (x * x).mean((1, 2), keepdim=True)
                return a * (power / (power + self.at(1e-1, 1e-6)))
            case "calm":  # closed to what varies between tokens
                c = x - x.mean(1, keepdim=True)
                return a * torch.sigmoid(1.0 - self.at(0.1, 30) * (c * c).mean(1, keepdim=True))
            case "stream":  # large updates that pass through
                size = self.at(3, 3000)
                return (x + size * torch.tanh(a) - size * torch.tanh(b)) * (1.0 / size)
            case "summary":  # tokens weighed by a softmax of scores as large as the input
                return (torch.softmax(a * self.at(0.3, 10), 1) * b).sum(1, keepdim=True)
            case "peak":  # a smooth maximum
                peak = torch.logsumexp(a * self.at(0.3, 10), 1, keepdim=True)
                return peak * (1.0 / self.at(0.3, 10))
            case "skew":  # the third moment by the second
                c = x - x.mean(1, keepdim=True)
                var = (c * c).mean(1, keepdim=True)
                third = (c * c * c).mean(1, keepdim=True)
                return third / (var * torch.sqrt(var) + self.at(1e-2, 1e-6))
            case "product":  # of two scaled maps, scaled back
                size = self.at(1, 30)
                return (a * size) * (b * size) / ((torch.abs(b) + 1.0) * size**2)
            case "decay":  # a running mean with exponential weights
                w = torch.exp(torch.clamp(a * self.at(0.3, 3), -20.0, 20.0))
                return torch.cumsum(w * b, 1) / (torch.cumsum(w, 1) + self.at(1e-2, 1e-7))
        rest = x.mean(1, keepdim=True)  # contrast, with the mean of the tokens
        return (x - rest) / (torch.abs(x) + torch.abs(rest) + self.at(1e-1, 1e-6))


class Mixer(torch.nn.Module):
    """A linear layer, a convolution over tokens, or attention."""

    def __init__(self, width: int, random: np.random.Generator):
        super().__init__()
        self.kind, self.act = int(random.choice((0, 0, 1, 1, 2))), int(random.integers(4))
        self.linear = torch.nn.Linear(width, width)
        self.conv = torch.nn.Conv1d(width, width, 3, padding=1)
        self.maps = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(3))
        self.norm = torch.nn.LayerNorm(width) if random.random() < 0.4 else torch.nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == 2:
            q, k, v = (each(self.norm(x)) for each in self.maps)
            scores = q @ k.transpose(1, 2) * x.shape[-1] ** -0.5
            return x + self.linear(torch.softmax(scores, -1) @ v)
        y = self.conv(x.transpose(1, 2)).transpose(1, 2) if self.kind else self.linear(x)
        return self.norm((F.gelu, F.silu, torch.tanh, F.leaky_relu)[self.act](y))


class Drawn(torch.nn.Module):
    """Tokens or a picture through mixers with hard parts between them, and one or two heads."""

    def __init__(self, family: str, number: int):
        super().__init__()
        random = np.random.default_rng([list(KINDS).index(family), number])
        torch.manual_seed(1000 * number + len(family))
        width = int(random.choice((16, 24, 32, 48, 64)))
        self.picture = bool(random.random() < 0.3)
        self.shape = (3, 8, 8) if self.picture else (int(random.integers(6, 17)), width)
        self.stem = torch.nn.Conv2d(3, width, 2, stride=2)
        layers: list[torch.nn.Module] = []
        kinds = random.choice(KINDS[family], int(random.choice((1, 2, 2, 3, 3, 4))), replace=False)
        while sum(LONG.get(str(kind), 9) for kind in kinds) > 40:
            kinds = kinds[:-1]
        for share in np.array_split(kinds, int(random.integers(2, 4))):
            layers += [Mixer(width, random), *(Part(str(k), width, random) for k in share)]
        for layer in layers:
            if isinstance(layer, Part):
                least = LEAST.get(f"{family}:{number}", 0.0)
                layer.strength, layer.amount = max(layer.strength, least), max(layer.amount, least)
        self.layers = torch.nn.Sequential(*layers)
        self.pool = int(random.integers(3))
        self.heads = torch.nn.ModuleList(
            torch.nn.Linear(width, 8) for _ in range(1 + int(random.random() < 0.3))
        )
        self.budget = BUDGETS[int(random.integers(4))]
        for weight in self.parameters():
            if weight.dim() > 1:  # as large a stream after a layer as before it
                torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        if self.picture:
            x = self.stem(x).flatten(2).transpose(1, 2)
        x = self.layers(x)
        first = (x.mean(1), x.amax(1), x)[self.pool]
        outputs = tuple(head(y) for head, y in zip(self.heads, (first, x[:, -1]), strict=False))
        return outputs if len(outputs) > 1 else outputs[0]


def sample(family: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """An input: easy or hard, by chance."""
    x = torch.randn(1, *shape, generator=generator)
    chance, size, place = torch.rand(3, generator=generator).tolist()
    if family == "flips":  # every fourth varies little
        alike = x[:, :1] + 0.02 * 10**size * x
        return alike if chance < 0.25 else x * (0.5 + size)
    if chance < 0.5:
        return x * 10 ** (3.5 * size - 2.0)
    if chance < 0.6:  # blank
        return torch.zeros_like(x) + (0.0 if place < 0.5 else 2.0 * size)
    if chance < 0.7:  # silence
        return x * 10 ** (-3.0 - 3.0 * size)
    if chance < 0.85:  # outliers
        return torch.where(torch.abs(x) > 2.5, x * 10 ** (0.5 + 1.5 * size), x)
    ramp = torch.linspace(0.0, 1.0, x[0].numel()).reshape(x.shape)  # structured
    return torch.sin(ramp * (3.0 + 60.0 * place)) * 10 ** (2.0 * size - 1.0)


def drawn(name: str, seed: int, count: int) -> tuple[torch.nn.Module, float, list[Tensor]]:
    """A model, its budget, and so many inputs of it, on which alone ``seed`` bears."""
    family, number = name.split(":")
    model = Drawn(family, int(number)).eval()
    generator = torch.Generator().manual_seed(1000 * int(number) + seed)
    return model, model.budget, [sample(family, model.shape, generator) for _ in range(count)]
