"""Inventories as bytes: MessagePack inside zstd, both with a bound."""

from typing import Final

import msgspec
import zstandard

from aegisflux.domain.errors import BROKEN, Invalid, OverLimit
from aegisflux.domain.inventory import PackageInventory
from aegisflux.wire.subjects import MAX_MESSAGE

MAX_INVENTORY: Final = 16 << 20
_DECODER: Final = msgspec.msgpack.Decoder(PackageInventory)


def encode_inventory(inventory: PackageInventory) -> bytes:
    """The inventory as one message; raises OverLimit when it does not fit."""
    plain = msgspec.msgpack.encode(inventory)
    data = zstandard.ZstdCompressor().compress(plain)
    if len(plain) > MAX_INVENTORY or len(data) > MAX_MESSAGE:
        raise OverLimit("inventory_bytes", MAX_MESSAGE, len(data), f"inventory of {inventory.host_id}")
    return data


def decode_inventory(data: bytes) -> PackageInventory:
    """The inventory of a message; raises OverLimit or Invalid."""
    try:
        declared = zstandard.frame_content_size(data)
        if not 0 < declared <= MAX_INVENTORY:
            raise OverLimit("inventory_bytes", MAX_INVENTORY, declared, "inventory")
        return _DECODER.decode(zstandard.ZstdDecompressor().decompress(data, max_output_size=declared))
    except (zstandard.ZstdError, *BROKEN) as error:
        raise Invalid("inventory", "a PackageInventory in zstd", str(error)) from None
