"""Move axes between this and other programs.

    python -m tasks.axes export lr --out lr.safetensors            everything needed to score with it
    python -m tasks.axes export lr --layer 7,15 --out lr.gguf      llama.cpp: --control-vector lr.gguf
    python -m tasks.axes import other.gguf --name other            then: main_imitexp.py --clf other
    python -m tasks.axes show lr.gguf

Reads   results/<model>/<dataset>/axes_layer<l>.pkl (from main_prep.py), or the file to import
Writes  the file to export, or the axis into results/<model>/<dataset>/axes_layer<l>.pkl
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.base.errors import UserError
from analysis.cli.flags import base_parser
from analysis.cli.script import script, setup_logging
from analysis.results.store import Store
from configs.layers import choose_layers
from utils import model_name

if TYPE_CHECKING:
    import numpy as np


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Export, import or show; see the module's docstring."""
    parser = base_parser(__doc__)
    parser.add_argument("action", choices=("export", "import", "show"))
    parser.add_argument(
        "what", help="export: an axis such as lr; import and show: a .gguf or .safetensors file"
    )
    parser.add_argument(
        "--layer", default="all", help="export: all, middle, selected, or such as 7,15 (default: all)"
    )
    parser.add_argument("--out", type=Path, help="export: the file to write, .gguf or .safetensors")
    parser.add_argument("--name", help="import: name of the axis here (default: the one in the file)")
    args = parser.parse_args(argv)
    setup_logging(args.log_level)
    store = Store(args.results, args.model, args.dataset)
    if args.action == "export":
        print(export(store, args.what, args.layer, args.out))
    else:
        name, vectors = load(Path(args.what), args.name)
        layers = ", ".join(map(str, sorted(vectors)))
        if args.action == "import":
            from analysis.axes.imported import add_axis

            add_axis(store, name, vectors)
            print(f"{name}: layers {layers} in {store.folder}; use it with --clf {name}")
        else:
            print(f"{name}: layers {layers}, hidden size {next(iter(vectors.values())).size}")
    return 0


def export(store: Store, axis: str, spec: str, out: Path | None) -> Path:
    """Write one axis of the chosen layers and return the file's path."""
    from analysis.axes.exchange import export_gguf, export_safetensors
    from analysis.axes.read import load_axes
    from analysis.results.commands import no_axes

    if out is None or out.suffix not in (".gguf", ".safetensors"):
        raise UserError(f"--out {out}: give a file that ends in .gguf or .safetensors")
    known = store.layers()
    if not known:
        raise no_axes(store)
    layers = [layer for layer in choose_layers(spec, store.model, known[-1] + 1) if layer in known]
    if out.suffix == ".gguf":
        layers = [layer for layer in layers if layer]  # llama.cpp never steers after the first block
    if not layers:
        raise UserError(
            f"--layer {spec}: {store.folder} has no axes of such layers for {out.name} (there are "
            f"{', '.join(map(str, known))}; llama.cpp cannot steer after layer 0): choose others"
        )
    read = {layer: load_axes(store, layer) for layer in layers}
    axes = {layer: found[0] for layer, found in read.items()}
    if out.suffix == ".gguf":
        export_gguf(axes, axis, out, model_hint="")
    else:
        made_of = next(iter(read.values()))[1]["meta"]["identity"]["model"]
        export_safetensors(axes, [axis], out, model=model_name(store.model), model_fingerprint=made_of)
    return out


def load(path: Path, name: str | None) -> tuple[str, dict[int, np.ndarray]]:
    """Return the name of the axis in a file and its vectors by layer."""
    from analysis.axes.exchange import import_gguf, import_safetensors

    if path.suffix == ".gguf":
        found = import_gguf(path)
        return name or found.name or path.stem, dict(found.vectors)
    axes = import_safetensors(path).axes
    names = list(next(iter(axes.values())).names)
    chosen = name if name in names else names[0]
    return name or chosen, {layer: one.directions[one.index(chosen)] for layer, one in axes.items()}


if __name__ == "__main__":
    raise SystemExit(main())
