"""A digits classifier trained in seconds, with the budget as a drop in accuracy.

Contrast normalisation over raw intensities (0..255) squares and sums them: beyond FP16's range.
"""

import numpy as np
import torch

import mpsearch

BUDGET = 0.01  # at most one point of accuracy


class Digits(torch.nn.Module):
    """Images (N, 1, 8, 8) in 0..255 -> logits (N, 10)."""

    def __init__(self):
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(1, 16, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(16, 32, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
        )
        self.head = torch.nn.Linear(32 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        contrast = torch.sqrt((x * x).sum((1, 2, 3), keepdim=True) + 1.0)
        return self.head(self.features(8.0 * x / contrast))


def dataset() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.tensor(bunch.images * (255 / 16), dtype=torch.float32).unsqueeze(1)
    return images, torch.tensor(bunch.target)


def train(model: torch.nn.Module, steps: int) -> None:
    images, labels = dataset()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        batch = torch.randint(0, 1400, (64,), generator=generator)
        loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def build(small: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    model = Digits()
    train(model, 60 if small else 300)
    return model.eval()


def samples(count: int = 8, small: bool = False) -> list[tuple[tuple[torch.Tensor], torch.Tensor]]:
    """Batches of 32 images that training has not seen, with their labels."""
    images, labels = dataset()
    cuts = [slice(1400 + 32 * i, 1432 + 32 * i) for i in range(count)]
    return [((images[cut],), labels[cut]) for cut in cuts]


def accuracy(outputs: list[dict[str, np.ndarray]], targets: list[torch.Tensor]) -> float:
    """Share of right decisions over all batches."""
    right = [
        next(iter(out.values())).argmax(-1) == np.asarray(target)
        for out, target in zip(outputs, targets, strict=True)
    ]
    return float(np.concatenate(right).mean())


METRIC = accuracy
TARGETS = "pairs"  # each sample comes with its labels

if __name__ == "__main__":
    result = mpsearch.optimize(build(), samples(), BUDGET, METRIC, targets=TARGETS)
    print(result.explanation)
    print("wrote", result.save("digits-mixed"))
