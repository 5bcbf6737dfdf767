"""What sessions have served from a library, as a file beside its packs; nothing else depends on it."""

from dataclasses import asdict, fields
from pathlib import Path

from kamera_jax.errors import NotRegularError
from kamera_jax.library.files import MALFORMED, read_sealed, write_sealed
from kamera_jax.library.layout import check_format
from kamera_jax.library.writers import Writers
from kamera_jax.tiers.stats import TierStats

USAGE = "tiers.json"

_NOW = ("device_bytes", "host_bytes")


def recorded(root: Path) -> TierStats | None:
    """The sums of all tiers over a library that were closed; None where none was, or the file cannot be read."""
    try:
        body = read_sealed(root / USAGE)
        counts = {each.name: body["counts"].get(each.name, 0) for each in fields(TierStats)}
    except (NotRegularError, OSError, *MALFORMED):
        return None
    if any(type(count) is not int or count < 0 for count in counts.values()):
        return None
    return TierStats(**counts)


def record(root: Path, stats: TierStats) -> None:
    """Add what tiers did to the sums.

    Raises:
        OSError: the file cannot be written.
    """
    with Writers(root, check_format(root)).one() as turn:
        before = asdict(recorded(root) or TierStats())
        counts = {name: 0 if name in _NOW else count + before[name] for name, count in asdict(stats).items()}
        write_sealed(root / USAGE, {"counts": counts}, through=turn.through)
