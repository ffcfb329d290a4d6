"""What a user's module may hold and do: factories, data callables and metrics, good and bad."""

from __future__ import annotations

import sys

import torch

from tests.models import Net, net

X = [torch.randn(1, 4, 8) for _ in range(3)]


class _OddError(Exception):
    """With a message of several lines, and escape sequences in it."""


def _raiser(error):
    def call(*_args, **_kwargs):
        raise error

    return call


ERRORS = {
    "value": ValueError("no such thing"),
    "key": KeyError("k"),
    "assertion": AssertionError(),
    "type": TypeError("wrong"),
    "zero": ZeroDivisionError("division by zero"),
    "os": OSError(5, "input/output error"),
    "unicode": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
    "odd": _OddError("two\nlines \x1b[31mred\x1b[0m"),
    "exit": SystemExit(0),
    "exit_text": SystemExit("bye"),
    "stop_iteration": StopIteration(),
    "generator_exit": GeneratorExit(),
    "memory": MemoryError(),
    "recursion": RecursionError("too deep"),
    "not_implemented": NotImplementedError(),
    "empty": Exception(),
}
for _name, _error in ERRORS.items():
    globals()[f"raise_{_name}"] = _raiser(_error)


def _forward(call):
    class Broken(torch.nn.Module):
        def forward(self, x):
            return call(x)

    return lambda: Broken()


for _name, _error in ERRORS.items():
    globals()[f"forward_{_name}"] = _forward(_raiser(_error))

#: Factories of models that nothing can be done with.
forward_none = _forward(lambda x: None)
forward_text = _forward(lambda x: "text")
forward_number = _forward(lambda x: 3)
forward_empty_list = _forward(lambda x: [])
forward_empty_dict = _forward(lambda x: {})
forward_empty_tensor = _forward(lambda x: x[:, :0])
forward_nan = _forward(lambda x: x * float("nan"))
forward_infinite = _forward(lambda x: x / 0)
forward_random = _forward(lambda x: x + torch.randn_like(x))
forward_dropout = _forward(lambda x: torch.nn.functional.dropout(x, 0.5, training=True))
forward_svd = _forward(lambda x: torch.linalg.svd(x)[1])
forward_exit = _forward(lambda x: sys.exit(3))
forward_complex = _forward(lambda x: torch.fft.fft(x))


class Counter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class Meta(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(8, 8, device="meta"))

    def forward(self, x):
        return x @ self.weight


class Uncopyable(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.log = open("/dev/null")  # noqa: SIM115

    def forward(self, x):
        return x * 2


def give_none():
    return None


def give_number():
    return 3


def give_text():
    return "text"


def give_class():
    return Net


def give_state():
    return net().state_dict()


def no_samples():
    return []


def wrong_names():
    return [{"y": X[0]}]


def too_many():
    return [(X[0], X[0], X[0])]


def with_targets():
    return [(x, torch.tensor(1)) for x in X]


def wrong_shapes():
    return [torch.randn(1, 4, 5)]


def wrong_dtype():
    return [torch.ones(1, 4, 8, dtype=torch.complex64)]


def zero_size():
    return [torch.zeros(0, 4, 8)]


def text_samples():
    return ["a", "b"]


def object_samples():
    return [object()]


def nested():
    return [{"x": [X[0], X[0]]}]


def endless():
    while True:
        yield X[0]


def breaks_midway():
    yield X[0]
    raise ValueError("the reader broke")


def mixed_shapes():
    return [torch.randn(1, 4, 8), torch.randn(3, 2, 1, 4, 5)]


def metric_text(_reference, _outputs):
    return "a lot"


def metric_none(_reference, _outputs):
    return None


def metric_arguments():
    return 0.0


NOT_CALLABLE = 3
