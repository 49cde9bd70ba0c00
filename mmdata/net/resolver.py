"""Names to addresses, for aiohttp: what passes here is what is connected to, so no later answer can lead elsewhere."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from mmdata.net.address import PrivateAddressError, is_allowed, is_public

# A dead name holds a thread for some ten seconds. They are our own: asyncio's few are needed for files.
_THREADS: Final = 64


def public_resolver(allowed: Collection[str]) -> Any:
    """A resolver that gives public addresses alone, but to hosts that are `allowed`.

    Raises PrivateAddressError where a name has no other, and socket.gaierror.
    """
    from aiohttp.abc import AbstractResolver, ResolveResult

    class Resolver(AbstractResolver):
        def __init__(self) -> None:
            self._threads = ThreadPoolExecutor(_THREADS, "names")

        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> list[ResolveResult]:
            ask = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
            answers = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
            found = [
                ResolveResult(
                    hostname=host,
                    host=str(address[0]),
                    port=port,
                    family=kind,
                    proto=proto,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
                for kind, _, proto, _, address in answers
            ]
            if is_allowed(host, port, allowed):
                return found
            public = [one for one in found if is_public(ipaddress.ip_address(one["host"].partition("%")[0]))]
            if not public:
                raise PrivateAddressError(f"{host} has no public address")
            return public

        async def close(self) -> None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    return Resolver()
