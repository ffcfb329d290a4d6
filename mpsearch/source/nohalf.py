"""Makes a forward pass written for half precision run in FP32: ``x.half()`` and the like.

The class is copied into generated ``op_selector.py`` files of models with half-precision parts: a
trace made under it has the op names that the search saw. It uses nothing but torch.
"""

import torch
from torch.overrides import TorchFunctionMode


class NoHalf(TorchFunctionMode):
    """Takes FP32 wherever half precision is asked for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        half = (torch.float16, torch.bfloat16)
        kwargs = dict(kwargs or {})
        if func in (torch.Tensor.half, torch.Tensor.bfloat16):
            func, args = torch.Tensor.float, args[:1]
        elif any(a is h for a in (*args, kwargs.get("dtype")) for h in half):
            args = tuple(torch.float32 if any(a is h for h in half) else a for a in args)
            if any(kwargs.get("dtype") is h for h in half):
                kwargs["dtype"] = torch.float32
        return func(*args, **kwargs)
