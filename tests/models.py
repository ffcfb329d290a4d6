"""Small models for the tests, importable as package.module:factory."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F


class Norm(torch.nn.Module):
    """RMSNorm over the last axis: squares overflow from 256 on."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Net(torch.nn.Module):
    """(1, 4, 8) -> (1, 4, 3), broken in FP16 by inputs of some hundreds."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Norm(), Norm()])
        self.head = torch.nn.Linear(8, 3)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks[0](x)
        return self.head(self.drop(self.blocks[1](600 * x)))


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return Net()


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [500 * torch.randn(1, 4, 8, generator=generator) for _ in range(4)]


def no_module() -> int:
    return 3


class Activations(torch.nn.Module):
    """The activations that stop coremltools in half models (#2470, #2480)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(8, 8),
            torch.nn.LeakyReLU(0.1),
            torch.nn.Linear(8, 8),
            torch.nn.RReLU(),
            torch.nn.Linear(8, 8),
            torch.nn.PReLU(),
            torch.nn.Linear(8, 8),
            torch.nn.ELU(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Mixed(torch.nn.Module):
    """A part in half precision, with the casts that go with it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(8, 8)
        self.b = torch.nn.Linear(8, 8).half()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).half()).float() + x.to(torch.bfloat16).to(torch.float32)


@dataclasses.dataclass
class Outputs:
    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...]
    nothing: torch.Tensor | None = None


class Many(torch.nn.Module):
    """Several inputs, integers and booleans among them; a dataclass with a tuple inside."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(16, 8)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, ids, scale=None, mask=None, flag=True):
        h = self.embed(ids)
        if mask is not None:
            h = h * mask.unsqueeze(-1)
        if scale is not None:
            h = h * scale
        return Outputs(self.head(h), (h, h.sum(1)))


class Unconvertible(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svd(x)[1]


def unconvertible() -> torch.nn.Module:
    return Unconvertible()


class TwinBlocks(torch.nn.Module):
    """Two module lists with the same names and types inside."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
        self.decoder = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (*self.encoder, *self.decoder):
            x = F.relu(layer(x))
        return x


class Reciprocal(torch.nn.Module):
    """coremltools 9.0 adds 1e-4 to what it inverts (#2773): wrong for small inputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.reciprocal(1e-6 * x)


class Cache(torch.nn.Module):
    """Attention over a KV cache of 4 places, written at place 1: (1, 1, 8) -> (1, 1, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(1, 4, 8))
        self.k = torch.nn.Linear(8, 8)
        self.norm = Norm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(600 * x)
        self.keys[:, 1:2, :] = self.k(h)
        scores = torch.softmax(h @ self.keys.transpose(-1, -2), -1)
        return scores @ self.keys


class Carried(torch.nn.Module):
    """Has an input and an output with names that Core ML has other uses for."""

    def forward(self, x, state):
        moved = torch.tanh(x + state)
        return {"out": moved.sum(-1, keepdim=True), "list": moved}
