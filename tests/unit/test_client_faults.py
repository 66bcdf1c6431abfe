"""Which error a message of the server becomes, and which addresses can be used."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_sd_client import (
    TLS,
    Busy,
    Cancelled,
    Client,
    DeadlineExceeded,
    InvalidParameter,
    ServerFault,
    TinySDError,
    Unavailable,
    UnknownJob,
)
from tiny_sd_client._faults import fault, unreachable
from tiny_sd_client._transport import Address, address

URL = "grpc://there:8001"
STOPPING = "Server is stopping, scheduler for model has stopped accepting new inference requests"

CASES: list[tuple[str, type[TinySDError], str]] = [
    (
        "busy: 32 of 32 generations are in flight; come back in 3 s",
        Busy,
        "32 of 32 generations are in flight; come back in 3 s",
    ),
    ("busy: come back later", Busy, "come back later"),
    (
        "overdue: the request's timeout passed before the picture was finished",
        DeadlineExceeded,
        "the request's timeout passed before the picture was finished",
    ),
    ("cancelled: the generation was cancelled", Cancelled, "the generation was cancelled"),
    (
        "unknown_job: no generation in flight has this id; it has ended or never was",
        UnknownJob,
        "no generation in flight has this id; it has ended or never was",
    ),
    (
        "img_width: got 300; allowed: 512, 768, 1024",
        InvalidParameter,
        "img_width: got 300; allowed: 512, 768, 1024",
    ),
    ("id: is in flight already", InvalidParameter, "id: is in flight already"),
    (
        "prompt: the text of\nseveral: lines",
        InvalidParameter,
        "prompt: the text of\nseveral: lines",
    ),
    ("the denoiser failed", ServerFault, f"{URL}: the denoiser failed"),
    ("the denoiser failed: out of memory", ServerFault, f"{URL}: the denoiser failed: out of memory"),
    (
        "Request for unknown model: 'tiny_sd_stream' is not found",
        ServerFault,
        f"{URL}: Request for unknown model: 'tiny_sd_stream' is not found",
    ),
    (
        "Stub process 'unet_0_0' is not healthy.",
        ServerFault,
        f"{URL}: Stub process 'unet_0_0' is not healthy.",
    ),
    (STOPPING, Unavailable, f"{URL}: {STOPPING}"),
    (
        "Request for unknown model: 'jobs' has no available versions",
        Unavailable,
        f"{URL}: Request for unknown model: 'jobs' has no available versions",
    ),
    ("", ServerFault, f"{URL}: "),
]


@pytest.mark.parametrize(("message", "kind", "text"), CASES)
@pytest.mark.parametrize("prefix", ["", "in ensemble 'tiny_sd', ", " "])
def test_the_message_tells_the_kind_of_error(prefix: str, message: str, kind: type[TinySDError], text: str) -> None:
    error = fault(prefix + message, URL)
    assert type(error) is kind
    assert str(error) == text


def test_a_busy_server_tells_how_full_it_is_and_when_to_come_back() -> None:
    error = fault("busy: 31 of 32 generations are in flight; come back in 2.5 s", URL)
    assert isinstance(error, Busy)
    assert (error.in_flight, error.limit, error.retry_after) == (31, 32, 2.5)


def test_a_refused_parameter_has_its_name_and_what_is_allowed() -> None:
    error = fault("in ensemble 'tiny_sd', img_width: got 300; allowed: 512, 768, 1024", URL)
    assert isinstance(error, InvalidParameter)
    assert isinstance(error, ValueError)
    assert (error.parameter, error.allowed) == ("img_width", "512, 768, 1024")
    error = fault("sequence_id: not allowed; every generation is one request", URL)
    assert isinstance(error, InvalidParameter)
    assert (error.parameter, error.allowed) == ("sequence_id", None)


@pytest.mark.parametrize("suspect", [Unavailable, Cancelled, DeadlineExceeded, ServerFault])
def test_where_the_message_is_none_of_ours_the_status_decides(suspect: type[TinySDError]) -> None:
    for message in ("Socket closed", "recvmsg: Connection reset by peer"):
        error = fault(message, URL, suspect)
        assert type(error) is suspect
        assert str(error) == f"{URL}: {message}"
    assert type(fault("busy: 1 of 1 are in flight; come back in 1 s", URL, suspect)) is Busy
    assert type(fault("overdue: too late", URL, suspect)) is DeadlineExceeded


@pytest.mark.parametrize(
    "reason",
    [
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1006)",
        "This protocol is restricted, expecting header 'triton-grpc-protocol-key'",
        "failed to connect; last error: SSL_ERROR_SSL: error:1000007d:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED",
    ],
)
def test_what_will_not_change_is_not_taken_for_a_bad_connection(reason: str) -> None:
    assert type(unreachable(reason, URL)) is ServerFault
    assert type(fault(reason, URL, Unavailable)) is ServerFault
    assert type(unreachable("Connection refused", URL)) is Unavailable


@given(st.text())
def test_any_message_becomes_some_error(message: str) -> None:
    assert isinstance(fault(message, URL), TinySDError)


# --- addresses


@pytest.mark.parametrize(
    ("url", "normal", "authority"),
    [
        ("grpc://localhost", "grpc://localhost:8001", "localhost:8001"),
        ("grpcs://tiny-sd.example:443", "grpcs://tiny-sd.example:443", "tiny-sd.example:443"),
        ("grpcs://tiny-sd.example/", "grpcs://tiny-sd.example:8001", "tiny-sd.example:8001"),
        ("http://10.0.0.1", "http://10.0.0.1:8000", "10.0.0.1:8000"),
        ("HTTPS://Tiny-SD.example/base/path/", "https://tiny-sd.example:443/base/path", "tiny-sd.example:443"),
        ("grpc://[::1]:99", "grpc://[::1]:99", "[::1]:99"),
        ("http://[::1]", "http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_an_address_is_completed(url: str, normal: str, authority: str) -> None:
    parsed = address(url, None, None)
    assert (parsed.url, parsed.authority) == (normal, authority)
    assert address(normal, None, None) == parsed


@pytest.mark.parametrize(
    "url",
    [
        "", "localhost", "localhost:8001", "//localhost:8001", "grpc://", "grpc://:8001", "ftp://localhost",
        "grpc+tls://localhost", "grpc://localhost:port", "grpc://localhost:99999", "grpc://localhost/v2", "http://[::1",
        "http://user:secret@localhost", "http://localhost?model=x", "http://localhost#x",
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_refused_with_what_is_allowed(url: str) -> None:
    with pytest.raises(ValueError, match=r"^URL: got .*; allowed: grpc://host:port, grpcs://.*, http://.*, https://"):
        Client(url)


def test_an_address_shows_no_credentials() -> None:
    parsed = address("https://there", {"Authorization": "Bearer secret"}, None)
    assert isinstance(parsed, Address)
    assert "secret" not in repr(parsed)


@pytest.mark.parametrize(
    "headers", [{"ü": "c"}, {"a b": "c"}, {"key": "secret\n"}, {"key": "sécret"}, {"": "c"}, {"A-Bin": "secret"}]
)
def test_headers_that_cannot_be_sent_are_refused_without_telling_their_value(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"^headers: cannot send ") as caught:
        address("grpc://localhost", headers, None)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["grpc://there", "http://there"])
def test_tls_needs_an_encrypted_connection(url: str) -> None:
    with pytest.raises(ValueError, match=r"not encrypted; allowed: grpcs:// and https://"):
        Client(url, tls=TLS())


def test_files_for_tls_must_be_there(tmp_path: Path) -> None:
    present = tmp_path / "present.pem"
    present.touch()
    assert TLS(ca=present, certificate=str(present), key=present).ca == present
    with pytest.raises(ValueError, match=r"no such file: .*absent\.pem"):
        TLS(ca=tmp_path / "absent.pem")
    for half in ({"certificate": present}, {"key": present}):
        with pytest.raises(ValueError, match="needs its key"):
            TLS(**half)
