"""What every command shares."""

from __future__ import annotations

import click

as_json = click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")


def require_cuda() -> None:
    """Raise ValueError where PyTorch finds no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise ValueError("device = 'cuda': PyTorch finds no CUDA device here; cpu is allowed")
