"""The two transports against small servers in this process: what they send, what they read, how they hang up."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

from tiny_sd_client import (
    Busy,
    Cancelled,
    DeadlineExceeded,
    InvalidParameter,
    ServerFault,
    TinySDError,
    Unavailable,
    _http,
)
from tiny_sd_client._transport import Transport, address, connect

INPUTS = {"prompt": "a “cat”", "samples": 2, "seed": 2**63 - 4, "guidance_scale": 7.5, "base64": False}
BUSY = "in ensemble 'tiny_sd', busy: 4 of 4 generations are in flight; come back in 2 s"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may stand still for longer than a client waits for a connection."""
    monkeypatch.setattr(_http, "_CONNECT_S", 300.0)


@contextmanager
def silent_port() -> Iterator[int]:
    """A port that refuses connections, and nobody else gets; gRPC may listen on it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


async def collect(transport: Transport, **options: Any) -> list[Any]:
    options = {"request_id": "", "timeout": None, **options}
    return [each async for each in transport.stream("tiny_sd_stream", INPUTS, **options)]


@asynccontextmanager
async def connected(url: str, **headers: str) -> AsyncIterator[Transport]:
    transport = connect(address(url, headers, None))
    try:
        yield transport
    finally:
        await transport.close()


# --- gRPC


def response(**tensors: tuple[str, list[Any]]) -> Any:
    """A model's answer, as Triton sends it."""
    answer = service_pb2.ModelInferResponse(model_name="m", id="x")
    for name, (datatype, values) in tensors.items():
        answer.outputs.add(name=name, datatype=datatype, shape=[1, len(values)])
        if datatype == "BYTES":
            packed = serialize_byte_tensor(np.array([values], np.object_))
            answer.raw_output_contents.append(packed.item() if packed.size else b"")
        else:
            kind = {"INT32": np.int32, "INT64": np.int64, "FP64": np.float64}[datatype]
            answer.raw_output_contents.append(np.array([values], kind).tobytes())
    return answer


@dataclass
class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers every request with ``answers``; an entry that is a status ends the call, None waits for ever."""

    answers: list[Any] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.metadata.append(dict(context.invocation_metadata()))
        self.requests += [request async for request in requests]
        try:
            for answer in self.answers:
                if answer is None:
                    await asyncio.Event().wait()
                elif isinstance(answer, tuple):
                    await context.abort(*answer)
                elif isinstance(answer, str):
                    yield service_pb2.ModelStreamInferResponse(error_message=answer)
                else:
                    yield service_pb2.ModelStreamInferResponse(infer_response=answer)
        except asyncio.CancelledError:
            self.hung_up.set()
            raise

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.metadata.append(dict(context.invocation_metadata()))
        self.requests.append(request)
        if isinstance(self.answers[0], tuple):
            await context.abort(*self.answers[0])
        return self.answers[0]

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerReadyResponse(ready=True)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0")


def with_grpc(
    use: Callable[[Transport, FakeTriton], Awaitable[Any]], *answers: Any, **headers: str
) -> tuple[Any, FakeTriton]:
    """What ``use`` returns, and the server it was used with."""

    async def session() -> tuple[Any, FakeTriton]:
        triton = FakeTriton(list(answers))
        server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with connected(f"grpc://127.0.0.1:{port}", **headers) as transport:
                return await use(transport, triton), triton
        finally:
            await server.stop(None)

    return asyncio.run(session())


def test_grpc_sends_tensors_id_timeout_and_headers() -> None:
    _, triton = with_grpc(
        lambda transport, _: collect(transport, request_id="mine", timeout=2.5), response(), Authorization="Bearer x"
    )
    (request,) = triton.requests
    assert (request.model_name, request.id) == ("tiny_sd_stream", "mine")
    assert request.parameters["timeout"].int64_param == 2_500_000
    sent = {
        tensor.name: (
            tensor.datatype,
            list(tensor.shape),
            *(list(values) for _, values in tensor.contents.ListFields()),
        )
        for tensor in request.inputs
    }
    assert sent == {
        "prompt": ("BYTES", [1, 1], ["a “cat”".encode()]),
        "samples": ("INT32", [1, 1], [2]),
        "seed": ("INT64", [1, 1], [2**63 - 4]),
        "guidance_scale": ("FP32", [1, 1], [7.5]),
        "base64": ("BOOL", [1, 1], [False]),
    }
    assert triton.metadata[0]["authorization"] == "Bearer x"


def test_grpc_sends_no_id_and_no_timeout_where_none_is_given() -> None:
    _, triton = with_grpc(lambda transport, _: collect(transport), response())
    assert triton.requests[0].id == ""
    assert dict(triton.requests[0].parameters) == {}


def test_grpc_reads_tensors_as_plain_values() -> None:
    answer = response(
        job_id=("BYTES", [b"a"]),
        seeds=("INT64", [1, 2]),
        seconds=("FP64", [0.5]),
        step=("INT32", []),
        image=("BYTES", []),
    )
    outputs, _ = with_grpc(lambda transport, _: collect(transport), answer, answer)
    assert outputs == [{"job_id": [b"a"], "seeds": [1, 2], "seconds": [0.5], "step": [], "image": []}] * 2
    assert type(outputs[0]["seeds"][0]) is int


def test_grpc_answers_that_make_no_sense_are_a_fault_of_the_server() -> None:
    answer = response(step=("INT32", [1, 2]))
    answer.raw_output_contents[0] = b"abc"

    async def use(transport: Transport, _: FakeTriton) -> None:
        with pytest.raises(ServerFault, match="not as Triton does"):
            await collect(transport)

    with_grpc(use, answer)


def test_grpc_takes_messages_of_any_size() -> None:
    picture = bytes(12_000_000)
    outputs, _ = with_grpc(lambda transport, _: collect(transport), response(image=("BYTES", [picture])))
    assert outputs == [{"image": [picture]}]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (BUSY, Busy),
        ((grpc.StatusCode.UNAVAILABLE, BUSY), Busy),
        ((grpc.StatusCode.UNAVAILABLE, "Socket closed"), Unavailable),
        ((grpc.StatusCode.INVALID_ARGUMENT, "samples: got 9; allowed: 1 to 4"), InvalidParameter),
        ((grpc.StatusCode.ALREADY_EXISTS, "id: got 'x'; allowed: an id that no generation has"), InvalidParameter),
        ((grpc.StatusCode.INTERNAL, "the denoiser failed"), ServerFault),
        ((grpc.StatusCode.INTERNAL, "token: not a parameter, for the status says so"), ServerFault),
        ((grpc.StatusCode.UNAUTHENTICATED, "who are you"), ServerFault),
        ((grpc.StatusCode.CANCELLED, "cancelled: the generation was cancelled"), Cancelled),
        ((grpc.StatusCode.CANCELLED, ""), Cancelled),
        ((grpc.StatusCode.DEADLINE_EXCEEDED, "too late"), DeadlineExceeded),
        ((grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'x' is not found"), ServerFault),
    ],
)
def test_grpc_errors_have_their_kind(answer: Any, kind: type[TinySDError]) -> None:
    async def use(transport: Transport, triton: FakeTriton) -> None:
        seen = []
        with pytest.raises(TinySDError) as caught:
            async for each in transport.stream("tiny_sd_stream", INPUTS, "", None):
                seen.append(each)  # noqa: PERF401
        assert type(caught.value) is kind
        assert seen == [{}]
        if isinstance(answer, tuple):
            triton.answers = [answer]
            with pytest.raises(kind):
                await transport.call("jobs", {"action": "list"})

    with_grpc(use, response(), answer)


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_grpc_cancels_a_stream_that_is_broken_off(how: str) -> None:
    async def use(transport: Transport, triton: FakeTriton) -> None:
        if how == "close":
            async with aclosing(transport.stream("tiny_sd_stream", INPUTS, "", None)) as events:
                await anext(events)
        else:
            task = asyncio.create_task(collect(transport))
            await until(lambda: triton.requests)
            task.cancel()
        await asyncio.wait_for(triton.hung_up.wait(), 60)

    with_grpc(use, response(), None)


def test_grpc_asks_for_the_state_of_the_server() -> None:
    assert with_grpc(lambda transport, _: transport.status())[0] == (True, "2.51.0")


def test_grpc_finds_a_server_soon_after_it_has_come_back() -> None:
    async def session(port: int) -> None:
        async with connected(f"grpc://127.0.0.1:{port}") as transport:
            for _ in range(4):
                with pytest.raises(Unavailable, match=rf"grpc://127\.0\.0\.1:{port}: .*refused"):
                    await transport.status()
                await asyncio.sleep(0.3)
            server = grpc.aio.server()
            service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(FakeTriton(), server)
            assert server.add_insecure_port(f"127.0.0.1:{port}") == port
            await server.start()
            for _ in range(15):  # 1.5 s, in which a moment at which the machine stands still counts as 0.1 s
                await asyncio.sleep(0.1)
                with suppress(Unavailable):
                    assert await transport.status() == (True, "2.51.0")
                    break
            else:
                pytest.fail("it has not been found")
            await server.stop(None)

    with silent_port() as port:
        asyncio.run(session(port))


# --- HTTP


@dataclass
class Page:
    """An HTTP answer: status line, type, and the pieces of its body; a None waits until the caller hangs up."""

    status: str
    kind: str
    pieces: list[bytes | None]


@dataclass
class FakeHttp:
    """Answers every request with ``page``, and keeps what it was sent."""

    page: Page
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    connections: int = 0
    open: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.requests.append((head[0], headers, json.loads(body or "null")))
            page = self.page
            writer.write(
                f"HTTP/1.1 {page.status}\r\nContent-Type: {page.kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            )
            for piece in page.pieces:
                if piece is None:
                    await reader.read()
                    return
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
                await asyncio.sleep(0)
            if page.pieces[-1:] != [b"lost"]:
                writer.write(b"0\r\n\r\n")
                await reader.read()
        except ConnectionError:
            pass
        finally:
            self.open -= 1
            writer.close()


def events(*answers: Any, status: str = "200 OK") -> Page:
    pieces = [f"data: {json.dumps(answer, ensure_ascii=False)}\n\n".encode() for answer in answers]
    return Page(status, "text/event-stream; charset=utf-8", pieces)


def document(answer: Any, status: str = "200 OK") -> Page:
    return Page(status, "application/json", [json.dumps(answer).encode()])


def with_http(
    use: Callable[[Transport, FakeHttp], Awaitable[Any]], page: Page, path: str = "", **headers: str
) -> tuple[Any, FakeHttp]:
    """What ``use`` returns, and the server it was used with."""

    async def session() -> tuple[Any, FakeHttp]:
        fake = FakeHttp(page)
        async with await asyncio.start_server(fake.serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with connected(f"http://127.0.0.1:{port}{path}", **headers) as transport:
                return await use(transport, fake), fake

    return asyncio.run(session())


def test_http_sends_json_id_timeout_and_headers() -> None:
    _, fake = with_http(
        lambda transport, _: collect(transport, request_id="mine", timeout=2.5),
        events({}),
        "/base",
        Authorization="Bearer x",
    )
    ((request, headers, body),) = fake.requests
    assert request == "POST /base/v2/models/tiny_sd_stream/generate_stream HTTP/1.1"
    assert body == {**INPUTS, "id": "mine", "timeout": 2_500_000}
    assert headers["authorization"] == "bearer x"
    assert headers["accept-encoding"] == "identity"


def test_http_sends_no_id_and_no_timeout_where_none_is_given() -> None:
    _, fake = with_http(lambda transport, _: collect(transport), events({}))
    assert fake.requests[0][2] == INPUTS


def test_http_puts_single_values_into_lists_as_triton_took_them_out() -> None:
    outputs, _ = with_http(
        lambda transport, _: collect(transport), events({"job_id": "a", "seeds": [1, 2], "step": 3}, {"image": []})
    )
    assert outputs == [{"job_id": ["a"], "seeds": [1, 2], "step": [3]}, {"image": []}]


def test_http_reads_events_however_the_network_cuts_them() -> None:
    whole = b"".join(filter(None, events({"image": "x" * 3_000_000}, {"step": 1}, {"text": "ü€\u2028"}).pieces))
    cuts = [0, 1, 5, 1000, 2_999_999, len(whole) - 15, len(whole) - 5, len(whole) - 4, len(whole)]
    pieces: list[bytes | None] = [whole[start:end] for start, end in pairwise(cuts)]
    outputs, _ = with_http(lambda transport, _: collect(transport), Page("200 OK", "text/event-stream", pieces))
    assert outputs == [{"image": ["x" * 3_000_000]}, {"step": [1]}, {"text": ["ü€\u2028"]}]


FAULTS: list[tuple[Page, type[TinySDError]]] = [
    (events({"error": BUSY}, status="400 Bad Request"), Busy),
    (events({"step": 1}, {"error": "cancelled: the generation was cancelled"}), Cancelled),
    (events({"error": "samples: got 9; allowed: 1 to 4"}, status="400 Bad Request"), InvalidParameter),
    (document({"error": "Unable to parse 'samples': not an integer"}, "500 Internal Server Error"), ServerFault),
    (document({"error": "Request for unknown model: 'x' is not found"}, "400 Bad Request"), ServerFault),
    (document({"error": "Server is stopping, come back"}, "400 Bad Request"), Unavailable),
    (document({"error": "overdue: too late"}, "503 Service Unavailable"), DeadlineExceeded),
    (Page("502 Bad Gateway", "text/html", [b"<html>nobody home</html>"]), Unavailable),
    (Page("503 Service Unavailable", "text/html", [b""]), Unavailable),
    (Page("504 Gateway Timeout", "text/plain", [b"upstream: timed out"]), Unavailable),
    (Page("404 Not Found", "text/html", [b"page: missing"]), ServerFault),
    (Page("401 Unauthorized", "text/plain", [b"token: expired"]), ServerFault),
    (Page("301 Moved Permanently", "text/html", [b"elsewhere"]), ServerFault),
    (Page("200 OK", "text/html", [b"<html>a page</html>"]), ServerFault),
    (Page("200 OK", "text/event-stream", [b"data: {]\n\n"]), ServerFault),
    (Page("200 OK", "text/event-stream", [b"data: [1]\n\n"]), ServerFault),
    (Page("200 OK", "text/event-stream\r\nContent-Encoding: gzip", [b"data: {}\n\n"]), ServerFault),
    (Page("200 OK", "text/event-stream", [b"data: " + b"[" * 100_000 + b"\n\n"]), ServerFault),
    (Page("200 OK", "text/event-stream", [b'data: {"step": 1}\n\n', b"lost"]), Unavailable),
]


@pytest.mark.parametrize(("page", "kind"), FAULTS, ids=[f"{page.status} {kind.__name__}" for page, kind in FAULTS])
def test_http_errors_have_their_kind(page: Page, kind: type[TinySDError]) -> None:
    async def use(transport: Transport, _: FakeHttp) -> None:
        with pytest.raises(TinySDError) as caught:
            await collect(transport)
        assert type(caught.value) is kind
        if page.kind != "text/event-stream" and page.status != "200 OK":
            with pytest.raises(kind):
                await transport.call("jobs", {"action": "list"})

    with_http(use, page)


def test_http_asks_once_and_hangs_up_so_that_the_server_can_stop() -> None:
    async def use(transport: Transport, fake: FakeHttp) -> None:
        for _ in range(3):
            assert await transport.call("jobs", {"action": "list"}) == {"max_in_flight": [32], "job_id": []}
        await until(lambda: not fake.open)
        assert fake.connections == 3

    _, fake = with_http(use, document({"max_in_flight": 32, "job_id": []}))
    assert fake.requests[0][0] == "POST /v2/models/jobs/generate HTTP/1.1"
    assert fake.requests[0][2] == {"action": "list"}


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_http_hangs_up_on_a_stream_that_is_broken_off(how: str) -> None:
    async def use(transport: Transport, fake: FakeHttp) -> None:
        if how == "close":
            async with aclosing(transport.stream("tiny_sd_stream", INPUTS, "", None)) as answers:
                await anext(answers)
                assert fake.open == 1
        else:
            task = asyncio.create_task(collect(transport))
            await until(lambda: fake.requests)
            task.cancel()
        await until(lambda: not fake.open)

    page = events({"step": 1})
    page.pieces.append(None)
    with_http(use, page)


def test_http_has_as_many_streams_as_are_wanted() -> None:
    async def use(transport: Transport, fake: FakeHttp) -> None:
        tasks = [asyncio.create_task(collect(transport)) for _ in range(150)]
        await until(lambda: fake.open == 150)
        for task in tasks:
            task.cancel()

    page = events({"step": 1})
    page.pieces.append(None)
    with_http(use, page)


def test_http_asks_for_the_state_of_the_server() -> None:
    state, fake = with_http(lambda transport, _: transport.status(), document({"name": "triton", "version": "2.51.0"}))
    assert state == (True, "2.51.0")
    assert [request[0] for request in fake.requests] == ["GET /v2/health/ready HTTP/1.1", "GET /v2 HTTP/1.1"]


@pytest.mark.parametrize("host", ["\u2603", "there\x01"])
def test_http_refuses_a_host_that_cannot_be(host: str) -> None:
    async def use() -> None:
        async with connected(f"http://{host}") as transport:
            for ask in (transport.status(), transport.call("jobs", {"action": "list"}), collect(transport)):
                with pytest.raises(ServerFault, match="Invalid"):
                    await ask

    asyncio.run(use())


def test_http_names_the_server_that_does_not_answer() -> None:
    async def session(port: int) -> None:
        async with connected(f"http://127.0.0.1:{port}") as transport:
            for ask in (transport.status(), transport.call("jobs", {}), collect(transport)):
                with pytest.raises(Unavailable, match=rf"^http://127\.0\.0\.1:{port}: "):
                    await ask

    with silent_port() as port:
        asyncio.run(session(port))
