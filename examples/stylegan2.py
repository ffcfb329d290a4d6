"""A StyleGAN2 generator whose demodulation overflows (coremltools #2110, #1671).

No layer's output exceeds 65504, yet FP16 fails: the sum of squares inside the modulated
convolution does, and the reciprocal root of it is 0.
"""

import torch
import torch.nn.functional as F

import mpsearch

BUDGET = 1e-2


class ModulatedConv(torch.nn.Module):
    """Karras et al. 2020, equations 1 and 3: scale the weights by the style, then normalise."""

    def __init__(self, inputs: int, outputs: int, style: int, kernel: int = 3, demodulate=True):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.affine = torch.nn.Linear(style, inputs)
        torch.nn.init.constant_(self.affine.bias, 1.0)
        self.demodulate = demodulate

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        style = self.affine(w)[0]
        weight = self.weight * style[None, :, None, None]
        if self.demodulate:
            weight = weight * torch.rsqrt((weight * weight).sum((1, 2, 3), keepdim=True) + 1e-8)
        return F.conv2d(x, weight, padding=self.weight.shape[-1] // 2)


class Block(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int, style: int, size: int):
        super().__init__()
        self.first = ModulatedConv(inputs, outputs, style)
        self.second = ModulatedConv(outputs, outputs, style)
        self.rgb = ModulatedConv(outputs, 3, style, kernel=1, demodulate=False)
        self.noise = torch.nn.Parameter(0.1 * torch.randn(1, 1, size, size))

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear")
        x = F.leaky_relu(self.first(x, w) + self.noise, 0.2)
        x = F.leaky_relu(self.second(x, w) + self.noise, 0.2)
        return x, 0.02 * self.rgb(x, w)


class Generator(torch.nn.Module):
    """Style vector (1, style) -> image (1, 3, H, W)."""

    def __init__(self, channels: int = 64, style: int = 64, blocks: int = 3):
        super().__init__()
        self.mapping = torch.nn.Sequential(
            torch.nn.Linear(style, style), torch.nn.LeakyReLU(0.2), torch.nn.Linear(style, style)
        )
        self.constant = torch.nn.Parameter(torch.randn(1, channels, 4, 4))
        self.blocks = torch.nn.ModuleList(
            Block(channels, channels, style, 8 * 2**i) for i in range(blocks)
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        w = self.mapping(z)
        x, image = self.constant, None
        for block in self.blocks:
            x, rgb = block(x, w)
            if image is not None:
                rgb = rgb + F.interpolate(image, scale_factor=2.0, mode="bilinear")
            image = rgb
        return image


def build(small: bool = False, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = Generator(channels=16, blocks=2) if small else Generator()
    with torch.no_grad():
        for block in model.blocks:  # strong styles, as trained generators have them
            for conv in (block.first, block.second):
                conv.affine.bias.mul_(100)
    return model


def samples(count: int = 8, small: bool = False, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed + 1)
    return [torch.randn(1, 64, generator=generator) for _ in range(count)]


if __name__ == "__main__":
    result = mpsearch.optimize(build(), samples(), BUDGET)
    print(result.explanation)
    print("wrote", result.save("stylegan2-mixed"))
