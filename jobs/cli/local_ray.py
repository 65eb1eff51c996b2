"""`tmctl local-ray`: the Ray that tmctl starts on this machine."""

from __future__ import annotations

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Show or stop the Ray that tmctl starts on this machine when no cluster is named.",
)


@app.command()
def status() -> None:
    """Print the address of this user's local Ray."""
    from jobs.launch.local_ray import find
    from tinymusician.errors import ClusterError

    address = find()
    if address is None:
        raise ClusterError("local Ray: none is running; the next `tmctl submit` or `tmctl serve` starts one")
    print(address)


@app.command()
def stop() -> None:
    """Stop the local Ray that tmctl started, with its jobs and its endpoint; other Rays of this machine continue."""
    from jobs.launch.local_ray import stop as stop_local

    print(f"local Ray at {stop_local()}: stopped")
