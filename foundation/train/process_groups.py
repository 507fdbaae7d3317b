"""How long processes wait for one another."""

from __future__ import annotations

from datetime import timedelta


def wait_at_most(timeout: timedelta) -> None:
    """Let collectives of every process group, not of the first one alone, give up after `timeout`.

    DeepSpeed exchanges gradients in groups of its own. These get torch's defaults, 30 minutes with gloo and 10 with
    NCCL, whatever the first group was told; torch has no public way to change them (2.13).
    """
    from torch.distributed import distributed_c10d

    for group in distributed_c10d._world.pg_map:
        distributed_c10d._set_pg_timeout(timeout, group)
