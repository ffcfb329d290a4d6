"""A diffusion transformer whose QK^T reaches 1.6 million before it is scaled."""

import torch

SOURCE = "CosyVoice3 DiT, FluidInference mobius#42"
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


class DiT(torch.nn.Module):
    def __init__(self, width: int = 64, layers: int = 3):
        super().__init__()
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(layers))
        self.blocks = torch.nn.ModuleList(Attention(width, 2) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return x


def build(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = DiT()
    with torch.no_grad():
        for block in model.blocks:
            # Channels shared by all tokens: large logits that differ little between keys.
            block.qkv.bias[:128] = 220.0
    return model


def samples(count: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 24, 64, generator=generator) for _ in range(count)]
