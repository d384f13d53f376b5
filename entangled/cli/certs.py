"""`entangled certs`: an authority, and a certificate for every process of an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Certificates: who may take part in a run, over TLS.", no_args_is_help=True)


@app.command()
def init(
    experiment: Annotated[
        str, typer.Argument(help="A shipped experiment's name, or a TOML file: whose peers get certificates.")
    ] = "mnist",
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address under which peers reach the coordinator; may be given again and again."),
    ] = None,
    folder: Annotated[Path, typer.Option("--dir", help="Where the certificates are made.")] = Path("certs"),
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long they are valid.")] = 365,
    renew: Annotated[bool, typer.Option("--renew", help="Make every certificate anew, of the same authority.")] = False,
) -> None:
    """Make an authority, and a folder with a certificate for the coordinator and for each peer.

    What is there already is kept, so that the same command makes the certificate of a peer that was added. Give each
    process its own folder, and keep the authority's to yourself.

        entangled certs init mnist --host gpu1.example.com --host 10.0.0.5
    """
    import socket

    from entangled import certificates, experiment_file, holders

    peers = experiment_file.load(experiment).peer_names
    hosts = ["localhost", "127.0.0.1", "::1", socket.gethostname(), *(host or [])]
    new = certificates.init(folder, peers, hosts, days, renew=renew)
    for name in (holders.AUTHORITY, holders.COORDINATOR, *peers, holders.OPERATOR):
        kept = "" if folder / name in new else "  (kept)"
        typer.echo(f"{folder / name}  {_use(name, folder / name)}{kept}")


def _use(name: str, place: Path) -> str:
    from entangled import certificates, holders

    match name:
        case holders.AUTHORITY:
            return "the authority: keep it here, for whoever has its key can be anybody"
        case holders.COORDINATOR:
            hosts = certificates.hosts_of(certificates.load_one(place / "cert.pem"))
            return f"entangled coordinator --certs {place}, reached as {', '.join(hosts)}"
        case holders.OPERATOR:
            return "may watch and check health, but not take part"
        case _:
            return f"entangled peer {name} --certs {place}"


@app.command()
def show(folder: Annotated[Path, typer.Argument(help="One holder's folder, e.g. certs/cnn.")]) -> None:
    """Check a holder's folder, and say whose it is, for which hosts and until when.

    entangled certs show certs/cnn
    """
    from entangled import certificates

    found = certificates.read(folder)
    path = folder / ("ca.pem" if found.certificate is None else "cert.pem")
    certificate = certificates.load_one(path)
    typer.echo(f"name   {certificates.name_of(certificate)}")
    if hosts := certificates.hosts_of(certificate):
        typer.echo(f"hosts  {', '.join(hosts)}")
    typer.echo(f"until  {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
