"""Starting processes: one, Detectron2's launcher on GPUs, gloo on CPUs, or torchrun's."""

import argparse
import functools
import logging
import os
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2.engine import DefaultTrainer, TrainerBase, launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm

from isda import console
from isda.engine.setup import check_config, configured, uses_cuda
from isda.errors import ConfigError, UserError
from isda.files import is_full, write_error

__all__ = ["run"]

# What the user can mend: the message says all, a traceback would bury it.
_USER_ERRORS = (UserError, FloatingPointError)


def run(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Call ``main(args)`` in as many processes as wanted.

    Under ``torchrun`` its processes are used and ``--num-gpus`` is ignored. On CPUs ``--num-gpus``
    is the number of processes. What the user can mend ends the program with its message alone, or
    as the last line after what was logged.
    """
    logging.getLogger(TrainerBase.__module__).addFilter(_without_traceback)
    main = functools.partial(_guarded, main)
    try:
        # Here already, because a launcher buries what its processes raise.
        config, _ = configured(args)
        on_gpu = uses_cuda(config.MODEL.DEVICE, args.num_gpus)
        torchrun = "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ
        started = max(args.num_gpus, 1) * args.num_machines
        world_size = int(os.environ["WORLD_SIZE"]) if torchrun else started
        check_config(DefaultTrainer.auto_scale_workers(config, world_size), world_size)
        if torchrun:
            _run_under_torchrun(main, args, on_gpu)
        elif on_gpu:
            _check_gpus(args.num_gpus)
            _launch(main, args)
        elif world_size > 1:
            _launch_on_cpus(main, args)
        else:
            main(args)
    except UserError as error:
        sys.exit(f"error: {error.sentence}")
    except FloatingPointError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # of others' code, which does not say what could not be written
        if not is_full(error):
            raise
        sys.exit(f"error: {write_error(error.filename or config.OUTPUT_DIR, error)}")
    except KeyboardInterrupt:
        sys.exit("interrupted; --resume continues from the last checkpoint")


def _without_traceback(record: logging.LogRecord) -> bool:
    """Whether a record of Detectron2's loop is to be logged: no, where a sentence will say it."""
    return not (record.exc_info and isinstance(record.exc_info[1], _USER_ERRORS))


def _check_gpus(wanted: int) -> None:
    if wanted > torch.cuda.device_count():
        raise ConfigError(f"--num-gpus {wanted}, but this machine has {torch.cuda.device_count()}")


def _launch(main: Callable, args: argparse.Namespace) -> None:
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def _launch_on_cpus(main: Callable, args: argparse.Namespace) -> None:
    # Detectron2's launcher takes NCCL wherever there is a GPU, wanted or not.
    torch.multiprocessing.start_processes(
        _cpu_process, args=(main, args), nprocs=args.num_gpus, start_method="spawn"
    )


def _cpu_process(local_rank: int, main: Callable, args: argparse.Namespace) -> None:
    dist.init_process_group(
        "gloo",
        init_method=args.dist_url,
        rank=args.machine_rank * args.num_gpus + local_rank,
        world_size=args.num_machines * args.num_gpus,
        timeout=DEFAULT_TIMEOUT,
    )
    _run_in_group(main, args, args.num_gpus)


def _guarded(main: Callable, args: argparse.Namespace) -> None:
    """``main(args)``, in a process whose output may not be guarded yet."""
    console.guard()
    main(args)


def _run_under_torchrun(main: Callable, args: argparse.Namespace, on_gpu: bool) -> None:
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if on_gpu:
        _check_gpus(local_size)
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=DEFAULT_TIMEOUT)
    _run_in_group(main, args, local_size)


def _run_in_group(main: Callable, args: argparse.Namespace, local_size: int) -> None:
    comm.create_local_process_group(local_size)
    comm.synchronize()
    main(args)
    dist.destroy_process_group()
