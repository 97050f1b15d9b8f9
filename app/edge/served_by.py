"""Who has answered: each answer names its gateway, as metrics, spans and logs do.

Behind one address there may be many gateways; HAProxy does not say which one it has chosen.
"""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-served-by"


class ServedByMiddleware:
    """Adds the header to whatever is answered within."""

    def __init__(self, app: ASGIApp, gateway_name: str) -> None:
        self._app = app
        self._gateway_name = gateway_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sign(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = self._gateway_name
            await send(message)

        await self._app(scope, receive, sign)
