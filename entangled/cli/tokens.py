"""`entangled tokens`: a secret for every peer of an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Tokens: who may take part in a run, without certificates.", no_args_is_help=True)


@app.callback()
def tokens() -> None:
    """Have sub-commands, also while there is only one."""


@app.command()
def init(
    experiment: Annotated[
        str, typer.Argument(help="A shipped experiment's name, or a TOML file: whose peers get tokens.")
    ] = "mnist",
    folder: Annotated[Path, typer.Option("--dir", help="Where the tokens are made.")] = Path("tokens"),
    renew: Annotated[bool, typer.Option("--renew", help="Make every token anew; the old ones are void.")] = False,
) -> None:
    """Make a token for each peer, and the coordinator's file of their digests.

    What is there already is kept. Give each peer its own file; the coordinator needs no token, only coordinator.json.

        entangled tokens init mnist
    """
    from entangled import experiment_file, holders
    from entangled import tokens as making

    peers = experiment_file.load(experiment).peer_names
    new = making.init(folder, peers, renew=renew)
    uses = {f"{holders.COORDINATOR}.json": f"entangled coordinator --tokens {folder / holders.COORDINATOR}.json"}
    uses |= {f"{name}.token": f"entangled peer {name} --token-file {folder / name}.token" for name in peers}
    uses[f"{holders.OPERATOR}.token"] = "may watch and check health, but not take part"
    for name, use in uses.items():
        typer.echo(f"{folder / name}  {use}{'' if folder / name in new else '  (kept)'}")
