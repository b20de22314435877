"""Several processes train one TokenRec: ``torchrun --nproc_per_node=2 -m recbole_tokenrec.cli.main run …``.

Every process reads the same data and draws the same batches; of every ``world`` batches each takes its own, and the
gradients are averaged before each optimiser step, as DistributedDataParallel does. A step thus sees ``world`` batches,
and an epoch has 1/``world`` of the steps. (DistributedDataParallel itself hooks ``forward``, which RecBole's models do
not train through.)

Evaluation batches are dealt out the same way, each user to one process, and the per-user results are put together in
one process's order before a metric is computed: nobody is counted twice, and the numbers are those of one process.
RecBole pads the users and weighs averages of averages.

Process 0 alone writes; the others wait for it at a barrier. A process that dies breaks its connections, so that the
others stop with an error, at the latest after ``distributed_timeout`` seconds; torchrun ends them all.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
import sys

import torch
import torch.distributed as dist

from recbole_tokenrec.errors import ConfigError


def rank() -> int:
    return dist.get_rank() if active() else 0


def world() -> int:
    return dist.get_world_size() if active() else 1


def active() -> bool:
    return dist.is_available() and dist.is_initialized()


def is_first() -> bool:
    """Whether this process writes and prints."""
    return rank() == 0


@contextlib.contextmanager
def process_group(timeout: float, use_gpu: bool):
    """Join the processes that torchrun started, if it did; ``timeout`` in seconds for any one exchange.

    Raises:
        ConfigError: torchrun's environment is incomplete or wrong, or the timeout is no positive number.
    """
    number = os.environ.get("WORLD_SIZE", "1")
    if not number.isdecimal():
        raise ConfigError(f"WORLD_SIZE is {number!r}, which is no number of processes; start them with torchrun")
    if int(number) < 2:
        yield
        return
    if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or timeout <= 0:
        raise ConfigError(f"distributed_timeout: {timeout!r} is not allowed; allowed: float in (0, inf)")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(f"WORLD_SIZE is set but {', '.join(missing)} is not; start the processes with torchrun")
    gpu = use_gpu and torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("nccl" if gpu else "gloo", timeout=datetime.timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:  # torch's own errors are of the first kind
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).splitlines()[0]
        raise ConfigError(f"MASTER_ADDR, MASTER_PORT: the processes do not meet at {place} ({reason})") from error
    try:
        yield
        barrier()  # who is ready first does not break the others' connections
    finally:
        dist.destroy_process_group()


def leave(code: int) -> None:
    """End this process, one of several, at once: what Python would do last may abort it, its work being done.

    gloo's threads may still hold tensors, and to release one they ask for an interpreter that is being torn down
    (pytorch/pytorch#179291). Handlers of ``atexit`` are run, which close logs.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def barrier() -> None:
    if active():
        dist.barrier()


def shared(value, source: int = 0):
    """``value`` of process ``source``, in every process: plain data."""
    if not active():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=source)
    return box[0]


def everybodys(value) -> list:
    """Each process's ``value``, by rank: plain data or CPU tensors."""
    if not active():
        return [value]
    boxes = [None] * world()
    dist.all_gather_object(boxes, value)
    return boxes


def share_state(module: torch.nn.Module) -> None:
    """Give every process the weights and buffers of process 0."""
    if active():
        with torch.no_grad():
            for value in module.state_dict().values():
                dist.broadcast(value, src=0)


def own_batches(batches):
    """Yield (batch or None, how many processes have one) for each step; None where the last batches do not suffice."""
    me, everyone = rank(), world()
    group = []
    for batch in batches:
        group.append(batch)
        if len(group) == everyone:
            yield group[me], everyone
            group = []
    if group:
        yield (group[me] if me < len(group) else None), len(group)


def average_gradients(parameters, taking_part: int) -> None:
    """Replace each gradient by its mean over the ``taking_part`` processes that have one.

    A parameter that no process has a gradient for keeps None, as in one process.
    """
    if not active():
        return
    parameters = list(parameters)
    present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
    dist.all_reduce(present, op=dist.ReduceOp.MAX)
    used = [p for p, there in zip(parameters, present.tolist()) if there]
    if not used:
        return
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1) for p in used])
    dist.all_reduce(flat)
    flat /= taking_part
    for p, gradient in zip(used, flat.split([p.numel() for p in used])):
        p.grad = gradient.view_as(p)


def mean_loss(loss: torch.Tensor | None, taking_part: int) -> float:
    """The step's loss, a mean over the ``taking_part`` processes that have one: if it is NaN, all of them see it."""
    if not active():
        return float(loss.detach())
    total = torch.zeros((), dtype=torch.float64) if loss is None else loss.detach().double().cpu()
    total = total.to(torch.cuda.current_device()) if dist.get_backend() == "nccl" else total
    dist.all_reduce(total)
    return float(total) / taking_part
