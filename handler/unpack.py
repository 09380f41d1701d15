"""Bodies with a content coding (RFC 9110, section 8.4.1). Imported where a request has one."""

from __future__ import annotations

import zlib

from handler.errors import InvalidRequestError, TooLargeError, UnsupportedEncodingError
from handler.limits import MAX_REQUEST_BYTES
from handler.validation import shorten


def unpack(content: bytes, coding: str) -> bytes:
    """The content without its coding, which is `gzip` or `deflate`, in lower case.

    Raises UnsupportedEncodingError for another coding, InvalidRequestError if the content is not of this one, and
    TooLargeError as soon as it unpacks to more than a body may have.
    """
    if coding in ("gzip", "x-gzip"):
        window = 16 + zlib.MAX_WBITS
    elif coding == "deflate":
        # That it is zlib's format is often not known, and what it wraps is sent alone.
        is_zlib = len(content) > 1 and content[0] & 15 == 8 and int.from_bytes(content[:2]) % 31 == 0
        window = zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS
    else:
        raise UnsupportedEncodingError(
            f"content-encoding is {shorten(coding)}: send the body as it is, or with gzip or deflate"
        )
    stream = zlib.decompressobj(window)
    try:
        unpacked = stream.decompress(content, MAX_REQUEST_BYTES + 1)
    except zlib.error as error:
        raise InvalidRequestError(f"content-encoding is {coding}, and the body is not {coding}: {error}") from error
    if len(unpacked) > MAX_REQUEST_BYTES:
        raise TooLargeError(f"the body unpacks to more than {MAX_REQUEST_BYTES} bytes, the limit: send fewer texts")
    if not stream.eof:
        raise InvalidRequestError(f"the body ends within its {coding} stream: send it whole")
    if stream.unused_data:
        raise InvalidRequestError(f"{len(stream.unused_data)} bytes follow the body's {coding} stream: send one alone")
    return unpacked
