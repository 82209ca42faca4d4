"""What a function does with tensors, written down as a list of operations while it does it, and done again from there.

Below autograd, `vmap` and torch's other transforms there are only operations on plain tensors, one after another. To
write them down takes about as long as to do them, holds on to none of their tensors, and imports nothing. From the list
the same is done without the transforms, without autograd, and without what is computed for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import getitem
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

Flat = list[Tensor]
aten = torch.ops.aten
SHORT: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: torch.add,
    aten.bmm.default: torch.bmm,
    aten.div.Tensor: torch.div,
    aten.mm.default: torch.mm,
    aten.mul.Tensor: torch.mul,
    aten.neg.default: torch.neg,
    aten.rsqrt.default: torch.rsqrt,
    aten.sub.Tensor: torch.sub,
    aten.sum.dim_IntList: torch.sum,
}
"""shorter ways, by 0.4 to 1.2 microseconds, to operations of which there are many"""
READS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
MASKS = (torch.bool, torch.uint8)


class NotRecordableError(Exception):
    """What was done with these tensors need not be what is to be done with others."""


Called = tuple[Any, Any, Any]
"""what, with which arguments and which named ones"""


class Slot(int):
    """A tensor's number, in its place among an operation's arguments."""


@dataclass(frozen=True)
class Op:
    """One operation: what to call, with what, and the number of what it gives."""

    call: Callable[..., Any]
    args: Any
    named: Any
    out: int
    writes: frozenset[int] = frozenset()
    """the memories that it changes"""

    @cached_property
    def reads(self) -> set[int]:
        return {int(x) for x in leaves((self.args, self.named)) if isinstance(x, Slot)}


@dataclass(frozen=True)
class Place:
    """How a tensor lies in its memory."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    plain: bool
    """whether what lies there are its numbers, and not those conjugated or negated"""


def recorded(f: Callable[[Flat], Any], given: Flat) -> tuple[Any, Callable[[Flat], Any]]:
    """`f(given)`, and a function that does the same with other tensors of the same shapes and strides.

    `f` gives tensors in dicts, lists and tuples. Raises `NotRecordableError`, before anything was written to.
    """
    recorder = Recorder(given)
    with recorder:
        out = f(given)
    found, structure = tree_flatten(out)
    again = listed(recorder, [recorder.slot(t) for t in found])
    return out, lambda given: tree_unflatten(again(*given), structure)


class Recorder(TorchDispatchMode):
    """Writes down what is done within. The tensors have numbers, those given the first.

    It refuses what could be another thing with other tensors: to read numbers out of them, to use one that is neither
    given nor made within (what it holds the next time is not known), and to write to those given.
    """

    def __init__(self, given: Flat) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.memories: list[int] = []
        """by number: the first number that lies in the same memory"""
        self.literals: dict[int, Tensor] = {}
        self._known: dict[int, tuple[ref[Tensor], int]] = {}  # by id, which may be another's when a tensor is gone
        self._places: dict[int, Place] = {}
        self._there: dict[tuple[int, Place], int] = {}
        for t in given:
            self._number(t)
        self.given = len(given)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler to have it leave this alone

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func.namespace == "profiler":  # the phases that a profile has
            return func(*args, **named)
        if func is aten.lift_fresh.default:  # a `torch.tensor(...)` of the code
            return self._literal(args[0])
        if torch.Tag.inplace_view in func.tags:
            return self._shaped_anew(func, args, named)
        op = func, numbered(args, self.slot), numbered(named, self.slot)
        writes = frozenset(self.memories[self.slot(t)] for t in written(func, args, named))
        self._check(func, args, writes)
        out = func(*args, **named)
        given = list(tensors((args, named)))
        if isinstance(out, Tensor):
            self._note(op, out, given, writes)
            return out
        whole = self._number(None)
        self.ops.append(Op(*op, whole, writes))
        for i, part in enumerate(out if isinstance(out, tuple | list) else ()):
            if isinstance(part, Tensor):
                self._note((getitem, (Slot(whole), i), {}), part, given)
        return out

    def slot(self, t: Tensor) -> Slot:
        if (found := self._find(t)) is None:
            raise NotRecordableError("a tensor is used that was made elsewhere")
        return found

    def _find(self, t: Tensor) -> Slot | None:
        known = self._known.get(id(t))
        return Slot(known[1]) if known is not None and known[0]() is t else None

    def _number(self, t: Tensor | None, memory: int | None = None) -> int:
        """A new one, of what lies in that memory; None: in one of its own."""
        number = len(self.memories)
        self.memories.append(number if memory is None else memory)
        if t is not None:
            self._known[id(t)] = ref(t), number
            self._places[number] = place = place_of(t)
            self._there.setdefault((self.memories[number], place), number)
        return number

    def _check(self, func: Any, args: Any, writes: frozenset[int]) -> None:
        counted = func is aten.index.Tensor and not any(t.dtype in MASKS for t in tensors(args[1]))
        if any(tag in func.tags for tag in READS) and not counted:
            raise NotRecordableError(f"{func} reads what a tensor holds")
        if any(memory < self.given for memory in writes):
            raise NotRecordableError(f"{func} writes to what was given")

    def _note(self, op: Called, out: Tensor, given: Flat, writes: frozenset[int] = frozenset()) -> None:
        if (own := self._find(out)) is not None:  # it was given one of its arguments back
            self.ops.append(Op(*op, own, writes))
            return
        where = storage(out)
        memory = next((self.memories[self.slot(t)] for t in given if where is not None and storage(t) == where), None)
        if memory is None or writes:
            self.ops.append(Op(*op, self._number(out, memory), writes))
        else:
            self._note_view(op, out, memory)

    def _note_view(self, op: Called | None, out: Tensor, memory: int) -> None:
        """Of a view of a view, one of what was the first in that memory; none where the same was seen before."""
        own, first = place_of(out), self._places[memory]
        if (same := self._there.get((memory, own))) is not None:
            self._known[id(out)] = ref(out), same
            return
        moved = own.offset != first.offset
        # What is given may start anywhere in its memory.
        if own.dtype == first.dtype and own.plain and first.plain and not (moved and memory < self.given):
            op = torch.as_strided, (Slot(memory), own.shape, own.stride, *([own.offset] if moved else [])), {}
        if op is None:
            raise NotRecordableError("a tensor is given another shape in its place")
        self.ops.append(Op(*op, self._number(out, memory)))

    def _shaped_anew(self, func: Any, args: Any, named: Any) -> Any:
        """What lies in the memory stays: from here on the tensor is another view of it."""
        memory, before = self.memories[self.slot(args[0])], storage(args[0])
        out = func(*args, **named)
        if out is not args[0] or storage(out) != before:
            raise NotRecordableError(f"{func} gives a tensor other memory")
        self._note_view(None, out, memory)
        return out

    def _literal(self, t: Tensor) -> Tensor:
        """A copy each time, as it may be written to."""
        kept, out = self._number(None), t.clone()
        self.literals[kept] = t.clone()
        self.ops.append(Op(torch.clone, (Slot(kept),), {}, self._number(out)))
        return out


def listed(recorder: Recorder, wanted: Sequence[int]) -> Callable[..., list[Tensor]]:
    """From what was given the tensors `wanted`, by what was recorded; all else is freed when it was last used.

    As code, whose names and structure are made here: a loop over the operations took 5 % longer with a task at a time.
    """
    names: dict[str, Any] = {f"v{number}": t for number, t in recorder.literals.items()}
    done: list[str] = [f"return [{', '.join(f'v{number}' for number in wanted)}]"]
    later = {*wanted, *recorder.literals}
    for op in reversed(needed(recorder, wanted)):
        used = op.reads | {op.out}
        if gone := sorted(used - later):
            done.append(f"{' = '.join(f'v{number}' for number in gone)} = None")
        later |= used
        names[call := f"c{len(names)}"] = shortest(op.call)
        values = [written_out(x, names) for x in op.args]
        values += [f"{name}={written_out(x, names)}" for name, x in op.named.items()]
        done.append(f"v{op.out} = {call}({', '.join(values)})")
    head = f"def again({', '.join(f'v{number}' for number in range(recorder.given))}):\n "
    exec(head + "\n ".join(reversed(done)), names)
    return names["again"]


def shortest(call: Any) -> Callable[..., Any]:
    """What does the same as an operation with less ado: its `direct`, where whoever defined it gave it one."""
    return SHORT.get(call) or getattr(call, "direct", None) or getattr(call, "_op", call)


def written_out(x: Any, names: dict[str, Any]) -> str:
    """An argument, as code; what is no tensor gets a name."""
    if isinstance(x, Slot):
        return f"v{x}"
    if isinstance(x, tuple | list) and any(isinstance(each, Slot) for each in x):
        return f"[{', '.join(written_out(each, names) for each in x)}]"
    names[name := f"k{len(names)}"] = x
    return name


def needed(recorder: Recorder, wanted: Iterable[int]) -> list[Op]:
    """The operations without those whose results nobody uses. One that writes is used by all that later reads what lies
    in that memory."""
    used, kept = set(wanted), list[Op]()
    read = {recorder.memories[number] for number in used}
    for op in reversed(recorder.ops):
        if op.out in used or op.writes & read:
            kept.append(op)
            used |= op.reads
            read |= {recorder.memories[number] for number in op.reads}
    return kept[::-1]


def written(func: Any, args: Any, named: Any) -> Iterator[Tensor]:
    """The arguments that an operation writes to."""
    if func._schema.is_mutable:
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                yield from tensors(args[i] if i < len(args) else named.get(argument.name))


def storage(t: Tensor) -> int | None:
    """What tells one memory from all others that are there now."""
    try:
        return t.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # it has none
        return None


def place_of(t: Tensor) -> Place:
    return Place(t.dtype, tuple(t.shape), t.stride(), int(t.storage_offset()), not (t.is_conj() or t.is_neg()))


def leaves(x: Any) -> Iterator[Any]:
    """What is in dicts, lists and tuples, and in those within."""
    if isinstance(x, dict):
        x = tuple(x.values())
    if isinstance(x, tuple | list):
        for each in x:
            yield from leaves(each)
    else:
        yield x


def tensors(x: Any) -> Iterator[Tensor]:
    return (each for each in leaves(x) if isinstance(each, Tensor))


def numbered(x: Any, slot: Callable[[Tensor], Slot]) -> Any:
    """The same with numbers for the tensors."""
    if isinstance(x, Tensor):
        return slot(x)
    if isinstance(x, tuple | list):
        return [numbered(each, slot) for each in x]
    return {name: numbered(each, slot) for name, each in x.items()} if isinstance(x, dict) else x
