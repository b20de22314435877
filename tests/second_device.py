"""A second device on a machine that has none: tensors say that they are on it, and lie in memory as all others do.

On a CPU everything is on one device, so that a tensor left behind when a model moved to a GPU is never noticed. Within
``second_device()`` the device ``ipu`` can be asked for, as a GPU can: ``tensor.to``, ``module.to``, ``device=``. Each
operation looks where its arguments are and, as CUDA does, refuses those that are on both; a number (a tensor without
dimensions) may be on the CPU, an index into a tensor too. What is computed is what the CPU computes.

How: labels are kept for storages, so that views and parameters whose ``data`` is replaced need no care. A dispatch mode
sees every operation, those of autograd and the optimizer included; what never gets there (``tensor.device``,
``tensor.to``) is replaced in ``torch.Tensor``.
"""

import contextlib
import functools

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE, CPU = torch.device("ipu"), torch.device("cpu")
_ANY = torch.device("meta")  # made by autograd itself, which looks where the tensors really are
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
_COPIES = {"copy_", "_to_copy", "_foreach_copy_", "set_", "resize_"}


class _Labels:
    """Which storages are on the second device, or on any; all others are on the CPU."""

    def __init__(self):
        self.kept = {}  # weak references keep an address from being given to another storage

    def put(self, tensor: torch.Tensor, device: torch.device) -> None:
        if tensor.layout != torch.strided:
            tensor = _values(tensor)
        self.put_storage(tensor.untyped_storage(), device)

    def put_storage(self, storage: torch.UntypedStorage, device: torch.device) -> None:
        if device == CPU:
            self.kept.pop(storage._cdata, None)
        else:
            self.kept[storage._cdata] = StorageWeakRef(storage), device

    def of(self, tensor: torch.Tensor) -> torch.device:
        if tensor.layout != torch.strided:
            tensor = _values(tensor)
        return self.kept.get(tensor.untyped_storage()._cdata, (None, CPU))[1]


def _values(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.values() if tensor.layout == torch.sparse_csr else tensor._values()


class _Operations(TorchDispatchMode):
    def __init__(self, labels: _Labels):
        super().__init__()
        self.labels = labels

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = function._schema.name.split("::")[1]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        asked = kwargs.get("device")
        if asked is not None:
            kwargs["device"] = CPU
        if asked is not None and not (tensors and "sparse" in name):  # those are where their values are
            where = DEVICE if torch.device(asked).type == DEVICE.type else CPU
            if where == CPU and torch._C._current_graph_task_id() != -1:
                where = _ANY
        elif name in _COPIES:
            where = self.labels.of(args[0][0] if isinstance(args[0], (list, tuple)) else args[0])
        else:
            where = self._common(name, args, tensors)
        result = function(*args, **kwargs)
        given = {tensor.untyped_storage()._cdata for tensor in tensors if tensor.layout == torch.strided}
        for leaf in tree_leaves(result):
            if not isinstance(leaf, torch.Tensor):
                continue
            if leaf.layout != torch.strided or leaf.untyped_storage()._cdata not in given:  # no view, not in place
                self.labels.put(leaf, where)
        return result

    def _common(self, name: str, args, tensors) -> torch.device:
        if name in _INDEXED and self.labels.of(args[0]) == DEVICE:
            tensors = [part for part in (args[0], *args[2:]) if isinstance(part, torch.Tensor)]  # all but the index
        places = {self.labels.of(tensor) for tensor in tensors if tensor.dim()} - {_ANY}
        if len(places) == 2:
            where = [(tuple(tensor.shape), self.labels.of(tensor).type) for tensor in tensors]
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, but got {where}")
        return places.pop() if places else next(map(self.labels.of, tensors), CPU)


def _answers(labels: _Labels) -> dict:
    """What ``torch.Tensor`` says and does otherwise: attributes and methods that no operation stands behind."""
    tensor_to, tensor_numpy = torch.Tensor.to, torch.Tensor.numpy

    def moved(tensor, device):
        if labels.of(tensor).type == torch.device(device).type:
            return tensor
        copy = tensor.clone()
        labels.put(copy, torch.device(device))
        return copy

    def to(self, *args, **kwargs):
        values = [value for value in (*args, *kwargs.values()) if value is not None]
        if isinstance(values[0], torch.Tensor):
            values = [labels.of(values[0]), values[0].dtype]
        types = [value for value in values if isinstance(value, torch.dtype)]
        for value in values:
            if isinstance(value, (torch.device, str)):
                self = moved(self, value)
        return tensor_to(self, types[0]) if types else self

    def numpy(self, **kwargs):
        if labels.of(self) == DEVICE:
            raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first.")
        return tensor_numpy(self, **kwargs)

    return {
        "device": property(labels.of),
        "is_cpu": property(lambda self: labels.of(self) == CPU),
        "to": to,
        "cpu": lambda self: moved(self, CPU),
        "numpy": numpy,
    }


@contextlib.contextmanager
def second_device():
    """``with second_device() as device:``"""
    labels = _Labels()
    with contextlib.ExitStack() as undo:
        for name, answer in _answers(labels).items():
            setattr(torch.Tensor, name, answer)
            undo.callback(delattr, torch.Tensor, name)  # the attribute is torch._C.TensorBase's own again
        for name in ("tensor", "as_tensor"):
            undo.callback(setattr, torch, name, getattr(torch, name))
            setattr(torch, name, _made_there(getattr(torch, name)))
        restore = functools.partial(_restored, labels)
        torch.serialization.register_package(0, lambda storage: None, restore)
        undo.callback(_forget, restore)
        undo.enter_context(_Operations(labels))
        yield DEVICE


def _restored(labels: _Labels, storage: torch.UntypedStorage, location: str):
    """For ``torch.load``: a storage that was, or is wanted, on the second device."""
    if torch.device(location).type != DEVICE.type:
        return None
    labels.put_storage(storage, DEVICE)
    return storage


def _forget(restore) -> None:
    registry = torch.serialization._package_registry
    registry[:] = [entry for entry in registry if entry[2] is not restore]


def _made_there(make):
    def made(*args, device=None, **kwargs):
        tensor = make(*args, **kwargs)
        return tensor if device is None else tensor.to(device)

    return made
