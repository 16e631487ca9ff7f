import os

import torch

# Without a GPU the kernels' logic runs in Triton's interpreter, which must be chosen before Triton is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
