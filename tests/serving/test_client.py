"""The client library on a real server: both clients over both protocols, encrypted, guarded, stopped and killed."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme
from callers import change_of, grpc, job_ids
from PIL import Image
from serving_server import serve

from local_server import LocalServer
from tiny_sd_client import (
    TLS,
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    Generation,
    InvalidParameter,
    Progress,
    ServerFault,
    Stage,
    Unavailable,
    UnknownJob,
)

ASKED: dict[str, Any] = {"seed": 98877465625, "scheduler": "euler_a", "guidance_scale": 4.2, "samples": 2}
LONG: dict[str, Any] = {
    "num_inference_steps": 100,
    "scheduler": "Heun",
    "samples": 4,
    "img_width": 1024,
    "img_height": 1024,
}
"""Takes far longer than anything that these tests do to it: it is always broken off."""
EVALUATIONS = 4 * 199
"""Of the U-Net, if nobody stops it."""


class InThreads:
    """The blocking client, behind the interface of the asyncio one: every call in a thread."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self._client = Client(*arguments, **settings)

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._client, name)
        return lambda *arguments, **options: asyncio.to_thread(method, *arguments, **options)

    async def stream(self, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        events = self._client.stream(*arguments, **options)
        try:
            while (event := await asyncio.to_thread(next, events, None)) is not None:
                yield event
        finally:
            await asyncio.to_thread(events.close)

    async def generate_many(self, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        generations = self._client.generate_many(*arguments, **options)
        while (generation := await asyncio.to_thread(next, generations, None)) is not None:
            yield generation

    def submit(self, *arguments: Any, **options: Any) -> Any:
        return JobInThreads(self._client.submit(*arguments, **options))

    async def __aenter__(self) -> InThreads:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class JobInThreads:
    """The blocking job, behind the interface of the asyncio one."""

    def __init__(self, job: Any) -> None:
        self.id, self.progress, self.done = job.id, job.progress, job.done
        self.result = lambda timeout=None: asyncio.to_thread(job.result, timeout)
        self.cancel = lambda: asyncio.to_thread(job.cancel)


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, server: LocalServer) -> str:
    return urls(server)[request.param]


@pytest.fixture(params=[AsyncClient, InThreads], ids=["asyncio", "blocking"])
def run(request: pytest.FixtureRequest, url: str) -> Callable[..., Any]:
    """Run a coroutine function with one of the clients over one of the protocols."""

    def session(use: Callable[[Any], Awaitable[Any]], **settings: Any) -> Any:
        async def main() -> Any:
            async with request.param(url, **settings) as client:
                return await use(client)

        return asyncio.run(main())

    return session


def urls(server: LocalServer) -> dict[str, str]:
    return {"grpc": f"grpc://{server.grpc_url}", "http": f"http://{server.http_url}"}


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


async def become(true: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, true)


@contextmanager
def stopped_early(server: LocalServer) -> Iterator[None]:
    """The server does not work to the end of what is begun and stopped in the block."""
    with change_of(server.metrics_url) as change:
        yield
        wait_until(lambda: job_ids(server.http_url) == [])
    assert change["tiny_sd_unet_steps_total:unet"] < EVALUATIONS / 2


def test_generate_returns_the_pictures_of_a_plain_call(run: Callable[..., Any], server: LocalServer) -> None:
    plain = grpc(server.grpc_url, prompt="a red circle", image_format="webp", **ASKED)
    generation = run(lambda client: client.generate("a red circle", image_format="webp", **ASKED))
    assert list(generation.files) == plain.images
    assert list(generation.seeds) == plain.seeds
    assert generation.parameters.picture() == plain.parameters
    assert [(image.size, image.mode) for image in generation.images] == [((512, 512), "RGB")] * 2
    assert 0 < generation.timings.server <= generation.timings.total


def test_a_generation_can_be_made_again_from_what_it_returns(run: Callable[..., Any]) -> None:
    async def use(client: Any) -> None:
        first = await client.generate("ein roter Kreis, 赤い円", negative_prompt="blurry")
        assert (await client.generate(**first.parameters.picture())).files == first.files
        assert (await client.generate("ein roter Kreis, 赤い円", negative_prompt="blurry")).files != first.files

    run(use)


def test_a_stream_counts_up_to_the_last_step_and_shows_previews(run: Callable[..., Any]) -> None:
    async def use(client: Any) -> None:
        wanted = {"seed": 5, "num_inference_steps": 60, "samples": 2, "job_id": "a-stream"}
        events = [event async for event in client.stream("a red circle", preview_every=15, **wanted)]
        told, generation = events[:-1], events[-1]
        assert isinstance(generation, Generation)
        assert all(isinstance(each, Progress) for each in told)
        steps = [each.step for each in told]
        assert steps == sorted(steps)
        assert len(set(steps)) > 3
        assert (told[-1].stage, told[-1].step, told[-1].fraction) == (Stage.DONE, 60, 1.0)
        assert {each.job_id for each in events} == {"a-stream"}
        shown = [each for each in told if each.previews]
        assert 2 <= len(shown) <= 4
        for each in shown:
            files = [Image.open(io.BytesIO(preview)) for preview in each.previews]
            assert [(file.format, file.width == file.height < 512) for file in files] == [("JPEG", True)] * 2
            assert each.preview.size == files[0].size
        assert (
            await client.generate("a red circle", seed=5, num_inference_steps=60, samples=2)
        ).files == generation.files

    run(use)


def test_a_job_is_followed_by_its_id_and_gives_its_pictures(run: Callable[..., Any]) -> None:
    async def use(client: Any) -> None:
        job = client.submit("a red circle", **LONG)
        while not (progress := job.progress()) or progress.step == 0:
            await asyncio.sleep(0.01)
        seen = await client.job(job.id)
        assert (seen.job_id, seen.steps) == (job.id, 100)
        assert progress.step <= seen.step <= 100
        assert job.id in [each.job_id for each in await client.jobs()]
        assert job.id in [each.job_id for each in (await client.status()).jobs]
        with pytest.raises(TimeoutError, match="goes on"):
            await job.result(timeout=0.01)
        await job.cancel()

        job = client.submit("a red circle", seed=5)
        generation = await job.result(timeout=300)
        assert generation.job_id == job.id
        assert (job.done(), job.progress().step) == (True, 20)
        with pytest.raises(UnknownJob) as caught:
            await client.job(job.id)
        assert caught.value.job_id == job.id

    run(use)


def test_a_job_can_be_cancelled_by_itself_or_by_its_id(run: Callable[..., Any], server: LocalServer) -> None:
    async def use(client: Any) -> None:
        mine, other = client.submit("mine", **LONG), client.submit("other", job_id="other-job", **LONG)
        await become(lambda: {mine.id, "other-job"} <= set(job_ids(server.http_url)))
        await mine.cancel()
        await client.cancel("other-job")
        for job in (mine, other):
            with pytest.raises(Cancelled):
                await job.result(timeout=300)
            assert job.done()
        await become(lambda: job_ids(server.http_url) == [])
        with pytest.raises(UnknownJob):
            await client.cancel("other-job")

    run(use)


def test_many_come_in_order_and_as_they_would_alone(run: Callable[..., Any]) -> None:
    async def use(client: Any) -> None:
        prompts: list[Any] = ["a red circle", {"prompt": "a blue square", "num_inference_steps": 60}, "a tree", "a dog"]
        made = [each async for each in client.generate_many(prompts, concurrency=3, seed=7)]
        assert [each.parameters.prompt for each in made] == ["a red circle", "a blue square", "a tree", "a dog"]
        assert [each.parameters.num_inference_steps for each in made] == [20, 60, 20, 20]
        for each in (made[0], made[1]):
            assert (await client.generate(**each.parameters.picture())).files == each.files

    run(use)


def test_the_status_tells_version_and_room(run: Callable[..., Any]) -> None:
    status = run(lambda client: client.status())
    assert (status.ready, status.version, status.max_in_flight) == (True, "2.51.0", 32)


# --- errors


def test_what_the_server_refuses_is_named_with_what_it_allows(run: Callable[..., Any]) -> None:
    async def use(client: Any) -> None:
        with pytest.raises(InvalidParameter) as caught:
            await client.generate("a red circle", img_width=300)
        assert (caught.value.parameter, caught.value.allowed) == ("img_width", "512, 768, 1024")
        with pytest.raises(InvalidParameter, match=r"^prompt: .*tokens long; at most 1200"):
            await client.generate("🎨" * 4000)
        async with aclosing(client.stream("one", **LONG)) as events:
            first = await anext(events)
            with pytest.raises(InvalidParameter, match=r"^id: "):
                await client.generate("another", job_id=first.job_id)

    run(use)


def test_a_timeout_stops_the_work_on_the_server(run: Callable[..., Any], server: LocalServer) -> None:
    async def use(client: Any) -> None:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await client.generate("a red circle", timeout=0.5, **LONG)
        assert time.monotonic() - began >= 0.5

    with stopped_early(server):
        run(use)


@pytest.mark.parametrize("prompt", ["{}", '"', "\\", "a\nb\tc", "</data>\n\ndata: {}", "ü 猫 🐈 \u2028"])
def test_any_prompt_goes_there_and_back(prompt: str, run: Callable[..., Any]) -> None:
    generation = run(lambda client: client.generate(prompt, negative_prompt=prompt))
    assert generation.parameters.prompt == generation.parameters.negative_prompt == prompt


# --- breaking off


def test_a_stream_that_is_left_is_cancelled(run: Callable[..., Any], server: LocalServer) -> None:
    async def use(client: Any) -> None:
        async with aclosing(client.stream("a red circle", **LONG)) as events:
            async for event in events:
                if event.step:
                    break
        await become(lambda: job_ids(server.http_url) == [])  # while the client is still there

    with stopped_early(server):
        run(use)


def test_a_cancelled_task_is_cancelled_on_the_server(url: str, server: LocalServer) -> None:
    async def use() -> None:
        async with AsyncClient(url) as client:
            task = asyncio.create_task(client.generate("a red circle", **LONG))
            await become(lambda: len(job_ids(server.http_url)) == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await become(lambda: job_ids(server.http_url) == [])

    with stopped_early(server):
        asyncio.run(use())


def test_leaving_many_cancels_those_under_way(run: Callable[..., Any], server: LocalServer) -> None:
    async def use(client: Any) -> None:
        prompts = [{"prompt": "a red circle"}, *[{"prompt": "long", **LONG}] * 10]
        async for _ in client.generate_many(prompts, concurrency=4):
            break
        await become(lambda: job_ids(server.http_url) == [])

    with stopped_early(server):
        run(use)


PROGRAM = f"""
import sys
from tiny_sd_client import Client
Client(sys.argv[1]).generate("a red circle", job_id="victim", **{LONG})
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_program_that_ends_is_noticed_by_the_server(end: signal.Signals, url: str, server: LocalServer) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "client")}
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, url], env=environment, stderr=subprocess.PIPE, text=True)
    with stopped_early(server):
        try:
            wait_until(lambda: job_ids(server.http_url) == ["victim"])
            program.send_signal(end)
            _, complaint = program.communicate(timeout=60)
        finally:
            program.kill()
        assert program.returncode == -end
        assert complaint.endswith("KeyboardInterrupt\n" if end == signal.SIGINT else "")


# --- encrypted and guarded

KEY = "tiny-sd-key"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def pem(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files with the authority, the certificate of a server on this machine, and that of a client."""
    folder = tmp_path_factory.mktemp("pem")
    server, client = authority.issue_cert("localhost", "127.0.0.1"), authority.issue_cert("client@example.org")
    pem = {
        "ca": (authority.cert_pem, "ca.pem"),
        "server": (server.private_key_and_cert_chain_pem, "server.pem"),
        "server_key": (server.private_key_pem, "server.key"),
        "server_certificate": (server.cert_chain_pems[0], "server.crt"),
        "key": (client.private_key_pem, "client.key"),
        "certificate": (client.cert_chain_pems[0], "client.crt"),
    }
    for blob, name in pem.values():
        blob.write_to_path(str(folder / name))
    return {name: folder / file for name, (_, file) in pem.items()}


@pytest.fixture(scope="module")
def guarded(
    checkpoint: Path, pem: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """URLs of an encrypted server that wants a client's certificate and, for inference, a secret header."""
    log = tmp_path_factory.mktemp("guarded") / "log"
    arguments = [
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={pem['server_certificate']}",
        f"--grpc-server-key={pem['server_key']}",
        f"--grpc-root-cert={pem['ca']}",
        f"--grpc-restricted-protocol=inference:{KEY}=secret",
        f"--http-restricted-api=inference:{KEY}=secret",
    ]
    with serve(checkpoint, log, {}, *arguments) as server, tls_in_front_of(server, pem) as port:
        yield {"grpcs": f"grpcs://localhost:{server.ports.grpc}", "https": f"https://localhost:{port}"}


@contextmanager
def tls_in_front_of(server: LocalServer, pem: dict[str, Path]) -> Iterator[int]:
    """The port of a forwarder to the server's HTTP endpoint, which itself knows no TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=pem["ca"])
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(pem["server"])

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server = await asyncio.open_connection("127.0.0.1", server.ports.http)
        await asyncio.gather(copy(reader, to_server[1]), copy(to_server[0], writer))

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    starting = asyncio.start_server(forward, "127.0.0.1", 0, ssl=context)
    listening = asyncio.run_coroutine_threadsafe(starting, loop).result(60)
    yield listening.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(listening.close)
    loop.call_soon_threadsafe(loop.stop)


HEADERS = {"grpcs": {f"triton-grpc-protocol-{KEY}": "secret"}, "https": {KEY: "secret"}}


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
def test_an_encrypted_server_is_reached_with_certificates_and_headers(
    scheme: str, guarded: dict[str, str], pem: dict[str, Path], server: LocalServer
) -> None:
    tls = TLS(ca=pem["ca"], certificate=pem["certificate"], key=pem["key"])
    plain = grpc(server.grpc_url, prompt="a red circle", seed=5)
    with Client(guarded[scheme], tls=tls, headers=HEADERS[scheme]) as client:
        assert client.status().ready
        assert list(client.generate("a red circle", seed=5).files) == plain.images
        *told, last = client.stream("a red circle", preview_every=5, seed=5)
        assert told
        assert isinstance(last, Generation)
        job = client.submit("a red circle", **LONG)
        wait_until(lambda: len(client.jobs()) == 1)
        job.cancel()
        wait_until(lambda: client.jobs() == [])


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
def test_a_server_that_wants_a_header_is_not_tried_again_without_it(
    scheme: str, guarded: dict[str, str], pem: dict[str, Path]
) -> None:
    tls = TLS(ca=pem["ca"], certificate=pem["certificate"], key=pem["key"])
    began = time.monotonic()
    with (
        Client(guarded[scheme], tls=tls) as client,
        pytest.raises(ServerFault, match=f"{guarded[scheme]}: .*restricted"),
    ):
        client.generate("a red circle")
    assert time.monotonic() - began < 60, "so long its patience lasts"


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
def test_a_server_that_no_authority_vouches_for_is_not_the_server(
    scheme: str, guarded: dict[str, str], pem: dict[str, Path], tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))
    tls = TLS(ca=stranger, certificate=pem["certificate"], key=pem["key"])
    began = time.monotonic()
    with Client(guarded[scheme], tls=tls) as client, pytest.raises(ServerFault, match=r"(?i)certificate.verify.failed"):
        client.generate("a red circle")
    assert time.monotonic() - began < 60, "so long its patience lasts"


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
def test_a_client_without_its_certificate_stays_outside(
    scheme: str, guarded: dict[str, str], pem: dict[str, Path]
) -> None:
    settings: dict[str, Any] = {"tls": TLS(ca=pem["ca"]), "headers": HEADERS[scheme], "patience": 0}
    with Client(guarded[scheme], **settings) as client, pytest.raises((Unavailable, ServerFault)):
        client.generate("a red circle")


@pytest.mark.parametrize(("plain", "encrypted"), [("grpc", "grpcs"), ("http", "https")])
def test_an_unencrypted_call_of_an_encrypted_server_fails_clearly(
    plain: str, encrypted: str, guarded: dict[str, str]
) -> None:
    url = guarded[encrypted].replace(encrypted, plain)
    with Client(url, patience=0) as client, pytest.raises((Unavailable, ServerFault), match=url):
        client.generate("a red circle")


# --- gone


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_is_not_there_is_named_when_patience_ends(scheme: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"{scheme}://127.0.0.1:{nobody.getsockname()[1]}"
        with Client(url, patience=1) as client:
            began = time.monotonic()
            with pytest.raises(Unavailable, match=url):
                client.generate("a red circle")
            assert 1 <= time.monotonic() - began < 60, "so long patience lasts by default"
        with Client(url) as client, Client(url, patience=0) as hasty:
            began = time.monotonic()
            with pytest.raises(Unavailable, match=url):
                client.status()
            with pytest.raises(Unavailable, match=url):
                next(hasty.stream("a red circle"))
            assert time.monotonic() - began < 60


def test_between_calls_no_connection_keeps_a_server_from_stopping(server: LocalServer) -> None:
    def connections() -> int:
        everything = psutil.Process().net_connections()
        return sum(bool(each.raddr) and each.raddr.port == server.ports.http for each in everything)

    with Client(urls(server)["http"]) as client:
        job = client.submit("a red circle", **LONG)
        wait_until(lambda: job.progress() is not None)
        assert connections() == 1
        job.cancel()
        assert client.generate("a red circle").files
        assert client.status().ready
        wait_until(lambda: connections() == 0)


def test_a_server_that_dies_is_noticed_and_one_that_comes_back_makes_the_same_pictures(
    checkpoint: Path, server: LocalServer, tmp_path: Path
) -> None:
    wanted: dict[str, Any] = {"num_inference_steps": 60, "seed": 5}
    plain = grpc(server.grpc_url, prompt="a red circle", **wanted)
    mortal = serve(checkpoint, tmp_path / "log", {})
    mortal.start()
    clients = [Client(url, patience=400) for url in urls(mortal).values()]
    with ThreadPoolExecutor() as pool:
        try:
            # Many, so that those who are patient do not get their pictures before the server dies.
            streams = [client.stream("gone", **LONG) for client in clients for _ in range(10)]
            assert all(next(stream) for stream in streams)
            patient = [pool.submit(client.generate, "a red circle", **wanted) for client in clients]
            wait_until(lambda: len(clients[0].jobs()) == 22)
            mortal.kill()
            began = time.monotonic()
            for stream, url in zip(streams, [url for url in urls(mortal).values() for _ in range(10)], strict=True):
                with pytest.raises(Unavailable, match=url):
                    list(stream)
            assert time.monotonic() - began < 60, "after so long a silence it would be noticed anyway"

            mortal.start()
            for each in patient:
                assert list(each.result(300).files) == plain.images

            wanted = {"num_inference_steps": 100, "scheduler": "Heun", "samples": 2}
            streams = [client.stream("too late", **wanted) for client in clients]
            assert all(next(stream) for stream in streams)
            stopping = pool.submit(mortal.stop)
            for stream in streams:
                # What the last stages of Triton's ensemble have not begun when it stops is refused by them.
                with suppress(Unavailable):
                    assert isinstance(list(stream)[-1], Generation)
            stopping.result(120)
            for url in urls(mortal).values():
                with Client(url, patience=0) as client, pytest.raises(Unavailable, match=url):
                    client.generate("nobody is there")
        finally:
            for client in clients:
                client.close()
            mortal.stop()
