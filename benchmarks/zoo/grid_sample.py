"""grid_sample on a grid 4,096 pixels wide: FP16 coordinates miss by whole pixels."""

import torch
import torch.nn.functional as F

SOURCE = "warping at 4K"
CAUSES = {"amplified", "cancellation"}
CULPRITS = {"resample", "add", "mul", "clip", "sub"}
BUDGET = 2e-2


class Warp(torch.nn.Module):
    """Image (1, 1, 4, 4096) and a flow in pixels (1, 64, 2) -> samples (1, 1, 1, 64)."""

    def forward(self, image: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
        width = image.shape[-1]
        x = 2.0 * flow[..., 0] / (width - 1) - 1.0
        y = flow[..., 1] * 0.5
        grid = torch.stack([x, y], -1)[:, None]
        return F.grid_sample(image, grid, align_corners=True)


def build() -> torch.nn.Module:
    return Warp()


def samples(count: int = 8, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count):
        image = torch.randn(1, 1, 4, 4096, generator=generator)
        flow = torch.rand(1, 64, 2, generator=generator)
        # Whole pixels below 2048 and even ones above: exact in FP16 as they come.
        pixel = (flow[..., 0] * 1000).round() * 4
        out.append((image, torch.stack([pixel, flow[..., 1]], -1)))
    return out
