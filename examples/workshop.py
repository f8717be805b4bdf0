"""A workshop of two machines, simulated in NumPy: the cost of `examples.black_box`.

Jobs come in a fixed order, each on the machine it is assigned to. The second machine is slower, and
a machine must be cleaned before a job of another colour than its last one.
"""

import itertools

import numpy as np

COLOURS = 3  # job k has colour k mod 3
SLOWNESS = (1.0, 1.5)  # of the two machines
CLEANING = 0.5  # before a job of another colour than the machine's last one


def schedule(durations: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Simulates a day and returns when the last machine stops, in hours.

    Args:
        durations: of the jobs in their order, in hours on the first machine, `[..., jobs]`.
        second: for each job 1 if it goes to the second machine, else 0, `[..., jobs]`.

    Returns:
        `[...]`, the dtype of `durations`.
    """
    shape = np.broadcast_shapes(durations.shape, second.shape)
    durations, second = np.broadcast_to(durations, shape), np.broadcast_to(second, shape) > 0.5
    clocks = np.zeros([2, *shape[:-1]], durations.dtype)
    colours = np.full([2, *shape[:-1]], -1)  # a machine's first job needs no cleaning
    for job in range(shape[-1]):
        colour = job % COLOURS
        for machine in (0, 1):
            here = second[..., job] == bool(machine)
            cleaning = CLEANING * ((colours[machine] >= 0) & (colours[machine] != colour))
            work = SLOWNESS[machine] * durations[..., job] + cleaning
            clocks[machine] += np.where(here, work, 0).astype(durations.dtype)
            colours[machine] = np.where(here, colour, colours[machine])
    return clocks.max(0)


def best_schedules(durations: np.ndarray) -> np.ndarray:
    """The shortest day for each row of `durations`, `[instances]`, by trying all assignments."""
    assignments = np.array(list(itertools.product([0, 1], repeat=durations.shape[-1])), np.int8)
    return np.array([schedule(row, assignments).min() for row in durations])
