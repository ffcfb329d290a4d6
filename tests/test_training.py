"""Callbacks in training: nothing is disturbed, to the last bit."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch
from mpsearch.training.watch import Watch


class Net(nn.Module):
    """With dropout and a batch norm, which a careless look would disturb."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4)
        )

    def forward(self, x):
        return self.body(x)


def samples(count=6):
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(1, 8, generator=draw) for _ in range(count)]


@pytest.fixture(scope="module")
def config():
    torch.manual_seed(0)
    return mpsearch.optimize(Net(), samples(), 1e-2).config


def _seed():
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def _state(module):
    drawn = torch.rand(3), np.random.rand(3), random.random()
    return [v.clone() for v in module.state_dict().values()], drawn


def _equal(one, other):
    (these, (a, b, c)), (those, (d, e, f)) = one, other
    assert all(torch.equal(x, y) for x, y in zip(these, those, strict=True))
    assert torch.equal(a, d) and np.array_equal(b, e) and c == f


def _loop(watch, compiled=False):
    _seed()
    model = Net().train()
    trained = torch.compile(model, backend="eager") if compiled else model
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(6):
        x = torch.randn(16, 8)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = trained(x).float().square().mean()
            if watch is not None and step % 2 == 0:
                assert watch.look(trained)["mpsearch/error"] < 1e-2
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model.training
    return _state(model)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_loop_by_hand(config, compiled):
    _equal(_loop(Watch(samples(), config), compiled), _loop(None, compiled))


def test_at_the_end_it_is_searched_where_the_choice_does_not_hold(config, tmp_path):
    watch = Watch(samples(), config, out=tmp_path / "out")
    watch.finish(Net())
    assert watch.checked.holds and watch.result is None and not (tmp_path / "out").exists()
    large = Net()
    with torch.no_grad():
        large.body[0].weight *= 1e6
    assert Watch(samples(), config).look(large)["mpsearch/holds"] == 0
    watch = Watch(samples(), config, out=tmp_path / "out")
    assert watch.finish(large)["mpsearch/fp32_ops"] == len(watch.result.kept) > 0
    assert (tmp_path / "out" / "model.mlpackage").exists()


def test_without_a_config_and_a_budget():
    with pytest.raises(mpsearch.InputError, match="give a config to check, or a budget"):
        Watch(samples())


def test_lightning(config, tmp_path):
    pl = pytest.importorskip("lightning.pytorch")
    from mpsearch.training.lightning import PrecisionCallback

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-2)

    def run(callbacks):
        _seed()
        module = Module()
        data = torch.utils.data.TensorDataset(torch.randn(64, 8))
        loader = torch.utils.data.DataLoader(data, 16, shuffle=True)
        logger = pl.loggers.CSVLogger(tmp_path, name=str(len(callbacks)))
        quiet = {"enable_progress_bar": False, "enable_model_summary": False}
        quiet |= {"enable_checkpointing": False, "default_root_dir": tmp_path}
        trainer = pl.Trainer(
            max_epochs=3, accelerator="cpu", callbacks=callbacks, logger=logger, **quiet
        )
        trainer.fit(module, loader)
        return _state(module), (tmp_path / logger.name).rglob("metrics.csv")

    callback = PrecisionCallback(Watch(samples(), config), 2, lambda module: module.net)
    with_it, logged = run([callback])
    _equal(with_it, run([])[0])
    assert callback.watch.checked.holds
    assert any("mpsearch/error" in file.read_text() for file in logged)
    whole = PrecisionCallback(Watch(samples(), budget=1e-2))
    _equal(run([whole])[0], with_it)
    assert whole.watch.result.met


def test_trainer_of_transformers(config, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from mpsearch.training.trainer import PrecisionCallback

    class Learner(Net):
        def forward(self, x, labels=None):
            logits = self.body(x)
            if labels is None:
                return logits
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 32

        def __getitem__(self, place):
            draw = torch.Generator().manual_seed(place)
            return {"x": torch.randn(8, generator=draw), "labels": torch.tensor(place % 4)}

    def run(callbacks):
        _seed()
        arguments = transformers.TrainingArguments(
            str(tmp_path / "out"),
            max_steps=6,
            per_device_train_batch_size=8,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        model = Learner()
        trainer = transformers.Trainer(model, arguments, train_dataset=Data(), callbacks=callbacks)
        trainer.train()
        return _state(model), trainer.state.log_history

    callback = PrecisionCallback(Watch(samples(), config), every=2)
    with_it, logged = run([callback])
    _equal(with_it, run([])[0])
    assert [row["step"] for row in logged if "mpsearch/error" in row] == [2, 4, 6, 6]


DDP = """
import sys, torch, mpsearch
from tests.test_training import Net, samples, _seed, _state
from mpsearch.training.watch import Watch
rank, store, look = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "look"
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
_seed()
model = torch.nn.parallel.DistributedDataParallel(Net())
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
watch = Watch(samples(), sys.argv[4])
for step in range(4):
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(10 * step + rank))
    model(x).square().mean().backward()
    optimizer.step(); optimizer.zero_grad()
    if look and rank == 0:
        assert watch.look(model)["mpsearch/error"] < 1e-2
torch.save([v for v in model.module.state_dict().values()], f"{store}-{rank}-{sys.argv[3]}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.thorough
def test_two_processes(config, tmp_path):
    config.write(tmp_path / "precision.json")
    kept = {}
    for how in ("look", "none"):
        store = tmp_path / f"store-{how}"
        command = [sys.executable, "-c", textwrap.dedent(DDP)]
        running = [
            subprocess.Popen([*command, str(rank), str(store), how, str(tmp_path)])
            for rank in range(2)
        ]
        assert [process.wait(300) for process in running] == [0, 0]
        kept[how] = torch.load(f"{store}-0-{how}.pt")
    assert all(map(torch.equal, kept["look"], kept["none"]))
