"""What tiers have done, in numbers."""

from dataclasses import dataclass

from kamera_jax.handle import in_bytes


@dataclass(frozen=True, repr=False)
class TierStats:
    """What a `kamera_jax.Tiers` has done so far, and what it holds.

    Attributes:
        device, host, library: look-backs that were served from there.
        rebuilt: look-backs for which a chunk was run again from its kept embeddings.
        missed: look-backs for what is nowhere.
        fetched: of those served from the device or host memory, those that a prefetch had brought there.
        avoided: tokens that were not run, as their KV was there.
        to_device_bytes, to_host_bytes: that were copied, from host memory and from the device.
        read_bytes, written_bytes: of the library; of chunks as they are in host memory.
        dropped: chunks that were given up, as no tier had room for them.
        failed: keys that could not be fetched ahead.
        device_bytes, host_bytes: that are there now.
    """

    device: int = 0
    host: int = 0
    library: int = 0
    rebuilt: int = 0
    missed: int = 0
    fetched: int = 0
    avoided: int = 0
    to_device_bytes: int = 0
    to_host_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    dropped: int = 0
    failed: int = 0
    device_bytes: int = 0
    host_bytes: int = 0

    @property
    def looks(self) -> int:
        """All look-backs."""
        return self.device + self.host + self.library + self.rebuilt + self.missed

    def __repr__(self) -> str:
        moved = self.to_device_bytes + self.to_host_bytes + self.read_bytes + self.written_bytes
        return (
            f"<TierStats {self.looks} look-backs: {self.device} device, {self.host} host, {self.library} library, "
            f"{self.rebuilt} rebuilt, {self.missed} missed ({self.fetched} fetched ahead); {in_bytes(moved)} moved, "
            f"{self.avoided} tokens avoided>"
        )
