import os

import pytest
import torch


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernel_device(request):
    """Where a test runs a kernel: on the CPU in Triton's interpreter, and on a GPU."""
    pytest.importorskip("triton")
    if request.param == "cuda":
        return torch.device("cuda") if torch.cuda.is_available() else pytest.skip("needs a GPU")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton compiles in this process")
    return torch.device("cpu")


@pytest.fixture
def poisoned_memory():
    """New tensors hold NaN, or the largest integer, until they are written."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
