"""Window attention of a super-resolution Swin: large scores within windows."""

import torch

SOURCE = "SinSR"
CAUSES = {"overflow"}
CULPRITS = {"matmul"}
BUDGET = 1e-2


class Attention(torch.nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = torch.nn.Linear(width, 3 * width)
        self.out = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = torch.matmul(q, k.transpose(-1, -2)) * (width // self.heads) ** -0.5
        y = torch.matmul(torch.softmax(scores, -1), v)
        return self.out(y.transpose(1, 2).reshape(n, length, width))


class Windows(torch.nn.Module):
    """Image (1, C, H, W), attention within 4x4 windows."""

    def __init__(self, width: int = 32, size: int = 4):
        super().__init__()
        self.size = size
        self.stem = torch.nn.Conv2d(3, width, 3, padding=1)
        self.attention = Attention(width, 2)
        self.tail = torch.nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        n, c, h, w = y.shape
        s = self.size
        z = y.reshape(n, c, h // s, s, w // s, s).permute(0, 2, 4, 3, 5, 1)
        z = self.attention(z.reshape(-1, s * s, c))
        z = z.reshape(n, h // s, w // s, s, s, c).permute(0, 5, 1, 3, 2, 4)
        return self.tail(y + z.reshape(n, c, h, w))


def build(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = Windows()
    with torch.no_grad():
        model.attention.qkv.bias[:64] = 100.0
    return model


def samples(count: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(1, 3, 16, 16, generator=generator) for _ in range(count)]
