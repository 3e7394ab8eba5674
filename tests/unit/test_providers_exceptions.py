"""Every exception of httpx and aiohttp, by walking their subclasses: a new one fails until it has a meaning."""

from __future__ import annotations

from collections.abc import Iterator

import aiohttp
import httpx
import pytest

from turnout_workers.providers.exceptions import classify_exception
from turnout_workers.routing.failure import Billed, FailureKind

K = FailureKind
ROOTS = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, httpx.CookieConflict, aiohttp.ClientError)
MEANING = {
    (K.UNAVAILABLE, Billed.NO): """
        httpx.ConnectError httpx.ConnectTimeout httpx.InvalidURL httpx.ProxyError httpx.TimeoutException
        httpx.UnsupportedProtocol
        aiohttp.ClientConnectorCertificateError aiohttp.ClientConnectorDNSError aiohttp.ClientConnectorError
        aiohttp.ClientConnectorSSLError aiohttp.ClientHttpProxyError aiohttp.ClientProxyConnectionError
        aiohttp.ClientSSLError aiohttp.ConnectionTimeoutError aiohttp.InvalidURL aiohttp.InvalidUrlClientError
        aiohttp.InvalidUrlRedirectClientError aiohttp.NonHttpUrlClientError aiohttp.NonHttpUrlRedirectClientError
        aiohttp.ServerFingerprintMismatch aiohttp.UnixClientConnectorError""",
    (K.TIMED_OUT, Billed.MAYBE): """
        httpx.ReadTimeout httpx.WriteTimeout aiohttp.ServerTimeoutError aiohttp.SocketTimeoutError""",
    (K.INTERRUPTED, Billed.MAYBE): """
        httpx.CloseError httpx.LocalProtocolError httpx.NetworkError httpx.ProtocolError httpx.ReadError
        httpx.RemoteProtocolError httpx.RequestNotRead httpx.ResponseNotRead httpx.StreamClosed httpx.StreamConsumed
        httpx.StreamError httpx.TransportError httpx.WriteError
        aiohttp.ClientConnectionError aiohttp.ClientConnectionResetError aiohttp.ClientError aiohttp.ClientOSError
        aiohttp.ClientPayloadError aiohttp.RedirectClientError aiohttp.ServerConnectionError
        aiohttp.ServerDisconnectedError aiohttp.UploadAbortedError""",
    (K.MALFORMED, Billed.MAYBE): """
        httpx.CookieConflict httpx.DecodingError httpx.HTTPError httpx.HTTPStatusError httpx.RequestError
        httpx.TooManyRedirects aiohttp.ClientResponseError aiohttp.ContentTypeError aiohttp.TooManyRedirects
        aiohttp.WSServerHandshakeError""",
    (K.LOCAL, Billed.NO): "httpx.PoolTimeout",
}  # fmt: skip
EXPECTED = {name: meaning for meaning, names in MEANING.items() for name in names.split()}


def _walk(*roots: type[BaseException]) -> Iterator[type[BaseException]]:
    for root in roots:
        yield root
        yield from _walk(*root.__subclasses__())


CLASSES = {
    f"{package}.{one.__name__}": one
    for one in _walk(*ROOTS)
    if (package := one.__module__.partition(".")[0]) in ("httpx", "aiohttp")
}


def test_the_table_names_every_exception_there_is() -> None:
    assert set(CLASSES) <= set(EXPECTED), "an exception without a meaning"


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_an_exception_has_its_meaning(name: str) -> None:
    # Without its constructor, whose arguments differ by class and don't matter.
    mute = type(name, (CLASSES[name],), {"__str__": lambda self: ""})
    failure = classify_exception(mute.__new__(mute))
    assert (failure.kind, failure.billed) == EXPECTED[name]
