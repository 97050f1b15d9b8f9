"""Which of many gateways has given an answer."""

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from app.edge.served_by import ServedByMiddleware


async def test_every_answer_names_its_gateway() -> None:
    """A good one as well as a refusal, over whatever the app has said itself."""

    async def answer(_request: Request) -> Response:
        return PlainTextResponse("well", headers={"X-Served-By": "somebody else"})

    app = ServedByMiddleware(Starlette(routes=[Route("/", answer)]), "gateway-1f")
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://edge") as client:
        answers = [await client.get(path) for path in ("/", "/nowhere")]

    assert [answer.status_code for answer in answers] == [200, 404]
    assert [answer.headers.get_list("x-served-by") for answer in answers] == [["gateway-1f"]] * 2
