"""An FP32 package by a conversion of the caller's own, for whatever takes a model."""

from __future__ import annotations

import inspect
from typing import Any

from .._ct import ct
from ..errors import InputError
from ..source.conversion import packaged
from ..source.data import argument_names, is_picture
from ..source.modules import TorchModel
from ..source.prepare import as_data, open_source
from .isolation import isolated

#: What is not the caller's to say.
_OURS = ("model", "source", "convert_to", "compute_precision")


@isolated
def convert(model: Any, sample: Any, **arguments: Any) -> Any:
    """Convert a PyTorch model to FP32 as ``ct.convert`` does with arguments of your own.

    What it gives is a model like any other: :func:`optimize`, :func:`analyze`, :func:`check` and
    the rest take it, and keep what it says of itself. Beside ``ct.convert`` it converts what
    coremltools does not know (:mod:`mpsearch.source.torch_ops`), traces models that take keyword
    arguments or give dicts, and remembers of which layer and line each op is.

    Parameters
    ----------
    model
        An ``nn.Module``, ``ScriptModule`` or ``ExportedProgram``, or the path of one.
    sample
        What the PyTorch model is called with: a tensor, a tuple, or a dict by argument name.
    **arguments
        As ``ct.convert`` takes them, with its own objects: ``inputs`` (``ct.ImageType`` with scale
        and bias, ``ct.RangeDim``, ``ct.EnumeratedShapes``), ``outputs``, ``states``,
        ``classifier_config``, ``minimum_deployment_target`` (default: iOS17), ``pass_pipeline``,
        ``compute_units``. An input that is not declared is declared as it is in ``sample``.

    Returns
    -------
    MLModel
        In FP32, not loaded for prediction unless ``skip_model_load=False`` is given.

    Raises
    ------
    InputError
        If an argument is not one of ``ct.convert``, or coremltools cannot convert the model.

    Examples
    --------
    >>> image = ct.ImageType(name="image", shape=(1, 3, 224, 224), scale=1 / 255)
    ... # doctest: +SKIP
    >>> package = mpsearch.convert(model, example, inputs=[image])  # doctest: +SKIP
    >>> result = mpsearch.optimize(package, photographs, budget=1e-3)  # doctest: +SKIP
    """
    known = [name for name in inspect.signature(ct.convert).parameters if name not in _OURS]
    for name in arguments:
        if name in _OURS:
            raise InputError(f"{name} is not to be given: the package is an ML Program in FP32")
        if name not in known:
            raise InputError(f"ct.convert has no argument {name!r}; it has {', '.join(known)}")
    source = open_source(model)
    if isinstance(source, ct.models.MLModel):
        raise InputError("model is a package already; give it to optimize as it is")
    arguments.setdefault("minimum_deployment_target", ct.target.iOS17)
    first = as_data(sample, argument_names(source)).samples[0]
    if pictures := [name for name, value in first.items() if is_picture(value)]:
        raise InputError(
            f"sample has a PIL image for {pictures[0]!r}; give the tensor that the PyTorch model "
            "takes there"
        )
    states = [state.name for state in arguments.pop("states", None) or ()]
    torch_model = TorchModel(source, states)
    torch_model.check(first)
    return packaged(torch_model, first, arguments)
