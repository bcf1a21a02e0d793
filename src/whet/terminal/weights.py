"""`whet weights`, `whet merge` and `whet probe`: choices of weights, arithmetic on finished ones, and where they moved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OPERATIONS = ("add", "subtract", "scale", "compose", "interpolate")
Model = Annotated[str | None, typer.Option(help="base, micro, a folder or Hub name; none is base")]


def add_commands(
    app: typer.Typer, lists: str | None = None, looks: str | None = None, makes: str | None = None
) -> None:
    """Register the three; nothing heavy is imported before one of them is run."""
    probes = typer.Typer(no_args_is_help=True, help="What training did, from checkpoints alone.")
    app.add_typer(probes, name="probe", rich_help_panel=looks)

    @app.command(rich_help_panel=lists)
    def weights(model: Model = None) -> None:
        """The choices of `--weights`, and what each costs on a model."""
        from whet.terminal.choices import list_weights

        list_weights(model)

    @app.command(rich_help_panel=makes)
    def merge(
        operation: Annotated[str, typer.Argument(help=", ".join(OPERATIONS), show_default=False)],
        sources: Annotated[
            list[str], typer.Argument(metavar="SOURCE...", help="models, adapters or differences", show_default=False)
        ],
        out: Annotated[Path | None, typer.Option(help="the folder to write", metavar="DIR")] = None,
        scale: Annotated[
            float | None, typer.Option(help="of what is added (1), or the place between two models (0.5)")
        ] = None,
        dtype: Annotated[
            str | None, typer.Option(help="float32, bfloat16 or float16; else that of the first model")
        ] = None,
        tolerance: Annotated[
            float,
            typer.Option(
                min=0.0, help="log-probs of the written model may differ from the live one by so much; 0 does not look"
            ),
        ] = 1e-4,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="say what matches and what does not; write nothing")
        ] = False,
    ) -> None:
        """Arithmetic on finished weights.

        add MODEL DIFFERENCE... is MODEL + scale (sum of differences); subtract AFTER BEFORE is a difference; scale DIFFERENCE;
        compose DIFFERENCE...; interpolate A B is (1 - scale) A + scale B. An adapter folder is a difference.
        """
        from whet.terminal.merge import merge

        merge(operation, sources, out=out, scale=scale, dtype=dtype, tolerance=tolerance, dry_run=dry_run)

    @probes.command()
    def geometry(
        before: Annotated[str, typer.Argument(help="a model, run or .safetensors file", show_default=False)],
        after: Annotated[
            list[str], typer.Argument(metavar="AFTER...", help="one or several trained from it", show_default=False)
        ],
        rank: Annotated[
            int, typer.Option(min=0, help="leading directions; 0: an eighth of each matrix's smaller side")
        ] = 0,
        density: Annotated[
            float, typer.Option(min=0.001, max=0.999, help="of the principal and of the low mask")
        ] = 0.2,
        sweep: Annotated[bool, typer.Option(help="the overlaps at other ranks and densities, too")] = False,
        beside: Annotated[
            tuple[str, str] | None,
            typer.Option(metavar="START RUN", help="another start and a run of it, to compare changes with"),
        ] = None,
        plot: Annotated[
            Path | None, typer.Option(help="draw it layer by layer (.svg, .png or .html)", metavar="FILE")
        ] = None,
        json: Annotated[bool, typer.Option("--json", help="print JSON and nothing else")] = False,
    ) -> None:
        """Where in weight space training moved: sparsity in bf16, drift of the spectrum, rotation, overlap with masks."""
        from whet.terminal.geometry import geometry

        geometry(
            before, after, rank=rank, density=density, sweeps=sweep, beside=beside, plot=plot, as_json=json
        )  # fmt: skip

    @probes.command()
    def equivalent(
        model: Annotated[str, typer.Argument(help="base, micro, a folder or Hub name", show_default=False)],
        out: Annotated[Path, typer.Option(help="folder of the new model", show_default=False)],
        how: Annotated[str, typer.Option(help="rotate the values of each head, or permute heads")] = "rotate",
        layer: Annotated[list[int] | None, typer.Option(help="a block to edit, again for more; none is all")] = None,
        seed: int = 0,
    ) -> None:
        """The same function by other weights: a start from which updates that follow the weights' geometry go elsewhere."""
        from whet.terminal.geometry import equivalent

        equivalent(model, out, how=how, layers=layer, seed=seed)
