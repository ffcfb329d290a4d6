"""What storing weights otherwise saves: EfficientViT, plain, with FP16 and with int8 weights.

python -m benchmarks.weights

Bytes of the package on disk and errors, measured on the package as read back. At 3e-4 some
convolutions stay FP32; in the third block all of them are kept there (``keep_fp32``), so that FP16
storage has something to do within a loose budget.
"""

from __future__ import annotations

import torch

import mpsearch
from examples import efficientvit

CASES = [(2e-2, []), (3e-4, []), (2e-2, ["type:conv"])]


def main() -> None:
    torch.set_num_threads(1)
    columns = ["budget", "kept by hand", "weights", "FP32 ops", "stored so", "bytes", "error"]
    print("| " + " | ".join([*columns, "held-out"]) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for budget, pins in CASES:
        for storage in (None, "fp16", "int8"):
            result = mpsearch.optimize(
                efficientvit.build(),
                efficientvit.samples(),
                budget,
                conversion=mpsearch.Conversion(weight_dtype=storage),
                constraints=mpsearch.Constraints(keep_fp32=pins),
            )
            stored = result.weights
            cells = [f"{budget:g}", ", ".join(pins) or "-", storage or "as typed"]
            cells += [str(len(result.fp32_ops))]
            cells += ["-" if stored is None else f"{stored.weights} of {stored.candidates}"]
            cells += [f"{result.package_bytes:,}", f"{result.error:.3g}"]
            print("| " + " | ".join([*cells, f"{result.heldout_error:.3g}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
