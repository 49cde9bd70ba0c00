"""As much of S3 on this machine as a reader asks for: HEAD, GET with a range, ListObjectsV2."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_DATE = "Mon, 02 Nov 2026 10:00:00 GMT"
_ISO = "2026-11-02T10:00:00.000Z"


class S3:
    """Serves `objects`, by `bucket/key`, until the block ends.

    Attributes:
        objects: what there is.
        seen: how often each object was asked for, HEAD apart.
        sent: bytes of each object that were sent.
        fail: so many requests for objects are answered with 500 first.
    """

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.seen: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.fail = 0

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs: where it is, and credentials, which nothing checks."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "not to be found in a build",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def listed(self, bucket: str, prefix: str, delimiter: str) -> bytes:
        """ListObjectsV2, all in one answer."""
        contents, folders = [], []
        for name in sorted(self.objects):
            there, _, key = name.partition("/")
            if there != bucket or not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.append(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                contents.append(
                    f"<Contents><Key>{escape(key)}</Key><LastModified>{_ISO}</LastModified><ETag>{_etag(self.objects[name])}"
                    f"</ETag><Size>{len(self.objects[name])}</Size><StorageClass>STANDARD</StorageClass></Contents>"
                )
        shared = "".join(
            f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in dict.fromkeys(folders)
        )
        head = f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(contents)}</KeyCount>"
        inner = f"{head}<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{''.join(contents)}{shared}"
        whole = f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inner}</ListBucketResult>'
        return f'<?xml version="1.0" encoding="UTF-8"?>{whole}'.encode()


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


class _Handler(BaseHTTPRequestHandler):
    store: S3
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._object(body=False)

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        query = parse_qs(asked.query)
        if "list-type" in query:
            prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
            found = self.store.listed(unquote(asked.path).strip("/"), prefix, delimiter)
            self._send(200, found, {"Content-Type": "application/xml"})
        else:
            self._object(body=True)

    def _object(self, *, body: bool) -> None:
        name = unquote(urlsplit(self.path).path).lstrip("/")
        data = self.store.objects.get(name)
        if data is None:
            missing = b"<Error><Code>NoSuchKey</Code><Message>not here</Message></Error>"
            return self._send(404, missing if body else b"", {})
        if body:
            self.store.seen[name] += 1
            if self.store.fail:
                self.store.fail -= 1
                return self._send(500, b"<Error><Code>InternalError</Code></Error>", {})
        facts = {"ETag": _etag(data), "Last-Modified": _DATE, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if not body:
            return self._send(200, b"", {**facts, "Content-Length": str(len(data))})
        if not asked:
            self.store.sent[name] += len(data)
            return self._send(200, data, facts)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        piece = data[int(first) : int(last) + 1 if last else None]
        self.store.sent[name] += len(piece)
        where = f"bytes {first}-{int(first) + len(piece) - 1}/{len(data)}"
        return self._send(206, piece, {**facts, "Content-Range": where})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass
