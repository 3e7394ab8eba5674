"""Every exception of aiohttp, by walking their subclasses: a new one fails until it has a meaning."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey

from turnout_workers.providers.classify import classify_exception
from turnout_workers.routing.failure import Billed, FailureKind

K = FailureKind
MEANING = {
    (K.UNAVAILABLE, Billed.NO): """
        ClientConnectorCertificateError ClientConnectorDNSError ClientConnectorError
        ClientConnectorSSLError ClientHttpProxyError ClientProxyConnectionError
        ClientSSLError ConnectionTimeoutError InvalidURL InvalidUrlClientError
        InvalidUrlRedirectClientError NonHttpUrlClientError NonHttpUrlRedirectClientError
        ServerFingerprintMismatch UnixClientConnectorError""",
    (K.TIMED_OUT, Billed.MAYBE): """
        ServerTimeoutError SocketTimeoutError""",
    (K.INTERRUPTED, Billed.MAYBE): """
        ClientConnectionError ClientConnectionResetError ClientError ClientOSError
        ClientPayloadError RedirectClientError ServerConnectionError
        ServerDisconnectedError UploadAbortedError""",
    (K.MALFORMED, Billed.MAYBE): """
        ClientResponseError ContentTypeError TooManyRedirects
        WSServerHandshakeError""",
}  # fmt: skip
EXPECTED = {name: meaning for meaning, names in MEANING.items() for name in names.split()}


def _walk(root: type[BaseException]) -> Iterator[type[BaseException]]:
    yield root
    for one in root.__subclasses__():
        yield from _walk(one)


CLASSES = {one.__name__: one for one in _walk(aiohttp.ClientError) if one.__module__.startswith("aiohttp.")}


def test_the_table_names_every_exception_there_is() -> None:
    assert set(CLASSES) <= set(EXPECTED), "an exception without a meaning"


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_an_exception_has_its_meaning(name: str) -> None:
    # Without its constructor, whose arguments differ by class and don't matter.
    mute = type(name, (CLASSES[name],), {"__str__": lambda self: ""})
    failure = classify_exception(mute.__new__(mute))
    assert (failure.kind, failure.billed) == EXPECTED[name]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EMFILE, K.LOCAL),
        (errno.ENFILE, K.LOCAL),
        (errno.ENOBUFS, K.LOCAL),
        (errno.ENOMEM, K.LOCAL),
        (errno.ECONNREFUSED, K.UNAVAILABLE),
        (errno.EADDRNOTAVAIL, K.UNAVAILABLE),
    ],
)
def test_a_connection_for_which_this_machine_has_no_room_is_no_failure_of_the_provider(
    number: int, kind: FailureKind
) -> None:
    at = ConnectionKey("acme.test", 443, True, True, None, None, None)
    error = OSError(number, os.strerror(number))
    for made in (aiohttp.ClientConnectorError, aiohttp.ClientConnectorDNSError, aiohttp.ClientProxyConnectionError):
        failure = classify_exception(made(at, error))
        assert (failure.kind, failure.billed) == (kind, Billed.NO)
        assert os.strerror(number) in failure.message
