"""The authors' release of ISTR (V1, May 2021)."""

from isda.conversion.table import Rule, Source, moves

__all__ = ["PUBLISHED_ISTR"]

_STEP = r"head\.head_series\.(\d+)\."


def _step(theirs: str, ours: str) -> Rule:
    return moves(rf"{_STEP}{theirs}\.(.+)", rf"refinement.steps.\1.{ours}.\2")


PUBLISHED_ISTR = Source(
    title="ISTR, the authors' release",
    config="COCO-InstanceSegmentation/istr_R_50_FPN_3x.yaml",
    mark=_STEP + r"mask_logits\.weight",
    rules=(
        moves(r"pos_embeddings\.weight", "queries.features.weight"),
        moves(r"init_proposal_boxes\.weight", "queries.boxes.weight"),
        moves(r"mask_encoding\.components", "mask_embedding.components"),
        moves(r"mask_encoding\.means", "mask_embedding.mean"),
        moves(r"mask_encoding\.explained_variances", "mask_embedding.explained_variance"),
        _step("inst_interact", "dynamic_conv"),
        _step("cls_module", "class_tower"),
        _step("reg_module", "box_tower"),
        _step("mask_module", "mask_tower"),
        _step("class_logits", "classes"),
        _step("bboxes_delta", "deltas"),
        _step("mask_logits", "masks"),
        moves(_STEP + r"(self_attn\..+|linear[12]\..+|norm[123]\..+)", r"refinement.steps.\1.\2"),
        moves(r"(backbone\..+)", r"\1"),  # Detectron2's in both, the feature pyramid included
    ),
)
