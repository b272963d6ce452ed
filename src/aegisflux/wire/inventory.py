"""Inventories as bytes: MessagePack inside zstd, both with a bound."""

from typing import Annotated, Final

import msgspec
import zstandard
from msgspec import Meta, Raw, Struct

from aegisflux.domain.bounds import Nanoseconds
from aegisflux.domain.decoding import in_words
from aegisflux.domain.errors import BROKEN, Invalid, OverLimit
from aegisflux.domain.inventory import MAX_PACKAGES, Package, PackageInventory, Short, System
from aegisflux.domain.manifest import HostId
from aegisflux.domain.text import printable
from aegisflux.wire.subjects import MAX_MESSAGE

MAX_INVENTORY: Final = 16 << 20


class _Loose(Struct, frozen=True, kw_only=True):
    """An inventory whose packages are not read yet."""

    host_id: HostId
    taken_ns: Nanoseconds
    digest: Short
    system: System
    packages: Annotated[tuple[Raw, ...], Meta(max_length=MAX_PACKAGES)]
    failed: tuple[Short, ...] = ()


_DECODER: Final = msgspec.msgpack.Decoder(PackageInventory)
_LOOSE: Final = msgspec.msgpack.Decoder(_Loose)
_PACKAGE: Final = msgspec.msgpack.Decoder(Package)


def encode_inventory(inventory: PackageInventory) -> bytes:
    """The inventory as one message; raises OverLimit when it does not fit."""
    plain = msgspec.msgpack.encode(inventory)
    data = zstandard.ZstdCompressor().compress(plain)
    if len(plain) > MAX_INVENTORY or len(data) > MAX_MESSAGE:
        raise OverLimit("inventory_bytes", MAX_MESSAGE, len(data), f"inventory of {inventory.host_id}")
    return data


def decode_inventory(data: bytes) -> PackageInventory:
    """The inventory of a message; raises OverLimit or Invalid. A package that breaks the schema leaves the
    others."""
    try:
        declared = zstandard.frame_content_size(data)
        if not 0 < declared <= MAX_INVENTORY:
            raise OverLimit("inventory_bytes", MAX_INVENTORY, declared, "inventory")
        plain = zstandard.ZstdDecompressor().decompress(data, max_output_size=declared)
    except zstandard.ZstdError as error:
        raise Invalid("inventory", "a PackageInventory in zstd", str(error)) from None
    try:
        return _DECODER.decode(plain)
    except BROKEN:
        return _picked(plain)


def _picked(plain: bytes) -> PackageInventory:
    """The packages that follow the schema; `failed` counts the others and names the first."""
    good: list[Package] = []
    why: list[str] = []
    try:
        loose = _LOOSE.decode(plain)
        for place, raw in enumerate(loose.packages):
            try:
                good.append(_PACKAGE.decode(raw))
            except BROKEN as error:
                why.append(f"packages[{place}]: {in_words(error, Package)}")
    except BROKEN as error:
        raise Invalid("inventory", "a PackageInventory", in_words(error)) from None
    if not good:
        raise Invalid("inventory", "a PackageInventory", why[0] if why else "no package")
    refused = (f"{len(why)} packages refused; {printable(why[0])}"[:256],) if why else ()
    return PackageInventory(
        host_id=loose.host_id,
        taken_ns=loose.taken_ns,
        digest=loose.digest,
        system=loose.system,
        packages=tuple(good),
        failed=(*loose.failed, *refused),
    )
