"""Requests that the tests steer: streams that are watched token by token, backlogs of long work."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import httpx
import msgspec

from tests.cluster.program import MODEL

COMPLETIONS = "/v1/completions"


def completion(
    prompt: Any = "It was a dark and stormy night", *, max_tokens: Any, **more: Any
) -> dict[str, Any]:
    """The body of a greedy completion that runs to its ``max_tokens``."""
    return {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        **more,
    }


async def complete(http: httpx.AsyncClient, body: dict[str, Any], *, tenant: str) -> str:
    """The text of a completion that is not streamed."""
    answer = await http.post(COMPLETIONS, json=body, headers={"X-Tenant": tenant})
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


class Stream:
    """One streamed completion, followed in a task of its own.

    It ends with ``finish_reason``, with the server's ``error``, or because ``leave`` closed it.
    """

    def __init__(self, http: httpx.AsyncClient, body: dict[str, Any], *, tenant: str) -> None:
        self.tenant = tenant
        self.asked_s = monotonic()
        self.text = ""
        self.tokens: list[int] = []
        self.finish_reason: str | None = None
        self.error: dict[str, Any] | None = None
        self.served_by: str | None = None  # the gateway, once it has begun to answer
        self.longest_gap_s = 0.0  # between two events
        self._heard_s: float | None = None
        self._began = asyncio.Event()
        self._task = asyncio.create_task(self._follow(http, body, tenant))

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def has_ended(self) -> bool:
        return self._task.done()

    async def begun(self) -> None:
        """Returns with the first token."""
        beginning = asyncio.ensure_future(self._began.wait())
        await asyncio.wait({beginning, self._task}, return_when=asyncio.FIRST_COMPLETED)
        beginning.cancel()
        assert self._began.is_set(), f"ended without a token: {self.error}"

    async def end(self) -> None:
        """Returns with the end of the stream, good or bad."""
        await self._task

    async def leave(self) -> None:
        """Close the connection, as a client that goes away."""
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _follow(self, http: httpx.AsyncClient, body: dict[str, Any], tenant: str) -> None:
        streamed = {**body, "stream": True, "return_token_ids": True}
        headers = {"X-Tenant": tenant}
        async with http.stream("POST", COMPLETIONS, json=streamed, headers=headers) as answer:
            self.served_by = answer.headers.get("x-served-by")
            if answer.status_code != 200:
                self.error = _error_in(await answer.aread())
                return
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    self._take(msgspec.json.decode(line.removeprefix("data: ")))

    def _take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.error = event["error"]
            return
        now_s = monotonic()
        self.longest_gap_s = max(self.longest_gap_s, now_s - (self._heard_s or now_s))
        self._heard_s = now_s
        [choice] = event["choices"]
        self.text += choice["text"]
        self.tokens += choice["token_ids"] or ()
        self.finish_reason = choice["finish_reason"]
        self._began.set()


def _error_in(body: bytes) -> dict[str, Any]:
    """What a refusal says: a gateway's as JSON, HAProxy's in its own words."""
    try:
        error: dict[str, Any] = msgspec.json.decode(body)["error"]
    except msgspec.DecodeError:
        return {"message": body.decode(errors="replace")}
    return error


@asynccontextmanager
async def backlog(
    http: httpx.AsyncClient, tenant: str, *, num_requests: int, max_tokens: int
) -> AsyncIterator[list["asyncio.Task[str]"]]:
    """So many requests of a tenant at once; on leaving, their client goes away.

    No two have the same prompt: else all would go to the engine that has the first one's KV, and a
    tenant's share is kept only where it has requests.
    """
    bodies = [
        completion(f"{number} dark nights", max_tokens=max_tokens) for number in range(num_requests)
    ]
    tasks = [asyncio.create_task(complete(http, body, tenant=tenant)) for body in bodies]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
