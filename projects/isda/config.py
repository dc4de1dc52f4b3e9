"""Every configuration key that this project adds to Detectron2's, with its default."""

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode as CN

__all__ = [
    "add_blendmask_config",
    "add_condinst_config",
    "add_config",
    "add_isda_config",
    "add_istr_config",
    "add_solo_config",
    "present_names",
    "RENAMED_KEYS",
]

# Old names of keys, which are accepted in files, on the command line and in checkpoints.
RENAMED_KEYS = {"MODEL.ISDA.LARGEST_PART": "MODEL.ISDA.KEEP_LARGEST_COMPONENT"}


def present_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by full names of keys, with present names in the place of old ones."""
    return {RENAMED_KEYS.get(key, key): value for key, value in values.items()}


def add_config(cfg: CN) -> None:
    """Add the keys of all methods, as :func:`add_isda_config` adds those of one."""
    for add in (
        add_isda_config,
        add_istr_config,
        add_solo_config,
        add_condinst_config,
        add_blendmask_config,
    ):
        add(cfg)


def add_isda_config(cfg: CN) -> None:
    """Add the keys of ISDA, and those of backbones, data and solver, to a Detectron2 config.

    Call it after ``get_cfg()`` and before ``merge_from_file``. Defaults are those of the paper's
    COCO recipe where the key belongs to the method, and "off" where it is an extra.
    """
    _add_shared(cfg)
    _add_isda(cfg)


def add_istr_config(cfg: CN) -> None:
    """Add the keys of ISTR, and those of backbones, data and solver, to a Detectron2 config.

    As :func:`add_isda_config`; whoever wants both calls both, in any order.
    """
    _add_shared(cfg)
    _add_istr(cfg)


def add_solo_config(cfg: CN) -> None:
    """Add the keys of SOLO and SOLOv2, and those of backbones, data and solver.

    As :func:`add_isda_config`.
    """
    _add_shared(cfg)
    cfg.MODEL.SOLO = _grid_node(head_dim=256, num_convs=7)
    # A mask channel per column and one per row of a grid, instead of one per cell.
    cfg.MODEL.SOLO.DECOUPLED = False
    cfg.MODEL.SOLOV2 = _grid_node(head_dim=512, num_convs=4)
    cfg.MODEL.SOLOV2.MASK_HEAD_DIM = 128  # width inside the mask feature head
    cfg.MODEL.SOLOV2.MASK_DIM = 256  # channels of mask features and kernels


def add_condinst_config(cfg: CN) -> None:
    """Add the keys of CondInst, and the shared ones; as :func:`add_isda_config`."""
    _add_shared(cfg)
    _add_condinst(cfg)


def add_blendmask_config(cfg: CN) -> None:
    """Add the keys of BlendMask, and the shared ones; as :func:`add_isda_config`."""
    _add_shared(cfg)
    _add_blendmask(cfg)


def _add_shared(cfg: CN) -> None:
    if "WEIGHTS_MIN_MATCHED" in cfg.MODEL:  # by another of these functions
        return
    # Loading weights stops when a smaller share of the model's tensors is matched; 0 never stops.
    cfg.MODEL.WEIGHTS_MIN_MATCHED = 0.5
    # A folder or an annotation file of one's own, as isda train --dataset takes it: registers it
    # and sets DATASETS.TRAIN and DATASETS.TEST.
    cfg.DATASETS.PATH = ""
    # Takes its annotations with iscrowd 1 for instances: some tools set it for every RLE.
    cfg.DATASETS.CROWDS_ARE_INSTANCES = False
    _add_backbones(cfg)
    _add_input(cfg)
    _add_solver(cfg)


def _add_isda(cfg: CN) -> None:
    cfg.MODEL.ISDA = CN()
    # K. 0 takes the number of classes from the metadata of the training data set.
    cfg.MODEL.ISDA.NUM_CLASSES = 0
    # Backbone outputs of strides 4, 8, 16, 32 (then a level of stride 64 is made from the last),
    # or of strides 4 to 64, as Detectron2's FPN has them.
    cfg.MODEL.ISDA.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.ISDA.HIDDEN_DIM = 256  # C: width of neck, Transformer and queries
    # Biases in the neck's convolutions, as some Deformable DETR checkpoints have them.
    cfg.MODEL.ISDA.NECK_BIAS = False
    cfg.MODEL.ISDA.NUM_QUERIES = 300  # N: the largest number of instances per image
    cfg.MODEL.ISDA.NUM_HEADS = 8
    cfg.MODEL.ISDA.NUM_POINTS = 4  # sampling points per head and level
    cfg.MODEL.ISDA.ENCODER_LAYERS = 6
    cfg.MODEL.ISDA.DECODER_LAYERS = 6  # L; every one is supervised
    cfg.MODEL.ISDA.FEEDFORWARD_DIM = 1024
    cfg.MODEL.ISDA.DROPOUT = 0.1
    # Recompute each Transformer layer in the backward pass: less memory, about a third more time.
    cfg.MODEL.ISDA.GRADIENT_CHECKPOINTING = False
    cfg.MODEL.ISDA.MASK_HEAD_DIM = 128  # width inside the mask feature head
    cfg.MODEL.ISDA.MASK_DIM = 256  # channels of mask features and kernels, position included
    cfg.MODEL.ISDA.MASK_STRIDE = 4  # stride of the masks: 1, 2, 4 or 8 (1: see MASK_FEATURE_STRIDE)
    cfg.MODEL.ISDA.MASK_POSITION = True  # MP: two position channels in the mask features
    cfg.MODEL.ISDA.KERNEL_POSITION = True  # KP: a kernel carries its query's reference point
    # Weights of the loss terms, and of the same terms in the matching cost.
    cfg.MODEL.ISDA.CLASS_WEIGHT = 2.0
    cfg.MODEL.ISDA.MASK_WEIGHT = 3.0
    cfg.MODEL.ISDA.CLASS_COST = 2.0
    cfg.MODEL.ISDA.MASK_COST = 3.0
    cfg.MODEL.ISDA.MASK_THRESHOLD = 0.5  # a pixel belongs to an instance above this probability
    # At inference keep only the largest connected component of each mask. Not in the paper.
    cfg.MODEL.ISDA.KEEP_LARGEST_COMPONENT = False
    _add_isda_boxes(cfg)


def _add_isda_boxes(cfg: CN) -> None:
    """Keys of ISDA with boxes, off in the paper's form; Base-ISDA-boxes.yaml turns them on."""
    # Queries look around boxes, and every decoder layer predicts them.
    cfg.MODEL.ISDA.BOXES = False
    # The boxes that a layer predicts are where the next one looks. The following need BOXES.
    cfg.MODEL.ISDA.BOX_REFINEMENT = False
    # Boxes are moved by shares of their own sides, otherwise by shifts of their logits.
    cfg.MODEL.ISDA.RELATIVE_BOXES = False
    # The first boxes are proposals of the encoder's tokens, the NUM_QUERIES best of each image.
    cfg.MODEL.ISDA.QUERY_SELECTION = False
    # Queries start with the content of the tokens that they were chosen from, otherwise with a
    # learned one. Needs QUERY_SELECTION.
    cfg.MODEL.ISDA.TOKEN_CONTENT = False
    # In self-attention two queries know how their boxes lie and whose proposal scores higher, which
    # tells duplicates of one object apart.
    cfg.MODEL.ISDA.QUERY_RELATION = False
    # What is valid of a padded level is measured in pixels, otherwise rounded up to its cells as in
    # Deformable DETR: sides that are no multiple of 64 then shift boxes in coarse levels.
    cfg.MODEL.ISDA.EXACT_EXTENT = False
    # Kernels draw an ellipse around their query's box into the mask.
    cfg.MODEL.ISDA.ELLIPSE = False
    # Noised ground truths beside the queries in training, at most so many per image; 0: none.
    cfg.MODEL.ISDA.DENOISING_QUERIES = 0
    # Weights of the box terms in the loss and in the matching cost: L1 and generalised IoU.
    cfg.MODEL.ISDA.BOX_WEIGHT = 5.0
    cfg.MODEL.ISDA.GIOU_WEIGHT = 2.0
    cfg.MODEL.ISDA.BOX_COST = 5.0
    cfg.MODEL.ISDA.GIOU_COST = 2.0
    # Stride of the last convolution of the mask features, if coarser than MASK_STRIDE: they are
    # then enlarged bilinearly. 0: MASK_STRIDE.
    cfg.MODEL.ISDA.MASK_FEATURE_STRIDE = 0
    # Every so many-th encoder layer, counted back from the last, updates the tokens of the finest
    # level, three quarters of all; the others leave them alone.
    cfg.MODEL.ISDA.ENCODER_FINEST_EVERY = 1
    # Cells per image at which masks are matched and learned, drawn anew in every step; 0: all.
    cfg.MODEL.ISDA.MASK_POINTS = 0


def _add_istr(cfg: CN) -> None:
    cfg.MODEL.ISTR = CN()
    # K. 0 takes the number of classes from the metadata of the training data set.
    cfg.MODEL.ISTR.NUM_CLASSES = 0
    # Backbone outputs of strides 4, 8, 16, 32 with HIDDEN_DIM channels, as Detectron2's FPN has.
    cfg.MODEL.ISTR.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ISTR.HIDDEN_DIM = 256  # C: width of levels and queries
    cfg.MODEL.ISTR.NUM_QUERIES = 300  # N: the largest number of instances per image
    cfg.MODEL.ISTR.NUM_STEPS = 6  # T refinement steps; every one is supervised
    cfg.MODEL.ISTR.NUM_HEADS = 8  # of the self-attention among queries
    cfg.MODEL.ISTR.FEEDFORWARD_DIM = 2048
    cfg.MODEL.ISTR.DYNAMIC_DIM = 64  # channels inside the dynamic convolution
    cfg.MODEL.ISTR.POOLER_RESOLUTION = 7  # cells of a region of interest, along each side
    cfg.MODEL.ISTR.IMAGE_FEATURE = True  # queries start from the image's mean features as well
    # The dictionary of mask embeddings: a file that isda mask-dictionary fit has made, or
    # "shipped"; a larger one is cut to EMBEDDING_DIM. "" leaves it to the checkpoint in
    # MODEL.WEIGHTS, which always has its own.
    cfg.MODEL.ISTR.MASK_DICTIONARY = "shipped"
    cfg.MODEL.ISTR.MASK_SIZE = 28  # S: pixels of an encoded mask, along each side
    cfg.MODEL.ISTR.EMBEDDING_DIM = 60  # d: numbers of a mask embedding
    cfg.MODEL.ISTR.MASK_NOISE = False  # encode targets with the authors' random numbers
    # Weights of the loss terms.
    cfg.MODEL.ISTR.CLASS_WEIGHT = 2.0  # focal
    cfg.MODEL.ISTR.BOX_WEIGHT = 5.0  # L1 of boxes relative to the image
    cfg.MODEL.ISTR.GIOU_WEIGHT = 2.0
    cfg.MODEL.ISTR.EMBEDDING_WEIGHT = 2.0  # mean squared error of mask embeddings
    cfg.MODEL.ISTR.MASK_WEIGHT = 2.0  # dice of decoded masks
    # Weights of the terms of the matching cost.
    cfg.MODEL.ISTR.CLASS_COST = 2.0
    cfg.MODEL.ISTR.BOX_COST = 5.0
    cfg.MODEL.ISTR.GIOU_COST = 2.0
    cfg.MODEL.ISTR.EMBEDDING_COST = 2.0  # similarity of mask embeddings
    cfg.MODEL.ISTR.MASK_THRESHOLD = 0.5  # a pixel is in an instance from this probability on


def _grid_node(head_dim: int, num_convs: int) -> CN:
    """The keys that SOLO and SOLOv2 have in common."""
    node = CN()
    # K. 0 takes the number of classes from the metadata of the training data set.
    node.NUM_CLASSES = 0
    # Backbone outputs of strides 4 to 64, as Detectron2's FPN has them.
    node.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    node.HEAD_DIM = head_dim  # channels of the towers
    node.NUM_CONVS = num_convs  # convolutions of each tower
    node.GRID_SIZES = [40, 36, 24, 16, 12]  # S: cells along each side, per level
    # Instances of such √(width · height) in pixels belong to a level; both ends are included.
    node.SCALE_RANGES = [[1, 96], [48, 192], [96, 384], [192, 768], [384, 2048]]
    # Stride of the masks: 4, or 2 for small objects. SOLO's coarser levels have coarser masks.
    node.MASK_STRIDE = 4
    # Weights of the loss terms.
    node.CLASS_WEIGHT = 1.0  # focal
    node.MASK_WEIGHT = 3.0  # dice
    # At inference: classes of cells above it are candidates, ...
    node.SCORE_THRESH_TEST = 0.1
    node.PRE_NMS_TOPK_TEST = 500  # ... of which matrix NMS compares so many
    node.NMS_KERNEL = "gaussian"  # how it lowers scores: or "linear"
    node.NMS_SIGMA = 2.0  # of the Gaussian kernel exp(-σ·IoU²)
    node.FINAL_THRESH_TEST = 0.05  # what it leaves above is returned
    node.MASK_THRESHOLD = 0.5  # a pixel belongs to an instance above this probability
    return node


def _add_condinst(cfg: CN) -> None:
    cfg.MODEL.CONDINST = _fcos()
    cfg.MODEL.CONDINST.BRANCH_CONVS = 4  # after the sum of the levels
    cfg.MODEL.CONDINST.NORM = "BN"  # of the mask branch: "BN", "SyncBN", "GN" or "" for none
    cfg.MODEL.CONDINST.MASK_DIM = 8  # features that every instance's mask head reads
    # Locations per process and step whose masks are learned, drawn at random from more.
    cfg.MODEL.CONDINST.MAX_MASKS_TRAIN = 500
    # Learn the class of every cell too, as an auxiliary task; inference does without.
    cfg.MODEL.CONDINST.SEMANTIC = False


def _add_blendmask(cfg: CN) -> None:
    cfg.MODEL.BLENDMASK = _fcos()
    cfg.MODEL.BLENDMASK.BRANCH_CONVS = 3  # after the sum of the levels, before the last upsampling
    cfg.MODEL.BLENDMASK.NORM = "SyncBN"  # of the mask branch: "BN", "SyncBN", "GN" or "" for none
    cfg.MODEL.BLENDMASK.NUM_BASES = 4
    cfg.MODEL.BLENDMASK.ATTENTION_SIZE = 14  # M: cells of an attention map, along each side
    cfg.MODEL.BLENDMASK.MASK_SIZE = 56  # R: cells of a mask inside its box, along each side
    # Learn the class of every cell too, as an auxiliary task; inference does without.
    cfg.MODEL.BLENDMASK.SEMANTIC = True
    cfg.MODEL.BLENDMASK.SEMANTIC_WEIGHT = 0.3


def _fcos() -> CN:
    """Keys that CondInst and BlendMask have in common, each in its own node."""
    node = CN()
    # K. 0 takes the number of classes from the metadata of the training data set.
    node.NUM_CLASSES = 0
    # Backbone outputs for boxes, finest first, each half as fine as the one before; a level is for
    # boxes whose farthest side is 4 to 8 of its strides away.
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    node.NUM_CONVS = 4  # of the class tower, and of the box tower
    # Backbone outputs from which mask features are made, up to stride 32. Masks have half the
    # stride of the first.
    node.BRANCH_IN_FEATURES = ["p3", "p4", "p5"]
    node.BRANCH_DIM = 128  # width of the mask branch and of the semantic head
    # Inference: class probability times centreness above which a box is kept, the IoU above which
    # of two boxes of a class the worse goes, and boxes of each level before that.
    node.SCORE_THRESH_TEST = 0.05
    node.NMS_THRESH_TEST = 0.6
    node.TOPK_CANDIDATES_TEST = 1000
    node.MASK_THRESHOLD = 0.5  # a pixel belongs to an instance above this probability
    return node


def _add_backbones(cfg: CN) -> None:
    """Keys of the backbone builders in ``isda.modeling.backbone``.

    MODEL.BACKBONE.FREEZE_AT is Detectron2's and means the same here: 0 freezes nothing, 1 the
    stem, 2 all up to stride 4, 3 up to stride 8 and so on (ViT takes 0 only).
    """
    # build_swin_backbone, build_swin_fpn_backbone. Defaults: Swin-T.
    cfg.MODEL.SWIN = CN()
    cfg.MODEL.SWIN.EMBED_DIM = 96
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
    cfg.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
    cfg.MODEL.SWIN.WINDOW_SIZE = 7
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.2  # of the last block; grows linearly from 0
    cfg.MODEL.SWIN.GRADIENT_CHECKPOINTING = False  # recompute each block: less memory, more time

    # build_vit_backbone: ViTDet's plain ViT with a simple feature pyramid. Defaults: ViT-B.
    cfg.MODEL.VIT = CN()
    cfg.MODEL.VIT.IMG_SIZE = 1024  # images are padded to squares of this size
    cfg.MODEL.VIT.EMBED_DIM = 768
    cfg.MODEL.VIT.DEPTH = 12
    cfg.MODEL.VIT.NUM_HEADS = 12
    cfg.MODEL.VIT.WINDOW_SIZE = 14
    cfg.MODEL.VIT.GLOBAL_BLOCKS = [2, 5, 8, 11]  # blocks that attend beyond their window
    cfg.MODEL.VIT.DROP_PATH_RATE = 0.1

    # build_torch_backbone, build_torch_fpn_backbone: a classifier of torchvision or timm.
    cfg.MODEL.TORCH_BACKBONE = CN()
    cfg.MODEL.TORCH_BACKBONE.LIBRARY = "torchvision"  # or "timm"
    cfg.MODEL.TORCH_BACKBONE.NAME = "resnet18"  # as the library calls it
    # "" starts from scratch, "pretrained" downloads the library's own weights, anything else is
    # a state dict: a path, a URL, or isda://FILE for one that comes with this package.
    cfg.MODEL.TORCH_BACKBONE.WEIGHTS = ""
    # What becomes of batch norm: "BN" as it is, "FrozenBN" with fixed statistics, "GN" in its
    # place. Norms that a weight file has folded into its convolutions vanish.
    cfg.MODEL.TORCH_BACKBONE.NORM = "BN"
    # Pad as TensorFlow does ("SAME"): for weights that were trained there.
    cfg.MODEL.TORCH_BACKBONE.SAME_PADDING = False


def _add_input(cfg: CN) -> None:
    # How pixels of other types than 8 bits become these: "percentile" (of each image, 1 and 99.8),
    # "percentile LOW HIGH", "range" (of each image), or two values, such as "0 4095".
    cfg.INPUT.INTENSITY = "percentile"
    # Of files with several pages (planes, moments) or channels: the one that is meant, from 0.
    # -1: files must have one page, and one channel or red, green and blue.
    cfg.INPUT.PAGE = -1
    cfg.INPUT.CHANNEL = -1
    cfg.INPUT.MAX_PIXELS = 178_956_970  # larger images are refused: damaged files claim any size
    # "isda": DETR's augmentation; "isda_lsj": large-scale jitter; "fixed": resize and flip only.
    cfg.INPUT.DATASET_MAPPER_NAME = "isda"
    # DETR's augmentation: with this probability resize to RESIZE_BEFORE_CROP and crop first.
    cfg.INPUT.CROP.PROBABILITY = 0.5
    cfg.INPUT.CROP.RESIZE_BEFORE = (400, 500, 600)
    # Random brightness, contrast and saturation, each by a factor within 0.7 and 1.3.
    cfg.INPUT.COLOR_AUG = False
    # Random quarter turns, beside RANDOM_FLIP: microscopy and aerial images have no upside.
    cfg.INPUT.RANDOM_ROTATE90 = False
    # Large-scale jitter: scale range relative to the square canvas of IMAGE_SIZE pixels.
    cfg.INPUT.IMAGE_SIZE = 1024
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0


def _add_solver(cfg: CN) -> None:
    cfg.SOLVER.OPTIMIZER = "ADAMW"  # or "SGD", Detectron2's
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1  # learning rate of the backbone, relative to BASE_LR
    # The same for sampling offsets and for the reference points' linear layer.
    cfg.SOLVER.SAMPLING_MULTIPLIER = 0.1
    # BASE_LR is meant for this many images per optimiser step and scales linearly with
    # IMS_PER_BATCH; 0 takes BASE_LR as it stands.
    cfg.SOLVER.REFERENCE_BATCH = 0
    # Forward and backward passes per optimiser step; IMS_PER_BATCH counts the images of all.
    cfg.SOLVER.ACCUMULATION = 1
    # Schedule in epochs of the training data; EPOCHS 0 uses MAX_ITER, STEPS and the periods.
    cfg.SOLVER.EPOCHS = 0.0
    cfg.SOLVER.STEP_EPOCHS = ()
    cfg.SOLVER.CHECKPOINT_EPOCHS = 0.0
    cfg.TEST.EVAL_EPOCHS = 0.0
    cfg.SOLVER.AMP.DTYPE = "bfloat16"  # or "float16", with a gradient scaler
    # Where the processor is slower in it: "float32" takes that instead, "keep" does not.
    cfg.SOLVER.AMP.IF_SLOWER = "float32"
    # The same for inference: evaluation and prediction.
    cfg.TEST.AMP = CN({"ENABLED": False})
    cfg.TEST.AMP.DTYPE = "bfloat16"  # or "float16"
    cfg.TEST.AMP.IF_SLOWER = "float32"  # or "keep"
    # Large images in overlapping windows: "off", "auto" (those that would be shrunk more than
    # twice), "on" (all that are larger than a window).
    cfg.TEST.TILES = CN({"MODE": "off"})
    # Shorter side of the images of the training, pixels: windows are scaled as these were. 0: not
    # known; a training takes the median of its images, prediction the pixels as they are.
    cfg.TEST.TILES.IMAGE_SIZE = 0
    cfg.TEST.TILES.OVERLAP = 0.12  # least share of a window that is a neighbour's as well
    cfg.SOLVER.EMA = CN({"ENABLED": False})
    cfg.SOLVER.EMA.DECAY = 0.9998
    # The training ends when the mask AP of so many evaluations in a row is not the best; 0: never.
    cfg.SOLVER.EARLY_STOP = CN({"PATIENCE": 0})
    # Steps with a non-finite loss are skipped; this many in a row stop the training.
    cfg.SOLVER.MAX_NONFINITE_STEPS = 5
