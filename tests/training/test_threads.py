"""`train.threads: auto` takes the fastest number, once, and writes it down for the next run."""

import json
import time

import pytest
import torch

import reprise.training.threads
from reprise.training.threads import resolve_threads
from reprise.training.train import train


@pytest.fixture(autouse=True)
def as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_fastest_number_is_taken_and_a_second_run_does_not_measure(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    cost = {1: 3.0, 2: 1.0, 3: 2.0}
    tried = []

    def step():
        tried.append(torch.get_num_threads())
        clock[0] += cost[tried[-1]]

    record = tmp_path / "checkpoints/threads.json"
    assert resolve_threads(step, 3, record, "this net") == 2
    assert torch.get_num_threads() == 2
    assert tried == [n for n in (1, 2, 3) for _ in range(reprise.training.threads.STEPS + 1)]
    torch.set_num_threads(1)
    cost[2] = 99.0
    assert resolve_threads(step, 3, record, "this net") == 2
    assert torch.get_num_threads() == 2
    assert len(tried) == 12
    assert resolve_threads(step, 3, record, "another") == 3
    assert json.loads(record.read_text()) == {"this net": 2, "another": 3}
    for damaged in ("", "[]", '{"another": 0}', '{"another": "3"}', "\0" * 9):
        record.write_text(damaged)
        assert resolve_threads(step, 3, record, "another") == 3
        assert json.loads(record.read_text()) == {"another": 3}


def test_a_training_takes_what_is_recorded_and_records_it(digits, tiny_params, tmp_path, monkeypatch):
    monkeypatch.setattr("reprise.training.train.cpus", lambda: 2)
    monkeypatch.setattr("reprise.training.threads._fastest", lambda step, most: (step(), most)[1])
    params = tiny_params("train.threads=auto", "train.epochs=1")
    auto = train(digits, params.model, params.train, tmp_path)
    assert list(json.loads((tmp_path / "threads.json").read_text()).values()) == [2]
    auto.discard_checkpoints()
    monkeypatch.setattr("reprise.training.threads._fastest", None)  # the record answers
    again = train(digits, params.model, params.train, tmp_path)
    again.discard_checkpoints()
    fixed = tiny_params("train.threads=2", "train.epochs=1")
    same = train(digits, fixed.model, fixed.train)
    assert auto.card == again.card == same.card
    assert auto.card.provenance.threads == 2
    assert auto.history == again.history == same.history, "measuring left the training's bits alone"


def test_bf16_is_recorded_and_its_validation_is_in_fp32(digits, tiny_params):
    fp32, bf16, auto = (
        tiny_params("train.epochs=1", "train.reproducible=machine", f"train.precision={precision}")
        for precision in ("fp32", "bf16", "auto")
    )
    results = [train(digits, params.model, params.train) for params in (fp32, bf16)]
    assert [result.card.provenance.precision for result in results] == ["fp32", "bf16"]
    assert results[0].history != results[1].history
    assert train(digits, auto.model, auto.train).card == results[0].card


def test_compile_lasts_as_long_as_the_training(digits, tiny_params, monkeypatch):
    calls = []

    def compiled(module):
        module._compiled_call_impl = lambda *args: (calls.append(module.training), module._call_impl(*args))[1]

    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    plain = tiny_params("train.epochs=1", "train.reproducible=machine")
    params = tiny_params("train.epochs=1", "train.reproducible=machine", "train.compile=true")
    result = train(digits, params.model, params.train)
    assert set(calls) == {True, False}
    calls.clear()
    result.network(torch.zeros(2, 1, 32, 32))
    assert calls == []
    # uncompiled, small convolutions are products of matrices: on some CPUs that rounds otherwise
    (compiled_row,), (row,) = result.history, train(digits, plain.model, plain.train).history
    assert compiled_row.train_loss == pytest.approx(row.train_loss, rel=1e-3)
    assert compiled_row.val_loss == pytest.approx(row.val_loss, rel=1e-3)
