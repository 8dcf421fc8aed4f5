"""Shows masks in notebooks, as HTML tables."""

from collections.abc import Iterable

from fastdrop._mask import Mask

_ROWS, _COLUMNS = 16, 32  # of the picture
_COUNTED = 2**24  # bits that are drawn and counted in milliseconds


def html_of(mask: Mask) -> str:
    """Return a table of the mask's attributes, with a picture of its first rows and columns."""
    table: dict[str, object] = {"shape": mask.shape}
    if mask.noise_shape != mask.shape:
        table["noise shape"] = mask.noise_shape
    rate = mask.rate
    table["rate"] = (
        rate if rate is None or isinstance(rate, float) else f"array of shape {rate.shape}"
    )
    if mask.seed is not None:
        table |= {"seed": mask.seed, "step": mask.step}
    if 0 < mask.size <= _COUNTED:
        kept = mask.count()
        table["kept"] = f"{kept:,} of {mask.size:,} bits ({kept / mask.size:.1%})"
        table["dropped"] = f"{mask.size - kept:,}"
    else:
        table["bits"] = f"{mask.size:,}"
    table["stored"] = f"{mask.nbytes:,} bytes"
    if 0 not in mask.shape:
        index, picture = _picture(mask)
        table[index] = (
            f'<pre style="color: #0072b2; line-height: 1.1" title="filled: kept">{picture}</pre>'
        )
    rows = (
        f'<tr><th>{name}</th><td style="text-align: left">{value}</td></tr>'
        for name, value in table.items()
    )
    return f"<table><caption>fastdrop.Mask</caption>{''.join(rows)}</table>"


def _picture(mask: Mask) -> tuple[str, str]:
    """Return the index of the mask's first rows and columns, and their squares: filled if kept."""
    if not mask.shape:
        return "[()]", _squares([bool(mask)])
    *others, columns = mask.shape
    first = (0,) * (len(others) - 1)
    shown = slice(min(columns, _COLUMNS))
    rows = [f":{min(size, _ROWS)}" for size in others[-1:]]
    index = ", ".join([*map(str, first), *rows, f":{shown.stop}"])
    # Row by row: a slice of rows would draw all of their columns.
    picked = [(*first, row, shown) for row in range(min(others[-1], _ROWS))] if others else [shown]
    return f"[{index}]", "\n".join(_squares(mask[place]) for place in picked)


def _squares(kept: Iterable[bool]) -> str:
    return "".join("■" if one else "□" for one in kept)
