"""The authors' release of ISDA, in the names of mmdetection."""

import re

from isda.conversion.deformable_detr import CONFIG, MMDETECTION_RULES, mmdetection_settings
from isda.conversion.table import Source, moves

__all__ = ["PUBLISHED_ISDA"]

_CONV_OR_NORM = r"(?P<module>conv|gn)\.(?P<kind>weight|bias)"


def _conv_or_norm(match: re.Match) -> str:
    return f"norm.{match['kind']}" if match["module"] == "gn" else match["kind"]


def _mask_branch(match: re.Match) -> str:
    index = 2 * int(match["conv"])  # our branches count the upsamplings in between as well
    return f"mask_feature_head.branches.{match['level']}.{index}.{_conv_or_norm(match)}"


PUBLISHED_ISDA = Source(
    title="ISDA, the authors' release",
    config=CONFIG,
    mark=r"bbox_head\.kernel_branches\.\d+\.0\.weight",
    rules=(
        *MMDETECTION_RULES,
        moves(
            rf"neck\.first_conv\.{_CONV_OR_NORM}",
            lambda match: f"neck.projections.0.{_conv_or_norm(match)}",
        ),
        moves(
            r"mask_feat_head\.convs_all_levels\.(?P<level>[0-3])\.conv(?P<conv>\d)\."
            + _CONV_OR_NORM,
            _mask_branch,
        ),
        moves(
            rf"mask_feat_head\.conv_pred\.0\.{_CONV_OR_NORM}",
            lambda match: f"mask_feature_head.output.{_conv_or_norm(match)}",
        ),
        moves(
            r"bbox_head\.kernel_branches\.\d+\.(?P<layer>[024])\.(?P<kind>weight|bias)",
            r"instance_head.kernels.\g<layer>.\g<kind>",
        ),
    ),
    settings=mmdetection_settings,
)
