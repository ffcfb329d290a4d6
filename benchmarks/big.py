"""A decoder of a billion parameters, built at random, searched on one machine.

python -m benchmarks.big [--layers 17] [--budget 5e-3]

A LLaMA whose MLPs have outliers in one layer, as large language models have (Sun et al., "Massive
Activations in Large Language Models", 2024): there the product of gate and up projection leaves
FP16's range. Prints peak memory, seconds of each stage, and what was found; the checkpoint is in
bfloat16, as such models come.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.real import Stages, peak, quiet

_WIDTH, _INNER, _VOCABULARY, _TOKENS = 2048, 5504, 32000, 32


class Decoder(torch.nn.Module):
    """(1, 32) tokens -> (1, 32, 32000) logits."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=_VOCABULARY,
            hidden_size=_WIDTH,
            intermediate_size=_INNER,
            num_hidden_layers=layers,
            num_attention_heads=16,
            num_key_value_heads=16,
            use_cache=False,
            attn_implementation="eager",
        )
        self.model = LlamaForCausalLM(config)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


def checkpoint(layers: int, path: Path) -> None:
    """Write one with outliers, in bfloat16."""
    torch.manual_seed(0)
    model = Decoder(layers)
    mlp = model.model.model.layers[layers // 2].mlp
    with torch.no_grad():
        mlp.gate_proj.weight[:4] *= 300
        mlp.up_proj.weight[:4] *= 300
        mlp.down_proj.weight[:, :4] /= 9e4
    torch.save({name: value.bfloat16() for name, value in model.state_dict().items()}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=17)
    parser.add_argument("--budget", type=float, default=5e-3)
    parser.add_argument("--write", type=Path, help="Only write the checkpoint there.")
    given = parser.parse_args()
    quiet()
    if given.write is not None:
        checkpoint(given.layers, given.write)
        return
    import subprocess
    import sys

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt"
        command = [sys.executable, "-m", "benchmarks.big", "--layers", str(given.layers)]
        subprocess.run([*command, "--write", str(file)], check=True)
        with torch.device("meta"):
            model = Decoder(given.layers)
        state = torch.load(file, mmap=True, weights_only=True)
        state = {name: value.float() for name, value in state.items()}
        model.load_state_dict(state, assign=True)
        del state
    rotary = model.model.model.rotary_emb  # its buffers are not in a state dict
    model.model.model.rotary_emb = type(rotary)(rotary.config)
    model.eval()
    parameters = sum(p.numel() for p in model.parameters())
    draw = torch.Generator().manual_seed(1)
    data = [
        {"input_ids": torch.randint(0, _VOCABULARY, (1, _TOKENS), generator=draw)} for _ in range(8)
    ]
    print(f"{parameters / 1e9:.2f} billion parameters, {peak() / 1e9:.1f} GB before", flush=True)
    import mpsearch

    stages = Stages()
    logger = logging.getLogger("mpsearch")
    logger.setLevel(logging.INFO)
    logger.addHandler(stages)
    started = time.perf_counter()
    found = mpsearch.optimize(model, data, given.budget)
    seconds = time.perf_counter() - started
    stages.begin("")
    print(repr(found))
    print(
        f"{seconds:.0f} s ({', '.join(f'{k} {v:.0f}' for k, v in stages.seconds.items())}), "
        f"peak {peak() / 1e9:.1f} GB, {found.evaluations} evaluations"
    )


if __name__ == "__main__":
    main()
