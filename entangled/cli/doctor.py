"""`entangled doctor`: could this host take part?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from entangled import grpc_settings

if TYPE_CHECKING:
    from entangled.credentials import Credentials
    from entangled.launch.doctor import Finding


def doctor(
    experiment: Annotated[
        str | None, typer.Argument(help="A shipped experiment's name, or a TOML file; else the coordinator's.")
    ] = None,
    coordinator: Annotated[
        str | None,
        typer.Option(help="host:port, or unix:PATH, of a coordinator that runs.", envvar="ENTANGLED_COORDINATOR"),
    ] = None,
    peer: Annotated[
        list[str] | None, typer.Option(help="Only this peer; may be repeated.", envvar="ENTANGLED_PEER")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, as for `entangled run`.")] = None,
    device: Annotated[str | None, typer.Option(help="As for `entangled peer`.")] = None,
    listen: Annotated[str, typer.Option(help="Where a coordinator would listen on this host.")] = "0.0.0.0:50051",
    run_dir: Annotated[Path, typer.Option(help="Where runs would be written.")] = Path("runs"),
    seconds: Annotated[float, typer.Option(help="How long the coordinator may take to answer.")] = 5.0,
    certs: Annotated[
        Path | None, typer.Option(help="Folder with the certificate to show it.", envvar="ENTANGLED_CERTS")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token to show it.", envvar="ENTANGLED_TOKEN_FILE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Could this host take part? Versions, devices, disk, port; the coordinator's clock and round trip; and each peer.

    With an experiment, or a coordinator's, each peer's device, data and model are tried, in a process of its own. Exit
    code 1 if something would fail.

    Examples: `entangled doctor`, `entangled doctor my.toml`, `entangled doctor --coordinator host1:50051 --peer cnn`.
    """
    grpc_settings.apply()
    from entangled import credentials

    mine = credentials.load(certs, token_file)
    failed, shown = False, list[dict[str, str]]()
    found = _examine(experiment, coordinator, peer or [], overrides or [], device, listen, run_dir, seconds, mine)
    for finding in found:
        failed = failed or finding.state == "fails"
        shown.append(asdict(finding))
        if not as_json:
            typer.echo(f"{finding.state:5}  {finding.about}: {finding.found}")
            if finding.advice:
                typer.echo(f"       → {finding.advice}")
    if as_json:
        typer.echo(json.dumps({"ok": not failed, "findings": shown}, indent=2, ensure_ascii=False))
    if failed:
        raise typer.Exit(1)


def _examine(
    name: str | None,
    address: str | None,
    only: list[str],
    overrides: list[str],
    device: str | None,
    listen: str,
    run_dir: Path,
    seconds: float,
    mine: Credentials,
) -> Iterator[Finding]:
    from entangled import experiment_file
    from entangled.launch import doctor as examine

    experiment = None if name is None else experiment_file.load(name, overrides)
    yield from examine.this_host(run_dir, listen)
    if address is not None:
        with mine.channel(address) as channel:
            findings, theirs = examine.coordinator(address, channel, seconds, mine)
        yield from findings
        experiment = experiment or theirs
    if experiment is not None:
        unknown = [peer for peer in only if peer not in experiment.peers]
        for peer in unknown:
            valid = ", ".join(experiment.peer_names)
            yield examine.Finding(f"peer {peer}", "fails", f"{experiment.name} has no such peer", f"valid: {valid}")
        names = tuple(peer for peer in only or experiment.peer_names if peer not in unknown)
        yield from examine.peers(experiment, names, device)
