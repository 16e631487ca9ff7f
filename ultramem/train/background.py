"""Work that goes on behind the training."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

import torch


def in_background(work: Callable[[], None]) -> Future[None]:
    """Begin work in a thread that does not outlive the process; its error comes out of the future's ``result()``.

    An executor's threads are waited for when Python ends, and one that waits for a lost rank would not end.

    Example:
        >>> in_background(lambda: print("done")).result()
        done
    """
    future: Future[None] = Future()
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def run() -> None:
        try:
            if gpu is not None:  # a thread begins at the machine's first GPU, which may be another process's
                torch.cuda.set_device(gpu)
            work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, daemon=True).start()
    return future
