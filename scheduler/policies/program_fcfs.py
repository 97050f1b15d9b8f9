"""First come, first served, by program: a whole agent run keeps its place.

A program is what its sender calls one (``wishes.program``), else a conversation, else a single
request. Its place is that of its first request, so a later step of an early run goes before the
first step of a later one, instead of queueing anew after every tool call. After the order of
programs in Continuum (arXiv:2511.02230); that a preempted request resumes first among equals is
the engine's affair.

Places never change, so nobody is displaced but by a program that came earlier, and whoever
waits has only the programs before it to wait for. A program may be as long as it likes, and a
tenant may have as many as it likes: this order knows no shares.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from scheduler.policies.base import BasePolicy
from scheduler.service import ServiceWeights
from scheduler.shares import TenantShares
from scheduler.tracking import TrackedRequest

_Key = tuple[str, str, str]  # tenant, what the name names, name
_REQUEST = "request"


class _PlacesState(msgspec.Struct, array_like=True, frozen=True):
    """What outlives the process: the place of each program, and the next one to be given."""

    places: list[tuple[_Key, int]]
    next_place: int


@dataclass(slots=True)
class _Program:
    place: int
    num_live: int = 0


class ProgramFirstComeFirstServed(BasePolicy):
    """Each request has its program's place; the earliest runs first.

    A program is live while it has live requests. Between its steps it is remembered: beyond
    ``max_idle_programs`` those idle longest are forgotten, and come back in the last place.
    """

    name = "program-fcfs"

    def __init__(
        self, service: ServiceWeights, shares: TenantShares, *, max_idle_programs: int = 100_000
    ) -> None:
        super().__init__(service, shares)
        self._max_idle_programs = max_idle_programs
        self._live: dict[_Key, _Program] = {}
        self._idle: OrderedDict[_Key, _Program] = OrderedDict()  # left longest ago first
        self._next_place = 0

    def arrive(self, request: TrackedRequest) -> None:
        key = _key(request)
        program = self._live.get(key) or self._idle.pop(key, None) or self._new_program()
        program.num_live += 1
        self._live[key] = program
        request.note = program

    def depart(self, request: TrackedRequest) -> None:
        program: _Program = request.note
        program.num_live -= 1
        if program.num_live == 0:
            self._rest(_key(request))

    def priorities(self, requests: Iterable[TrackedRequest]) -> list[int]:
        return [request.note.place for request in requests]

    def save(self) -> bytes:
        programs = {**self._idle, **self._live}
        places = [(key, program.place) for key, program in programs.items()]
        return msgspec.msgpack.encode(_PlacesState(places, self._next_place))

    def load(self, state: bytes) -> None:
        saved = msgspec.msgpack.decode(state, type=_PlacesState)
        self._next_place = max(self._next_place, saved.next_place)
        for key, place in saved.places:
            if key in self._live:
                self._live[key].place = place
            else:
                self._idle[key] = _Program(place)
                self._forget_longest_idle()

    def _new_program(self) -> _Program:
        program = _Program(self._next_place)
        self._next_place += 1
        return program

    def _rest(self, key: _Key) -> None:
        program = self._live.pop(key)
        if key[1] != _REQUEST:  # a single request does not come back
            self._idle[key] = program
            self._forget_longest_idle()

    def _forget_longest_idle(self) -> None:
        while len(self._idle) > self._max_idle_programs:
            self._idle.popitem(last=False)


def _key(request: TrackedRequest) -> _Key:
    """Names are a tenant's own: nobody takes a place by calling a program as another does."""
    if request.wishes.program is not None:
        return request.tenant, "program", request.wishes.program
    if request.conversation is not None:
        return request.tenant, "conversation", request.conversation
    return request.tenant, _REQUEST, request.request_id
