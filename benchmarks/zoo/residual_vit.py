"""A 32-block residual ViT in which keeping whole op types in FP32 does not help."""

import torch
import torch.nn.functional as F

SOURCE = "deep ViT on the Neural Engine"
CAUSES = {"amplified", "accumulation", "cancellation", "overflow"}
CULPRITS = {"add", "linear", "matmul", "softmax", "layer_norm", "gelu", "conv"}
BUDGET = 5e-2


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


class Block(torch.nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.attention = Attention(width, 2)
        self.up, self.down = torch.nn.Linear(width, 2 * width), torch.nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(torch.nn.Module):
    def __init__(self, width: int = 32, blocks: int = 32):
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm = torch.nn.LayerNorm(width)
        self.head = torch.nn.Linear(width, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def build(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = ViT()
    with torch.no_grad():
        # From the 16th block on the stream rides on an offset that every norm takes away again:
        # what matters loses its digits wherever the stream is added to or read in FP16.
        model.blocks[15].down.bias.fill_(600.0)
    return model


def samples(count: int = 6, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 9, 32, generator=generator) for _ in range(count)]
