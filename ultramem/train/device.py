"""Where to compute."""

import torch


def choose_device(wanted: torch.device | str | None = None) -> torch.device:
    """Take the device that is asked for, or a GPU where there is one.

    Args:
        wanted: a device as torch writes it, such as ``cpu``, ``cuda`` or ``cuda:1``; none: a GPU if there is one.

    Raises:
        ValueError: there is no such device.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if wanted is None:
        return torch.device("cuda" if len(there) > 1 else "cpu")
    if str(wanted) not in (*there, "cuda" if len(there) > 1 else "cpu"):
        raise ValueError(f"device is {str(wanted)!r}: choose from {', '.join(there)}")
    return torch.device(wanted)
