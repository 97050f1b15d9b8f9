"""A real engine as its replica sees it: what is live in there."""

from deployments.engine_replica import EngineLine
from deployments.messages import Orders
from scheduler.reports import EngineProgress


class Watch:
    """The replica's line to the engine. An engine has one: its replica has one identity."""

    def __init__(self, line: EngineLine) -> None:
        self._line = line

    async def progress(
        self, priorities: dict[str, int] | None = None, *, is_full: bool = True
    ) -> EngineProgress:
        if priorities:
            await self._line.change(Orders(priorities))
        while True:
            try:
                return await self._line.exchange(is_full=is_full)
            except TimeoutError:
                continue

    async def live(self) -> set[str]:
        return {request.request_id for request in (await self.progress()).live}

    async def until_idle(self) -> None:
        while await self.live():
            pass
