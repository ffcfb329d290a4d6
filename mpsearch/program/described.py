"""What a package says of itself beside its program: labels, descriptions, metadata.

coremltools' own conversion of a loaded program drops it. What stands below the imports is copied
into ``op_selector.py`` as it is, so that it needs no more than they give.
"""

from __future__ import annotations

from .._ct import ct


def unclassified(program):  # type: ignore[no-untyped-def]
    """Take the classifier's last op off a program, in place, since it cannot be cast.

    The probabilities become the output, under the name that they have in the package. Returns the
    ``ct.ClassifierConfig`` by which a conversion adds it again; None where there is none.
    """
    (function,) = program.functions.values()
    found = function.find_ops(op_type="classify")
    if not found:
        return None
    (op,) = found
    label, probabilities = op.outputs
    given = op.probabilities
    values = op.classes.val
    labels = [getattr(item, "val", item) for item in getattr(values, "ls", values)]
    labels = [item.item() if hasattr(item, "item") else item for item in labels]
    named, listed = probabilities.name, op.classes.op
    kept = [given if var is probabilities else var for var in function.outputs if var is not label]
    function.set_outputs(kept)
    function.remove_ops([op] if listed is None else [op, listed])
    given.name = named
    return ct.ClassifierConfig(
        labels, predicted_feature_name=label.name, predicted_probabilities_output=named
    )


#: Where an FP32 package of mpsearch.convert holds, as JSON, the PyTorch layer and line of every op;
#: those who are given the mixed package have no use for it.
ORIGINS = "mpsearch.origins"


def described(made, source):  # type: ignore[no-untyped-def]
    """The ``MLModel`` ``made`` with the descriptions and the metadata of the package ``source``.

    Both by their specifications; what a package says of its own making stays.
    """
    spec = made.get_spec()
    metadata = dict(source.description.metadata.userDefined)
    metadata.update(spec.description.metadata.userDefined)
    spec.description.metadata.CopyFrom(source.description.metadata)
    spec.description.metadata.userDefined.update(metadata)
    spec.description.metadata.userDefined.pop(ORIGINS, None)
    for ours, theirs in (
        (spec.description.input, source.description.input),
        (spec.description.output, source.description.output),
    ):
        given = {feature.name: feature for feature in theirs}
        for feature in ours:
            if feature.name in given:
                feature.CopyFrom(given[feature.name])
    return ct.models.MLModel(spec, weights_dir=made.weights_dir, skip_model_load=True)
