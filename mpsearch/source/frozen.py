"""TorchScript as coremltools reads it: what modules hold beside tensors stands in the graph.

coremltools takes tensors alone out of attributes, so that ``self.stride`` in scripted code is
unknown to it, and a branch that ``self.normalize`` decides is one. This source is copied into
generated ``op_selector.py`` files, as a conversion of frozen code has other op names. It imports
nothing from mpsearch.
"""

import torch


def frozen(scripted):  # type: ignore[no-untyped-def]
    """A copy whose attributes are constants, but for tensors, which keep their names.

    What ``torch.jit.freeze`` does, without the rest: it takes the names of parameters away.
    """
    made = torch._C._freeze_module(scripted._c, [], True, True)
    return torch.jit._recursive.wrap_cpp_module(made)
