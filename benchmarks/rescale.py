"""Powers of two instead of FP32.

python -m benchmarks.rescale zoo [cases ...]
python -m benchmarks.rescale equal [--count 2000]
python -m benchmarks.rescale optimal [--count 200]
python -m benchmarks.rescale real

``zoo``: every case with ``--rescale off``, ``fold``, ``insert``, and ``insert --rewrite``, and how
each result does on 100 fresh inputs. ``equal``: random programs, scaled as random magnitudes ask
for, beside themselves in FP32. ``optimal``: the multiplications inserted beside brute force over
exponents. ``real``: architectures of transformers and diffusers with random weights, scaled until
they overflow as reported, before and after.
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

import torch

import mpsearch
from benchmarks import zoo

GIVEN, FRESH = 16, 100


def zoo_rows(names: list[str]) -> None:
    from mpsearch.program.precision import Precision
    from mpsearch.scaling.scaled import with_changes
    from mpsearch.source.prepare import prepare

    modes = [("off", False), ("fold", False), ("insert", False), ("insert", True)]
    print("off : fold : insert : insert and --rewrite\n")
    print(
        "| case | ops | FP32 ops | scaled, inserted, rewritten | casts "
        "| error/budget | held-out/budget | fresh inputs over |\n" + "|---" * 8 + "|"
    )
    for name, case in zoo.cases(names).items():
        model, drawn = zoo.drawn(case, 0, 1)[0], zoo.drawn(case, 0, GIVEN + FRESH)[1]
        given, fresh = drawn[:GIVEN], drawn[GIVEN:]
        cells: dict[str, list[str]] = {}
        counts: list[int] = []
        for mode, spelled in modes:
            conversion = mpsearch.Conversion(rescale=mode, rewrite=spelled)
            found = mpsearch.optimize(
                model, given, case.BUDGET, numerics=zoo.numerics(case), conversion=conversion
            )
            assert found.config is not None
            prepared = prepare(model, fresh, "rel_l2", zoo.numerics(case))
            config = found.config
            prepared = with_changes(prepared, config.rewrites, config.scales)
            kept = {op.index for op in prepared.ops if op.name in set(found.fp32_ops)}
            evaluator = prepared.evaluator(cache_bytes=0)
            precision = Precision.of(kept, len(prepared.ops))
            losses = [e.loss for e in evaluator.evaluate_together(precision, range(len(fresh)))]
            scaled = found.rescaling
            row = {
                "kept": str(len(found.kept)),
                "scaled": (
                    f"{scaled.folded if scaled else 0}, {scaled.inserted if scaled else 0}, "
                    f"{len(found.rewrites)}"
                ),
                "casts": str(found.casts),
                "error": f"{found.error / case.BUDGET:.2g}",
                "held": f"{(found.heldout_error or 0.0) / case.BUDGET:.2g}",
                "over": f"{sum(loss > case.BUDGET for loss in losses) / len(losses):.0%}",
            }
            for key, value in row.items():
                cells.setdefault(key, []).append(value)
            counts.append(found.candidate_ops)
        joined = " | ".join(" : ".join(values) for values in cells.values())
        print(f"| {name} | {counts[0]} | {joined} |", flush=True)


def equal(count: int) -> None:
    from tests.test_rescale import scaled_equals_plain

    scaled, other = 0, []
    for seed in range(10_000, 10_000 + count):
        try:
            scaled += scaled_equals_plain(seed, 8)
        except AssertionError:
            other.append(seed)
    print(
        f"{count} random programs: {scaled} scaled and equal to the bit in FP32, "
        f"{count - scaled - len(other)} left as they were, {len(other)} other ({other})"
    )
    found = {name: equal_case(case) for name, case in zoo.cases().items()}
    kinds = {kind: [n for n, k in found.items() if k == kind] for kind in set(found.values())}
    for kind, names in kinds.items():
        print(f"{len(names)} cases of the zoo {kind}: {', '.join(names)}")


def equal_case(case: Any) -> str:
    """How the scaled program of a case does beside itself, in FP32, on 16 samples."""
    from mpsearch.ending import Ending
    from mpsearch.flows.job import measured
    from mpsearch.program.precision import Precision
    from mpsearch.scaling.magnitudes import magnitudes
    from mpsearch.scaling.scaled import planned, with_changes
    from mpsearch.source.prepare import prepare

    model, samples = zoo.drawn(case, 0, GIVEN)
    prepared = prepare(model, samples, "rel_l2", zoo.numerics(case), heldout=0.0)
    evaluator = prepared.evaluator(cache_bytes=0)
    _, range_ = measured(prepared, evaluator, Ending(None))
    every = range(len(prepared.calibration.samples))
    sizes = magnitudes(evaluator.engine, range_, every)
    plan = planned(prepared, range_, lambda: sizes, True, 20.0)
    if not plan.scales:
        return "left as they were"
    other = with_changes(prepared, (), plan.scales)
    plain, scaled = (
        [
            p.evaluator(cache_bytes=0).engine.outputs(Precision.all_fp32(len(p.ops)), i)
            for i in every
        ]
        for p in (prepared, other)
    )
    same = all(
        torch.equal(one[name], two[name])
        for one, two in zip(plain, scaled, strict=True)
        for name in one
    )
    return "scaled and equal to the bit" if same else "scaled and not equal"


def optimal(count: int) -> None:
    from tests import scalable
    from tests.test_rescale import planned

    best, cheaper, large = 0, [], []
    for seed in itertools.count(10_000):
        made = scalable.program(seed, 10, few=True)
        function, sizes, found = planned(made, seed, 2)
        cost = found.inserted + 16 * found.left
        try:
            least = scalable.cheapest(function, sizes, 4, beyond=16, most=cost - 1)
        except MemoryError:
            large.append(seed)
            continue
        best += least == cost
        cheaper += [] if least == cost else [(seed, cost, least)]
        if best + len(cheaper) == count:
            break
    print(
        f"{count} random graphs of 12 tensors: of all exponents from -4 to 4 none cost less in "
        f"{best}, some do in {cheaper}; left out, since there were too many to try: {large}"
    )


def real_models() -> dict[str, tuple[Any, list[Any]]]:
    """Name -> model and samples."""
    import transformers
    from diffusers.models.autoencoders.vae import Decoder

    def seeded() -> torch.Generator:
        torch.manual_seed(0)
        return torch.Generator().manual_seed(0)

    draw = seeded()
    decoder = Decoder(
        in_channels=4,
        out_channels=3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        norm_num_groups=8,
    ).eval()
    with torch.no_grad():
        decoder.conv_in.weight *= 3e4  # what the residual stream carries from then on
        decoder.conv_in.bias *= 3e4
    latents = [torch.randn(1, 4, 16, 16, generator=draw) for _ in range(8)]

    draw = seeded()
    t5 = transformers.T5EncoderModel(
        transformers.T5Config(
            d_model=256, d_kv=32, d_ff=1024, num_layers=6, num_heads=8, vocab_size=1000
        )
    ).eval()
    with torch.no_grad():
        for block in t5.encoder.block:
            block.layer[1].DenseReluDense.wo.weight *= 2e3
    tokens = [torch.randint(0, 1000, (1, 32), generator=draw, dtype=torch.int32) for _ in range(8)]

    seeded()
    gemma = transformers.GemmaForCausalLM(
        transformers.GemmaConfig(
            vocab_size=1000,
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=64,
            use_cache=False,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for layer in gemma.model.layers:
            layer.mlp.down_proj.weight *= 1e4
    return {
        "diffusers VAE decoder, activations at 1e5": (decoder, latents),
        "T5 encoder": (Hidden(t5), tokens),
        "Gemma decoder, residual beyond 65504": (Logits(gemma), tokens),
    }


class Hidden(torch.nn.Module):
    """The last hidden state."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.model(input_ids=input_ids).last_hidden_state
        return hidden


class Logits(torch.nn.Module):
    """The logits, with the causal mask given: what transformers makes it of does not convert."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mask", torch.full((1, 1, 32, 32), -1e4).triu(1))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(32).unsqueeze(0)
        logits: torch.Tensor = self.model(
            input_ids=input_ids, attention_mask=self.mask, position_ids=positions
        ).logits
        return logits


def real() -> None:
    print(
        "| model | ops | all FP16 | off: FP32 ops | insert: FP32 ops | scaled, inserted | error |"
    )
    print("|---" * 7 + "|")
    for name, (model, samples) in real_models().items():
        found = {}
        started = time.perf_counter()
        for mode in ("off", "insert"):
            found[mode] = mpsearch.optimize(
                model, samples, 1e-2, conversion=mpsearch.Conversion(rescale=mode)
            )
        seconds = time.perf_counter() - started
        off, on = found["off"], found["insert"]
        words = "-" if on.rescaling is None else f"{on.rescaling.folded}, {on.rescaling.inserted}"
        fp16 = "-" if off.error_fp16 is None else f"{off.error_fp16:.3g}"
        print(
            f"| {name} | {off.candidate_ops} | {fp16} | {len(off.kept)} | {len(on.kept)} | {words} "
            f"| {on.error:.3g} ({seconds:.0f} s both) |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["zoo", "equal", "optimal", "real"])
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--count", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    {
        "zoo": lambda: zoo_rows(arguments.cases),
        "equal": lambda: equal(arguments.count or 2000),
        "optimal": lambda: optimal(arguments.count or 200),
        "real": real,
    }[arguments.what]()


if __name__ == "__main__":
    main()
