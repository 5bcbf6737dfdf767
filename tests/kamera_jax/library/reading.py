"""What tests read of a library that others change too."""

import kamera_jax as kj
from tests.kamera_jax.library.made import bits, chunk, key_of


def another(lib):
    return kj.ChunkLibrary.open(lib.root, mode="a")


def there(lib):
    """The numbers of what is there, each read and compared."""
    numbers = {key_of(i): i for i in range(100)}
    found = {numbers[key] for key in lib.keys()}
    assert all(bits(lib.get(key_of(i))) == bits(chunk(i)) for i in found)
    return found
