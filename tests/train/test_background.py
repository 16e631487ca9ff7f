"""Work in a thread: on its process's GPU."""

import threading

import pytest
import torch

from ultramem.train.background import in_background


@pytest.mark.parametrize("has_gpu", [True, False])
def test_a_thread_works_on_the_gpu_of_its_process(monkeypatch, has_gpu):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: chosen.append((gpu, threading.current_thread())))
    worked = []
    in_background(lambda: worked.append(threading.current_thread())).result()
    assert worked != [threading.current_thread()]
    assert chosen == ([(3, *worked)] if has_gpu else [])
