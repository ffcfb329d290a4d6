"""MiniLM with its real weights, against a budget at which rounding errors add up."""

import re
from pydoc_data import topics

import torch

from examples.minilm import SENTENCES, encoded
from examples.minilm import build as retriever

BUDGET = 1e-3
SOURCE = "transformers in FP16 at 1e-3"
CAUSES = {"constant", "overflow"}
CULPRITS = {"add", "mul", "softmax", "sub"}


class SentenceEncoder(torch.nn.Module):
    """Token ids and mask (1, L) -> sentence embedding (1, 384) of length one."""

    def __init__(self, bert: torch.nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        # The mask as logits to add, as transformers itself did for long.
        mask = (1.0 - attention_mask[:, None, None, :]) * torch.finfo(torch.float32).min
        hidden = self.bert(input_ids=input_ids, attention_mask=mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(pooled, dim=-1)


def build() -> torch.nn.Module:
    bert = retriever().bert
    bert.set_attn_implementation("eager")
    return SentenceEncoder(bert).eval()


def samples(count: int = 8, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """The example's sentences, and after them those of Python's own documentation."""
    text = re.sub(r"\s+", " ", " ".join(topics.topics.values()))
    said = re.split(r"(?<=[.!?])\s+", text)
    prose = [s for s in said if re.fullmatch(r"[A-Z][\w ,;:'\"()\-]{30,160}[.?!]", s)]
    known = list(dict.fromkeys([*SENTENCES, *prose]))
    return encoded([known[(seed * count + i) % len(known)] for i in range(count)])
