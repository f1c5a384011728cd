"""What the task and its network tell: pictures, who holds what, sizes. The data may be gone since the run."""

from __future__ import annotations

import base64
import functools
import io
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chart import figure
from ..errors import FedparaError
from ..live import bytes_text
from ..run import Run
from .parts import bar, folded, plural, safe, table
from .sections import MOST, long_table

if TYPE_CHECKING:
    from torch import Tensor

    from ..cost import LayerSize
    from ..task import Exhibit

log = logging.getLogger("fedpara")
LAYERS = 24  # that stand openly
SIDE = 288  # pixels of a picture's longer side, above which it is brought down
COARSE = 64  # pixels of a longer side, below which a picture's pixels are to be seen


def _or_why_not(show: Callable[[Run], str]) -> Callable[[Run], str]:
    """A report is written also where a task's own code fails: it then says why a part of it is missing."""

    @functools.wraps(show)
    def guarded(run: Run) -> str:
        try:
            return show(run)
        except FedparaError as error:
            return f"<p>Not shown: {safe(error)}</p>"
        except Exception as error:  # whatever a task of the user's own may raise
            log.warning("a part of the report is missing: %s", error, exc_info=True)
            return f"<p>Not shown: {safe(type(error).__name__)}: {safe(error)}</p>"

    return guarded


# -------------------------------------------------------------------------------------------------- what the task shows


@_or_why_not
def exhibits(run: Run) -> str:
    """What the task itself shows of the trained network."""
    from ..task import Task

    if not run.summary or type(run.task).exhibits is Task.exhibits:
        return ""
    run.task.personal = run.model
    with tempfile.TemporaryDirectory() as folder:
        return "".join(map(exhibit, run.task.exhibits(run.model(), Path(folder))))


def exhibit(shown: Exhibit) -> str:
    """One of a task's exhibits."""
    parts = [f"<h3>{safe(shown.caption)}</h3>", figure(shown.charts)]
    parts += [
        f"<h4>{safe(name)}</h4>{_gallery(row)}" if name else _gallery(row) for name, row in shown.pictures.items()
    ]
    if shown.picture is not None:
        parts.append(f"<figure><div class='card'>{_file(shown.picture, shown.caption)}</div></figure>")
    if shown.rows:
        header, *rows = shown.rows
        parts.append(table(header, [list(map(safe, row)) for row in rows], label=shown.caption))
    parts.append(f"<pre tabindex='0'>{safe(shown.table)}</pre>" if shown.table else "")
    return "".join(parts)


def _gallery(pictures: Sequence[tuple[str, Tensor]]) -> str:
    cells = (f"<figure>{_picture(*each)}<figcaption>{safe(each[0])}</figcaption></figure>" for each in pictures)
    return f"<div class='gallery'>{''.join(cells)}</div>"


def _picture(name: str, pixels: Tensor) -> str:
    """Pixels (H, W) or (3, H, W) in [0, 1] as an element."""
    from PIL import Image

    levels = (pixels.detach().cpu().float().clamp(0, 1) * 255).round().byte()
    image = Image.fromarray((levels.permute(1, 2, 0) if levels.ndim == 3 else levels).contiguous().numpy())
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE))
    look = " style='image-rendering: pixelated'" if max(image.size) < COARSE else ""
    return f"<img alt='{safe(name)}' width='{image.width}' height='{image.height}'{look} src='{png(image)}'>"


def _file(path: Path, caption: str) -> str:
    """A picture's file as an element: what an SVG may hold beside its drawing stays shut in."""
    kind = "svg+xml" if path.suffix == ".svg" else path.suffix.removeprefix(".").replace("jpg", "jpeg")
    return f"<img alt='{safe(caption)}' src='data:image/{kind};base64,{_base64(path.read_bytes())}'>"


def png(image: Any) -> str:
    """A picture as a data URI."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{_base64(file.getvalue())}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# ------------------------------------------------------------------------------------------------------ who holds what


@_or_why_not
def holdings(run: Run) -> str:
    """The classes, or whatever the task tells of, that each client holds."""
    held = run.task.holdings(run.recipe.clients)
    if held is None:
        return ""
    if not hasattr(held, "rows"):  # a task's own object, with table() alone
        return f"<pre tabindex='0'>{safe(held.table())}</pre>"
    header, rows = held.rows(MOST)
    shown = long_table(header, [list(map(safe, row)) for row in rows], "the first", "in the task's order")
    left = len(held.clients) - len(rows)
    note = f"<p class='note'>Not listed: {plural(left, 'client')} more.</p>" if left > 0 else ""
    return f"<p>{safe(held.summary())}</p>{held.charts()}{shown}{note}"


# --------------------------------------------------------------------------------------------------------------- sizes


@_or_why_not
def sizes(run: Run) -> str:
    """Parameters and payload of the network, layer by layer."""
    from ..cost import size
    from ..task import build_model

    found = size(build_model(run.recipe, run.task), codec=run.recipe.uplink)
    fewer = found.dense_parameters / max(1, found.parameters)
    text = (
        f"{found.parameters:,} parameters, {fewer:.3g}× fewer than the dense network's {found.dense_parameters:,}. One "
        f"payload up, whole, as {found.codec}: {bytes_text(found.payload_bytes)} against "
        f"{bytes_text(found.dense_payload_bytes)} dense in float32"
        f"{f', {found.dense_payload_bytes / found.payload_bytes:.3g}× fewer' if found.payload_bytes else ''}."
    )
    most = max((row.payload_bytes for row in found.layers), default=0)
    lines = [_layer(row, most) for row in found.layers]
    total = ["total", *_counts(found), bytes_text(found.payload_bytes), "", "", "", ""]
    header = ("layer", "parameters", "dense", "payload", "", "rank", "shape", "kind")
    if len(lines) <= LAYERS:
        return f"<p>{safe(text)}</p>{table(header, [*lines, total], names=(6, 7), total=True, label='layers')}"
    order = sorted(range(len(lines)), key=lambda place: -found.layers[place].payload_bytes)[: LAYERS // 2]
    first = f"<p class='note'>The {len(order)} largest of {len(lines)}:</p>"
    first += table(
        header, [*(lines[place] for place in sorted(order)), total], names=(6, 7), total=True, label="layers"
    )
    every = table(header, lines, names=(6, 7), label="layers")
    return f"<p>{safe(text)}</p>{first}{folded('Every layer, in the order of the network', every, printed=True)}"


def _layer(row: LayerSize, most: int) -> list[str]:
    shape = "×".join(map(str, row.shape)) if row.shape is not None else ""
    rank = "–" if row.rank is None else str(row.rank)
    filled = bar(row.payload_bytes / most if most else 0)
    name = "biases, norms, header" if row.name == "(other)" else row.name
    return [safe(name), *_counts(row), bytes_text(row.payload_bytes), filled, rank, shape, safe(row.kind)]


def _counts(row: Any) -> tuple[str, str]:
    return f"{row.parameters:,}", f"{row.dense_parameters:,}"
