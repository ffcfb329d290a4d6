"""EfficientViT blocks with linear attention, on photographs (efficientvit #110, MNN #2953).

ReLU linear attention sums relu(k) v and relu(k) over all tokens and divides one by the other; with
thousands of tokens both sums leave FP16's range.
"""

import numpy as np
import torch
import torch.nn.functional as F

import mpsearch

BUDGET = 2e-2


class LinearAttention(torch.nn.Module):
    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = torch.nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.project = torch.nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        qkv = self.qkv(x).reshape(n, 3 * self.heads, c // self.heads, h * w)
        q, k, v = qkv.chunk(3, dim=1)
        q, k = F.relu(q), F.relu(k)
        v = F.pad(v, (0, 0, 0, 1), value=1.0)
        summed = torch.matmul(v, k.transpose(-1, -2))
        out = torch.matmul(summed, q)
        out = out[:, :, :-1] / (out[:, :, -1:] + 1e-15)
        return self.project(out.reshape(n, c, h, w))


class MBConv(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1, expand: int = 4):
        super().__init__()
        middle = inputs * expand
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(inputs, middle, 1),
            torch.nn.Hardswish(),
            torch.nn.Conv2d(middle, middle, 3, stride, 1, groups=middle),
            torch.nn.Hardswish(),
            torch.nn.Conv2d(middle, outputs, 1, bias=False),
            torch.nn.BatchNorm2d(outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.layers(x)
        return x + out if x.shape == out.shape else out


class EfficientViT(torch.nn.Module):
    """Photograph (1, 3, H, W) in 0..1 -> logits (1, classes)."""

    def __init__(self, width: int = 32, depth: int = 4, classes: int = 10):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, width, 3, 2, 1)
        self.stages = torch.nn.ModuleList()
        for i in range(depth):
            self.stages.append(MBConv(width, width, stride=2 if i == 0 else 1))
            self.stages.append(LinearAttention(width, heads=4))
        self.head = torch.nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = x + stage(x) if isinstance(stage, LinearAttention) else stage(x)
        return self.head(x.mean((2, 3)))


def build(small: bool = False, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = EfficientViT(16, 2) if small else EfficientViT()
    with torch.no_grad():
        for stage in model.stages:
            if isinstance(stage, LinearAttention):  # activations as large as trained ones
                stage.qkv.weight.mul_(8)
    return model


def samples(count: int = 8, small: bool = False, seed: int = 0) -> list[torch.Tensor]:
    """Crops of scikit-learn's two sample photographs."""
    from sklearn.datasets import load_sample_images

    size = 96 if small else 192
    random = np.random.default_rng(seed)
    crops = []
    for i in range(count):
        photo = load_sample_images().images[i % 2]
        top = random.integers(0, photo.shape[0] - size)
        left = random.integers(0, photo.shape[1] - size)
        crop = photo[top : top + size, left : left + size].astype(np.float32) / 255
        crops.append(torch.from_numpy(crop.transpose(2, 0, 1)[None].copy()))
    return crops


if __name__ == "__main__":
    result = mpsearch.optimize(build(), samples(), BUDGET)
    print(result.explanation)
    print("wrote", result.save("efficientvit-mixed"))
