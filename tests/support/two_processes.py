"""What two processes find out together: `python two_processes.py FOLDER`."""

import sys

import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from ssl_bench.runtime import distributed


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    agreed = distributed.Agreement()
    wishes = [[0, 0, 3, 0, 0], [0, 1, 0, 0, 2]][rank]
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(float(rank + 1))
    distributed.same_buffers(norm)
    found = {
        "later": [agreed.later(wish) for wish in wishes],
        "now": [agreed.now(0), agreed.now(4 * rank), agreed.now(0)],
        "mean": distributed.mean_over_processes(torch.tensor(float(rank))),
        "values": distributed.values_of_processes(torch.tensor(float(rank))),
        "largest": distributed.largest_over_processes(10 - rank, torch.device("cpu")),
        "buffer": norm.running_mean,
    }
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    multiprocessing.start_processes(one_of_two, (sys.argv[1],), nprocs=2, start_method="fork")
