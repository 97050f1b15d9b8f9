"""A stand-in for the engine process's program: it does what ``act`` of its engine arguments says.

Run as ``python -m tests.deployments.engine_program`` by ``EngineProcess``, like the real one.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator

import msgspec
import zmq

from deployments import wire
from deployments.engine_order import (
    CHANGES,
    DRAINING,
    ECHO,
    ERROR_MARK,
    EXCHANGE,
    HEARTBEAT,
    PARTING,
    REPLICA_CLIENT,
    STAGE,
    Changes,
    EngineOrder,
    Exchange,
)
from deployments.messages import EngineCard
from deployments.wire import Endpoint
from scheduler.reports import EngineProgress, LiveRequest, SwitchCounts

NOWHERE = Endpoint("tcp://127.0.0.1:1", zmq.curve_keypair()[0].decode())
LONG_LINE = "x" * 2**20  # far more than a pipe holds


def serve(order: EngineOrder) -> None:
    """Until the parent lets go of our input. The card tells what was found in the environment."""
    show_card(order, os.environ.get("ANSWER", ""))
    sys.stdin.buffer.read()


def refuse(_order: EngineOrder) -> None:
    say("loading the model")
    say(f"{ERROR_MARK}the model is too large")
    say("a last line of somebody else's")
    sys.exit(3)


def fall(_order: EngineOrder) -> None:
    say("Segmentation fault")
    sys.exit(139)


def be_mute(_order: EngineOrder) -> None:
    sys.exit(4)


def ramble(order: EngineOrder) -> None:
    """Long lines before the card and after it, and one that never ends."""
    say(LONG_LINE)
    show_card(order)
    say(LONG_LINE)
    say(LONG_LINE, end="")
    say(f"\n{ERROR_MARK}that was all")
    sys.exit(5)


def insist(order: EngineOrder) -> None:
    """Not even a request to end gets through."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    show_card(order)
    while True:
        signal.pause()


def babble(_order: EngineOrder) -> None:
    """Bytes that are no text."""
    sys.stdout.buffer.write(b"\xff\xfe\n")
    sys.exit(6)


def work(order: EngineOrder) -> None:
    """Answer exchanges, a step each; what priorities and pins were given shows in the progress."""
    _answer_exchanges(order)


def stick(order: EngineOrder) -> None:
    """Answer exchanges, always in the same step, with a request running."""
    _answer_exchanges(order, is_stuck=True)


def wait(order: EngineOrder) -> None:
    """Step on with a request that waits and none that runs, as a deadlocked engine does."""
    _answer_exchanges(order, num_waiting=1)


def spin(order: EngineOrder) -> None:
    """Step on with a request that runs and gets no token."""
    _answer_exchanges(order, busy_until=b"\xff")


def finish(order: EngineOrder) -> None:
    """Have a request that ends while the engine drains."""
    _answer_exchanges(order, busy_until=DRAINING)


def cling(order: EngineOrder) -> None:
    """Have a request that ends only as it goes on elsewhere."""
    _answer_exchanges(order, busy_until=PARTING)


def go_deaf(order: EngineOrder) -> None:
    """Answer heartbeats and no exchange."""
    for kind, message, answer in _connected(order):
        if kind == HEARTBEAT:
            answer(int.from_bytes(message, "little"), ECHO)


def die_young(order: EngineOrder) -> None:
    """Between the card and the first sign of life."""
    show_card(order)
    say(f"{ERROR_MARK}it was too much")
    sys.exit(7)


def _answer_exchanges(
    order: EngineOrder,
    *,
    is_stuck: bool = False,
    busy_until: bytes | None = None,
    num_waiting: int = 0,
) -> None:
    step, stage, changes = 0, ECHO, Changes({})
    for kind, message, answer in _connected(order):
        if kind == HEARTBEAT:
            answer(int.from_bytes(message, "little"), stage)
        elif kind == STAGE:
            stage = message
            say(f"stage {stage.hex()}")
            answer(REPLICA_CLIENT, stage)
        elif kind == CHANGES:
            changes = msgspec.msgpack.decode(message, type=Changes)
        elif kind == EXCHANGE:
            step += not is_stuck
            exchange = msgspec.msgpack.decode(message, type=Exchange)
            is_busy = is_stuck or (busy_until is not None and stage < busy_until)
            progress = make_progress(step, exchange, changes, int(is_busy), num_waiting)
            answer(exchange.client_index, msgspec.msgpack.encode(progress))


def _connected(order: EngineOrder) -> Iterator[tuple[bytes, bytes, Callable[[int, bytes], None]]]:
    """Kind and content of each message, and the way to answer a client; until asked to end."""
    context, keys = zmq.Context(), zmq.curve_keypair()
    source, input_end = wire.bind(context, zmq.PULL, order.host, keys=keys)
    sink, output_end = wire.bind(context, zmq.ROUTER, order.host, keys=keys)

    def answer(client_index: int, payload: bytes) -> None:
        sink.send_multipart([wire.client_identity(client_index), payload])

    show_card(order, input_end=input_end, output_end=output_end)
    while True:
        kind, message = source.recv_multipart()
        yield kind, message, answer


def make_progress(
    step: int, exchange: Exchange, changes: Changes, num_running: int, num_waiting: int
) -> EngineProgress:
    live = [
        LiveRequest(name, "acme", None, 0.0, 10, 0, 0, priority, is_running=False)
        for name, priority in changes.priorities.items()
    ]
    return EngineProgress(
        step=step,
        is_full=exchange.is_full,
        live=live,
        finished=[],
        num_running=num_running,
        num_waiting=num_waiting,
        blocks_used=0,
        blocks_total=100,
        host_blocks_used=0,
        host_blocks_total=0,
        switches=SwitchCounts(pins=len(changes.pins_s or ())),
    )


ACTS: dict[str, Callable[[EngineOrder], None]] = {
    act.__name__: act
    for act in (
        serve,
        refuse,
        fall,
        be_mute,
        babble,
        ramble,
        insist,
        work,
        stick,
        wait,
        spin,
        finish,
        cling,
        go_deaf,
        die_young,
    )
}


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)


def show_card(
    order: EngineOrder,
    answer: str = "",
    input_end: Endpoint = NOWHERE,
    output_end: Endpoint = NOWHERE,
) -> None:
    card = EngineCard(
        engine_id=order.engine_id,
        input_address=input_end.address,
        output_address=output_end.address,
        public_key=input_end.public_key,
        ready=json.dumps({"pid": os.getpid(), "answer": answer}).encode(),
        max_num_seqs=8,
        num_blocks=100,
        block_tokens=16,
    )
    with os.fdopen(order.card_fd, "wb") as line:
        line.write(msgspec.msgpack.encode(card))


if __name__ == "__main__":
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=EngineOrder)
    ACTS[order.engine_args["act"]](order)
