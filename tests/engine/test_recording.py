"""What was written down and is done again is the same with other tensors, in no more memory; or nothing is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract.small import CONV4, make_algorithm, make_episodes, make_meta, make_net
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_structure

from metarun.engine.compiled import flat
from metarun.engine.recording import NotRecordableError, Recorder, needed, recorded, tensors

ELSEWHERE = torch.ones(3)
Work = Callable[[list[Tensor]], Any]


def drawn(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(4, 3, generator=generator), torch.rand(4, 3, generator=generator)]


def writes_in_place(given: list[Tensor]) -> list[Tensor]:
    a, b = given
    c = a * 2
    before = c.sum()
    row = c[1]
    row.add_(b[0])  # c is another from here on
    c.t()[0].zero_()
    return [c, before, c.sum()]


def literals(given: list[Tensor]) -> list[Tensor]:
    one = torch.tensor([1.0, 2.0, 3.0])
    one += given[0][0]
    return [one * torch.tensor(2.0), torch.eye(3) @ given[1][0]]


def many_at_once(given: list[Tensor]) -> dict[str, Any]:
    one, other = given[0].split([1, 3])
    var, mean = torch.var_mean(given[1], 0)
    joined = torch.cat([one, other, mean[None]], dim=0)
    picked = joined[torch.tensor([0, 2]), :]
    return {"joined": joined, "more": (var, [picked, torch.stack([mean, var])])}


def views_of_views(given: list[Tensor]) -> list[Tensor]:
    a = given[0].exp()
    return [a.view(2, 6)[1].view(2, 3).t().unsqueeze(0).expand(5, 3, 2) * 1, a.detach().view(4, 3), given[1][2:].t()]


def shapes_in_place(given: list[Tensor]) -> list[Tensor]:
    a = given[0] + given[1]
    before = a.view(12)
    a.t_().unsqueeze_(0)
    return [a, before, a @ given[0]]


def of_complex_numbers(given: list[Tensor]) -> list[Tensor]:
    z = torch.complex(given[0], given[1]).conj()
    return [torch.view_as_real(z.resolve_conj()), (z * z).real, (z.imag + 1).neg()]


def what_was_given(given: list[Tensor]) -> list[Tensor]:
    return [given[1], given[0].detach()]


def in_low_precision(given: list[Tensor]) -> list[Tensor]:
    return [(given[0].bfloat16() @ given[1].t().bfloat16()).float(), given[0].to(torch.float32)]


WORK = [
    writes_in_place,
    literals,
    many_at_once,
    views_of_views,
    shapes_in_place,
    of_complex_numbers,
    what_was_given,
    in_low_precision,
]


@pytest.mark.parametrize("work", WORK)
def test_it_does_the_same_with_other_tensors(work: Work) -> None:
    first, again = recorded(work, drawn(0))
    assert alike(first, work(drawn(0)))
    for seed in (1, 2, 2):
        given = drawn(seed)
        assert alike(again(given), work(drawn(seed)))
        assert alike(given, drawn(seed)), "it was written to"


def alike(one: Any, other: Any) -> bool:
    """Bits, shapes, strides and what they are in."""
    ours, theirs = list(tensors(one)), list(tensors(other))
    return tree_structure(one) == tree_structure(other) and all(
        torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(ours, theirs, strict=True)
    )


def test_what_is_given_may_start_anywhere_in_its_memory() -> None:
    def work(given: list[Tensor]) -> list[Tensor]:
        return [given[0][1:].t() * 2, given[0].view(-1)[:3] + 1]

    whole = torch.arange(60.0).view(20, 3)
    _, again = recorded(work, [whole[:4]])
    assert alike(again([whole[8:12]]), work([whole[8:12]]))


def reads_a_number(given: list[Tensor]) -> Tensor:
    return given[0] * float(given[1][0, 0])


def picks_by_a_mask(given: list[Tensor]) -> Tensor:
    return given[0][given[1] > 0.5].sum()


def uses_another(given: list[Tensor]) -> Tensor:
    return given[0] * ELSEWHERE


def writes_to_the_given(given: list[Tensor]) -> Tensor:
    return given[0].view(-1)[2:].mul_(2)


@pytest.mark.parametrize("work", [reads_a_number, picks_by_a_mask, uses_another, writes_to_the_given])
def test_what_could_be_another_thing_with_other_tensors_is_refused(work: Work) -> None:
    given = drawn(0)
    with pytest.raises(NotRecordableError):
        recorded(work, given)
    assert alike(given, drawn(0))


def test_what_is_computed_for_nobody_is_left_out() -> None:
    def work(given: list[Tensor]) -> Tensor:
        a = given[0].detach().view(4, 3).view(12).view(4, 3)
        unused = given[1].exp()
        unused.add_(1).sum()
        return a + a.view(4, 3)

    given = drawn(0)
    with (recorder := Recorder(given)):
        out = work(given)
    assert len(needed(recorder, [recorder.slot(out)])) == 1


class Most(TorchDispatchMode):
    """The most bytes that what is made within has at once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self._alive = 0, dict[int, tuple[StorageWeakRef, int]]()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tensors((args, kwargs or {}))}
        out = func(*args, **(kwargs or {}))
        for t in tensors(out):
            memory = t.untyped_storage()
            if memory._cdata not in given:
                self._alive[memory._cdata] = StorageWeakRef(memory), memory.nbytes()
        self._alive = {key: each for key, each in self._alive.items() if not each[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self._alive.values()))
        return out


def test_neither_to_record_nor_to_do_it_again_takes_more_memory() -> None:
    algorithm, net = make_algorithm("maml", inner_steps=3), make_net(CONV4)
    meta, episodes = make_meta(algorithm, net), make_episodes()
    given = [*(w.detach() for w in meta.values()), *episodes, torch.arange(len(episodes.query_x))]
    work = flat(algorithm, net, meta, {}, len(episodes.query_x))
    with Most() as plain:
        work(given)
    with Most() as recording:
        _, again = recorded(work, given)
    with Most() as replay, torch.no_grad():
        again(given)
    assert recording.bytes <= plain.bytes
    assert replay.bytes <= plain.bytes
