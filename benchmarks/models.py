"""Models of a usual size for the benchmarks, with random weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F


class Encoder(torch.nn.Module):
    def __init__(self, width: int, heads: int, causal: bool = False):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1 = torch.nn.LayerNorm(width)
        self.qkv = torch.nn.Linear(width, 3 * width)
        self.out = torch.nn.Linear(width, width)
        self.norm2 = torch.nn.LayerNorm(width)
        self.up = torch.nn.Linear(width, 4 * width)
        self.down = torch.nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        n, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = torch.matmul(q, k.transpose(-1, -2)) * (width // self.heads) ** -0.5
        if mask is not None:
            scores = scores + mask
        y = torch.matmul(torch.softmax(scores, -1), v)
        x = x + self.out(y.transpose(1, 2).reshape(n, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(torch.nn.Module):
    """ViT-B/16 by default: 12 layers, 197 tokens of width 768."""

    def __init__(self, width=768, heads=12, layers=12, size=224, patch=16):
        super().__init__()
        self.patch = torch.nn.Conv2d(3, width, patch, patch)
        self.token = torch.nn.Parameter(torch.zeros(1, 1, width))
        tokens = (size // patch) ** 2 + 1
        self.position = torch.nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.layers = torch.nn.ModuleList(Encoder(width, heads) for _ in range(layers))
        self.norm = torch.nn.LayerNorm(width)
        self.head = torch.nn.Linear(width, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token, x], 1) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


class Bottleneck(torch.nn.Module):
    def __init__(self, inputs: int, middle: int, stride: int):
        super().__init__()
        outputs = 4 * middle
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(inputs, middle, 1, bias=False),
            torch.nn.BatchNorm2d(middle),
            torch.nn.ReLU(),
            torch.nn.Conv2d(middle, middle, 3, stride, 1, bias=False),
            torch.nn.BatchNorm2d(middle),
            torch.nn.ReLU(),
            torch.nn.Conv2d(middle, outputs, 1, bias=False),
            torch.nn.BatchNorm2d(outputs),
        )
        self.shortcut = torch.nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = torch.nn.Sequential(
                torch.nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                torch.nn.BatchNorm2d(outputs),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class ResNet50(torch.nn.Module):
    def __init__(self):
        super().__init__()
        layers = [torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False), torch.nn.BatchNorm2d(64)]
        layers += [torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2, 1)]
        inputs = 64
        for middle, count, stride in [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]:
            for i in range(count):
                layers.append(Bottleneck(inputs, middle, stride if i == 0 else 1))
                inputs = 4 * middle
        self.body = torch.nn.Sequential(*layers)
        self.head = torch.nn.Linear(inputs, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Decoder(torch.nn.Module):
    """A decoder over embeddings (1, length, width); ``layers`` sets its number of ops."""

    def __init__(self, width=512, heads=8, layers=6, length=128):
        super().__init__()
        self.layers = torch.nn.ModuleList(Encoder(width, heads) for _ in range(layers))
        self.norm = torch.nn.LayerNorm(width)
        self.head = torch.nn.Linear(width, 1000)
        self.register_buffer("mask", torch.full((length, length), -1e4).triu(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, self.mask)
        return self.head(self.norm(x))


class Residual(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1 = torch.nn.GroupNorm(32, inputs)
        self.conv1 = torch.nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = torch.nn.GroupNorm(32, outputs)
        self.conv2 = torch.nn.Conv2d(outputs, outputs, 3, padding=1)
        same = inputs == outputs
        self.shortcut = torch.nn.Identity() if same else torch.nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class VAEDecoder(torch.nn.Module):
    """A latent diffusion decoder: (1, 4, 16, 16) -> (1, 3, 128, 128), 20 million parameters.

    As in SDXL's, some residual streams reach 1e5 (ml-stable-diffusion #304).
    """

    def __init__(self, channels=(256, 256, 256, 128), blocks=3):
        super().__init__()
        self.stem = torch.nn.Conv2d(4, channels[0], 3, padding=1)
        self.middle = Residual(channels[0], channels[0])
        self.levels = torch.nn.ModuleList()
        inputs = channels[0]
        for outputs in channels:
            level = torch.nn.ModuleList()
            for _ in range(blocks):
                level.append(Residual(inputs, outputs))
                inputs = outputs
            self.levels.append(level)
        self.norm = torch.nn.GroupNorm(32, inputs)
        self.tail = torch.nn.Conv2d(inputs, 3, 3, padding=1)
        with torch.no_grad():
            self.levels[1][1].conv2.weight.mul_(3e5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.middle(self.stem(x))
        for i, level in enumerate(self.levels):
            for block in level:
                x = block(x)
            if i + 1 < len(self.levels):
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.tail(F.silu(self.norm(x)))


def named(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """A model and one input for it."""
    torch.manual_seed(0)
    if name == "vit-12":
        return ViT().eval(), torch.randn(1, 3, 224, 224)
    if name == "resnet-50":
        return ResNet50().eval(), torch.randn(1, 3, 224, 224)
    if name == "decoder-6":
        return Decoder().eval(), torch.randn(1, 128, 512)
    if name == "vae-decoder":
        return VAEDecoder((128, 128, 128, 64)).eval(), torch.randn(1, 4, 16, 16)
    if name == "vae-decoder-wide":
        return VAEDecoder().eval(), torch.randn(1, 4, 16, 16)
    raise ValueError(name)
