"""The trainer of every model here: Detectron2's, with what its users have to add themselves."""

import logging
import os
import statistics
import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter
from torch import nn

from isda.checkpoint import Checkpointer
from isda.data.classes import classes_of
from isda.data.dataset_mapper import build_mapper
from isda.engine.architectures import has_masks
from isda.engine.ceiling import warn_of_ceiling
from isda.engine.environment import EnvironmentRecorder
from isda.engine.evaluation import PREDICTIONS, build_evaluator, evaluation_folder
from isda.engine.hooks import (
    BestCheckpointer,
    EarlyStopper,
    Evaluation,
    MetricsWriter,
    PeriodicWriter,
    ProcessorTimer,
    TrainingStopped,
    is_evaluated,
    tidy_metrics,
)
from isda.engine.inference import inference_autocast
from isda.engine.loader import build_train_loader, training_dicts
from isda.engine.precision import FULL, Precision, training_precision
from isda.engine.random_state import preserved_random_state, random_state, set_random_state
from isda.engine.resuming import saved_config
from isda.engine.setup import resolve_schedule
from isda.engine.steps import StepTrainer, averaged_model
from isda.engine.tiled_inference import TiledModel
from isda.files import remove_partial_files, write_text
from isda.modeling.folding import fold_norms
from isda.training.optimizer import build_gradient_clipper, build_optimizer

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains, evaluates and resumes any Detectron2 model from a config.

    Resumption is exact: weights, optimiser, schedule, averaged weights, gradient scaler, position
    in the data, and every random state continue as if nothing had happened. On CPUs the result is
    the same to the last bit; on GPUs to what their non-deterministic kernels allow. With another
    number of processes or images per step the data order goes on, but random states start anew.
    """

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: as ``isda.engine.setup.setup`` returns it; epochs are resolved here.
        """
        TrainerBase.__init__(self)  # DefaultTrainer's own would build Detectron2's parts
        dicts = _main_process_first(lambda: training_dicts(cfg))
        # Before epochs are resolved, but with the size of the images, for comparison on --resume.
        given = cfg.clone()
        self.cfg = cfg = _completed(cfg, dicts)
        given.merge_from_list(["TEST.TILES.IMAGE_SIZE", cfg.TEST.TILES.IMAGE_SIZE])
        self._given_config = given.dump()
        if comm.is_main_process():
            warn_of_ceiling(cfg, dicts)
        model = self.build_model(cfg)
        optimizer = build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg, dicts)
        self._sampler = loader.dataset.sampler
        ema = cfg.SOLVER.EMA
        self.averaged = averaged_model(model, ema.DECAY) if ema.ENABLED else None
        self._trainer = self._build_steps(_distributed(model), loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            averaged=self.averaged,
            min_matched=cfg.MODEL.WEIGHTS_MIN_MATCHED,
            classes=classes_of(cfg.DATASETS.TRAIN[0]),
            intensity=cfg.INPUT.INTENSITY,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.iterations_before = 0  # as the checkpoint counts them
        self._images_before = 0  # images read by the trainings that this one continues
        self._random_states: list[dict] = []
        self._precision: Precision | None = None  # of the training that this one continues
        self.register_hooks(self.build_hooks())

    def _build_steps(self, model: nn.Module, loader, optimizer) -> StepTrainer:
        solver = self.cfg.SOLVER
        clipping = solver.CLIP_GRADIENTS
        return StepTrainer(
            model,
            loader,
            optimizer,
            clip_gradients=build_gradient_clipper(
                clipping.CLIP_TYPE if clipping.ENABLED else None,
                clipping.CLIP_VALUE,
                clipping.NORM_TYPE,
            ),
            accumulation=solver.ACCUMULATION,
            amp_dtype=getattr(torch, solver.AMP.DTYPE) if solver.AMP.ENABLED else None,
            averaged=self.averaged,
            max_nonfinite_steps=solver.MAX_NONFINITE_STEPS,
        )

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model on its device; its size is logged, its modules are not."""
        model = build_model(cfg)
        total = sum(p.numel() for p in model.parameters())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        logger.info(
            "%s: %s parameters, %s of them trained",
            type(model).__name__,
            f"{total:,}",
            f"{trained:,}",
        )
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, dicts: list[dict] | None = None):
        """Endless batches of this process, see ``isda.engine.loader``.

        Args:
            dicts: the training data's records, where they are loaded already.
        """
        dicts = training_dicts(cfg) if dicts is None else dicts
        return build_train_loader(cfg, dicts, build_mapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """The images of ``dataset_name``, one at a time; unscaled where some are to be cut."""
        if cfg.TEST.TILES.MODE != "off":
            cfg = cfg.clone()
            cfg.defrost()
            cfg.INPUT.MIN_SIZE_TEST = 0  # TiledModel scales
        return _main_process_first(
            lambda: build_detection_test_loader(
                # Not from cfg, whose files of proposals Detectron2 would unpickle.
                get_detection_dataset_dicts(dataset_name, filter_empty=False),
                mapper=build_mapper(cfg, is_train=False),
                num_workers=cfg.DATALOADER.NUM_WORKERS,
            )
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """By the data set's type; files go to OUTPUT_DIR/inference."""
        return build_evaluator(cfg, dataset_name, evaluation_folder(cfg, dataset_name))

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> OrderedDict:
        """Detectron2's, in the precision of ``TEST.AMP``, with the windows of ``TEST.TILES``."""
        model = fold_norms(model)
        if cfg.TEST.TILES.MODE != "off":
            return super().test(cfg, TiledModel(cfg, model), evaluators)
        with inference_autocast(cfg, model):
            return super().test(cfg, model, evaluators)

    def build_hooks(self) -> list[hooks.HookBase]:
        """Timing, schedule, checkpoints, evaluation, best model, early stop, in this order."""
        cfg, best = self.cfg, None
        every, patience = cfg.TEST.EVAL_PERIOD, cfg.SOLVER.EARLY_STOP.PATIENCE
        registered = [
            hooks.IterationTimer(),
            ProcessorTimer(),
            hooks.LRScheduler(),
            # In all processes: each contributes its random state.
            hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD),
        ]
        if cfg.DATASETS.TEST:
            registered.append(Evaluation(every, self.evaluate, cfg.OUTPUT_DIR))
            if comm.is_main_process():
                first, several = cfg.DATASETS.TEST[0], len(cfg.DATASETS.TEST) > 1
                metric = "segm/AP" if has_masks(cfg) else "bbox/AP"
                metric = f"{first}/{metric}" if several else metric
                predictions = os.path.join(evaluation_folder(cfg, first), PREDICTIONS)
                best = BestCheckpointer(self.checkpointer, every, metric, predictions)
                registered.append(best)
            if patience > 0:
                registered.append(EarlyStopper(self.checkpointer, best, every, patience))
        return registered

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's: the console, metrics.json, TensorBoard."""
        metrics = MetricsWriter(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json"))
        return [metrics if isinstance(w, JSONWriter) else w for w in super().build_writers()]

    def evaluate(self) -> OrderedDict:
        """Evaluate the weights that inference should use, without a trace in training."""
        with preserved_random_state():
            self._last_eval_results = self.test(self.cfg, self.checkpointer.inference_model)
        return self._last_eval_results

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue the training in OUTPUT_DIR, or start one from MODEL.WEIGHTS."""
        found = self.checkpointer.has_checkpoint()
        super().resume_or_load(resume)
        if resume and found:
            logger.info("Resumed: %d of %d iterations are done", self.start_iter, self.max_iter)
        elif resume:
            logger.warning("--resume: no checkpoint in %s, starting anew", self.cfg.OUTPUT_DIR)
        elif found:
            logger.warning(
                "%s holds an earlier training, which this one replaces; --resume would continue it",
                self.cfg.OUTPUT_DIR,
            )

    def train(self) -> OrderedDict | None:
        """Train to the end, and return the final evaluation's results."""
        if self.start_iter >= self.max_iter and not self._lacks_evaluation():
            logger.info("Nothing left to train; raise SOLVER.MAX_ITER or SOLVER.EPOCHS for more")
            return self.evaluate() if self.cfg.DATASETS.TEST else None
        self._settle_precision()
        if comm.is_main_process():
            tidy_metrics(self.cfg.OUTPUT_DIR, self.start_iter, self.iterations_before)
            remove_partial_files(self.cfg.OUTPUT_DIR)
            writer = PeriodicWriter(self.build_writers(), 20, self.cfg.TEST.EVAL_PERIOD)
            self.register_hooks([EnvironmentRecorder(self.cfg), writer])
        try:
            super().train()
        except TrainingStopped:
            if not hasattr(self, "_last_eval_results"):  # resumed, only to stop at once
                return self.evaluate()
        return getattr(self, "_last_eval_results", None)

    def _lacks_evaluation(self) -> bool:
        """Whether all is trained, and then the final evaluation was interrupted."""
        is_final = bool(self.cfg.DATASETS.TEST) and self.start_iter == self.max_iter
        return is_final and not is_evaluated(self.cfg.OUTPUT_DIR, self.max_iter)

    def _settle_precision(self) -> None:
        """As asked, unless this machine is slower in it; the main process decides for all."""
        device = self._trainer.device
        chosen = training_precision(self.cfg, device, self._precision)
        self._precision = Precision(*comm.all_gather(tuple(chosen))[0])
        self._trainer.set_precision(self._precision.dtype)

    def before_train(self) -> None:
        super().before_train()
        # Last of all, so that nothing is drawn between here and the first step.
        if len(self._random_states) == comm.get_world_size():
            set_random_state(self._random_states[comm.get_rank()])

    def state_dict(self) -> dict:
        """Everything to continue from; all processes have to call it together."""
        state = super().state_dict()
        done = self.iter + 1 - self.start_iter
        state["images"] = self._images_before + done * self.cfg.SOLVER.IMS_PER_BATCH
        state["random_states"] = comm.gather(random_state())
        state["config"] = self._given_config
        state["precision"] = self._precision._asdict()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Continue: the state is the checkpoint's, the schedule and its rates are this config's."""
        super().load_state_dict(state_dict)
        self.iterations_before = self.iter + 1
        self.iter = self._iterations_done(state_dict) - 1
        self._align_schedule()
        self._images_before = state_dict["images"]
        self._sampler.start = self._images_before // comm.get_world_size()
        self._random_states = state_dict["random_states"]
        amp = self.cfg.SOLVER.AMP
        asked = amp.DTYPE if amp.ENABLED else FULL
        # Before checkpoints stated it, what was asked for was taken.
        saved = state_dict.get("precision", {"asked": asked, "taken": asked})
        self._precision = Precision(**saved)
        if len(self._random_states) != comm.get_world_size():
            logger.warning(
                "resumed with %d processes instead of %d: random states start anew",
                comm.get_world_size(),
                len(self._random_states),
            )

    def _iterations_done(self, state_dict: dict) -> int:
        """By the images seen where the length is stated in epochs and the batch has changed."""
        done, solver = state_dict["iteration"] + 1, self.cfg.SOLVER
        before = saved_config(state_dict).get("SOLVER.IMS_PER_BATCH", solver.IMS_PER_BATCH)
        if solver.EPOCHS == 0 or before == solver.IMS_PER_BATCH:
            return done
        return max(round(state_dict["images"] / solver.IMS_PER_BATCH), 1)

    def _align_schedule(self) -> None:
        """Give every group of parameters the rate that this schedule has after ``iter``."""
        groups = self._trainer.optimizer.param_groups
        self.scheduler.base_lrs = [group["initial_lr"] for group in groups]
        self.scheduler.last_epoch = self.iter + 1
        for group, rate in zip(groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = rate

    def after_train(self) -> None:
        """As Detectron2's; what a full disk then refuses hides no error that came before."""
        failed = isinstance(sys.exc_info()[1], Exception)  # this is called while it is raised
        self.iter = min(self.iter, self.max_iter)  # where only the evaluation was left
        try:
            super().after_train()
        except OSError as error:
            if not failed:
                raise
            logger.warning("%s", error)


def _distributed(model: nn.Module) -> nn.Module:
    on_gpu = next(model.parameters()).is_cuda
    devices = {} if on_gpu else {"device_ids": None}
    return create_ddp_model(model, broadcast_buffers=False, **devices)


def _completed(cfg: CfgNode, dicts: list[dict]) -> CfgNode:
    """A copy with epochs and image size resolved, which also replaces OUTPUT_DIR/config.yaml."""
    cfg = cfg.clone()
    cfg.defrost()
    resolve_schedule(cfg, len(dicts))
    sides = [min(x["height"], x["width"]) for x in dicts if "height" in x and "width" in x]
    if cfg.TEST.TILES.IMAGE_SIZE == 0 and sides:
        cfg.TEST.TILES.IMAGE_SIZE = int(statistics.median_low(sides))
    cfg.freeze()
    if comm.is_main_process():
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        write_text(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), cfg.dump())
    return cfg


def _main_process_first(action: Callable):
    """Files that loading a data set makes or downloads are made by one process only."""
    result = action() if comm.is_main_process() else None
    comm.synchronize()
    return result if comm.is_main_process() else action()
