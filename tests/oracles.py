"""The operator in float64 numpy, written from its definition and not from the code it is held against."""

import numpy as np


def angles(positions, inv_freq, sections, section_layout):
    """Radians of every pair, f64[T, R/2]: the pair's frequency times the position on the axis that drives it."""
    axes = [0] * len(inv_freq)
    if sections is not None and section_layout == "contiguous":
        axes = [axis for axis, size in enumerate(sections) for _ in range(size)]
    elif sections is not None:
        for axis in range(1, len(sections)):
            for k in range(sections[axis]):
                axes[len(sections) * k + axis] = axis
    positions = np.asarray(positions, np.float64)
    return np.stack([positions[axis] * frequency for axis, frequency in zip(axes, inv_freq, strict=True)], -1)


def rotate(x, radians, layout, scale=1.0):
    """Heads f64[..., T, H, D]: pair (a, b) becomes scale * (a cos - b sin, a sin + b cos); other dims stay."""
    x = np.asarray(x, np.float64)
    out = x.copy()
    pairs = radians.shape[-1]
    for j in range(pairs):
        first, second = (j, j + pairs) if layout == "half" else (2 * j, 2 * j + 1)
        a = x[..., first]
        b = x[..., second]
        cos = np.cos(radians[:, j])[:, None]
        sin = np.sin(radians[:, j])[:, None]
        out[..., first] = scale * (a * cos - b * sin)
        out[..., second] = scale * (a * sin + b * cos)
    return out


def rotate_by(spec, x, positions):
    """`rotate` as a RopeSpec says."""
    radians = angles(positions, spec.inv_freq, spec.sections, spec.section_layout)
    return rotate(x, radians, spec.layout, spec.scale)


def relocate(spec, rot, free, positions, length, u=None, v=None, ranks=None):
    """(R(rot + patch), free + patch) in f64, rows past ``length`` zero."""
    rot = np.array(rot, np.float64)
    free = np.array(free, np.float64)
    if u is not None:
        u = np.asarray(u, np.float64)
        v = np.asarray(v, np.float64)
        for layer, rank in enumerate([u.shape[1]] * len(u) if ranks is None else np.asarray(ranks)):
            delta = u[layer, :rank].T @ v[layer, :rank]
            rot[layer] += delta[:, : rot.shape[-1]]
            free[layer] += delta[:, rot.shape[-1] :]
    rot = rotate_by(spec, rot.reshape(*rot.shape[:2], -1, spec.head_dim), positions).reshape(rot.shape)
    rot[:, length:] = 0.0
    free[:, length:] = 0.0
    return rot, free


def relative(given, expected):
    """Frobenius norm of the difference over that of the expected, per leading row (layer); 0 / 0 is 0."""
    given, expected = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (given, expected))
    error = np.linalg.norm(given - expected, axis=-1)
    size = np.linalg.norm(expected, axis=-1)
    return np.where(error == 0, 0.0, error / np.where(size > 0, size, 1e-30))
