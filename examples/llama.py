"""A LLaMA-style decoder with RMSNorm and one channel at 600 (swift-transformers #95).

Large language models carry a few "massive" channels through the residual stream. RMSNorm squares
them: 600 * 600 is beyond 65504, and the norm returns zeros.
"""

import torch
import torch.nn.functional as F

import mpsearch

BUDGET = 1e-2


class RMSNorm(torch.nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Attention(torch.nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = torch.nn.Linear(width, width, bias=False)
        self.k = torch.nn.Linear(width, width, bias=False)
        self.v = torch.nn.Linear(width, width, bias=False)
        self.o = torch.nn.Linear(width, width, bias=False)

    def forward(self, x, cos, sin, mask):
        n, length, width = x.shape

        def split(y: torch.Tensor) -> torch.Tensor:
            return y.reshape(n, length, self.heads, width // self.heads).transpose(1, 2)

        q, k = rotate(split(self.q(x)), cos, sin), rotate(split(self.k(x)), cos, sin)
        scores = torch.matmul(q, k.transpose(-1, -2)) * (width // self.heads) ** -0.5 + mask
        out = torch.matmul(torch.softmax(scores, -1), split(self.v(x)))
        return self.o(out.transpose(1, 2).reshape(n, length, width))


class Layer(torch.nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention_norm = RMSNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = RMSNorm(width)
        self.gate = torch.nn.Linear(width, 3 * width, bias=False)
        self.up = torch.nn.Linear(width, 3 * width, bias=False)
        self.down = torch.nn.Linear(3 * width, width, bias=False)

    def forward(self, x, cos, sin, mask):
        x = x + self.attention(self.attention_norm(x), cos, sin, mask)
        y = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(torch.nn.Module):
    """Token ids (1, L) -> logits (1, L, vocabulary)."""

    def __init__(self, width=128, heads=4, layers=4, vocabulary=256, length=32):
        super().__init__()
        self.embed = torch.nn.Embedding(vocabulary, width)
        self.layers = torch.nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm = RMSNorm(width)
        self.head = torch.nn.Linear(width, vocabulary, bias=False)
        size = width // heads
        angles = torch.outer(
            torch.arange(length).float(), 1e4 ** -(torch.arange(0, size, 2).float() / size)
        )
        angles = torch.cat([angles, angles], -1)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.register_buffer("mask", torch.full((length, length), float("-inf")).triu(1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin, self.mask)
        return self.head(self.norm(x))


def build(small: bool = False, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = Decoder(64, 2, 2, 64, 16) if small else Decoder()
    with torch.no_grad():
        model.embed.weight[:, 7] = 600.0  # the massive channel
        for layer in model.layers:
            # Trained norms scale the massive channel down and the others up.
            for norm in (layer.attention_norm, layer.mlp_norm):
                norm.weight.fill_(40.0)
                norm.weight[7] = 0.5
        model.norm.weight.fill_(40.0)
        model.norm.weight[7] = 0.5
    return model


def samples(count: int = 8, small: bool = False, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed + 2)
    vocabulary, length = (64, 16) if small else (256, 32)
    return [torch.randint(0, vocabulary, (1, length), generator=generator) for _ in range(count)]


if __name__ == "__main__":
    result = mpsearch.optimize(build(), samples(), BUDGET)
    print(result.explanation)
    print("wrote", result.save("llama-mixed"))
