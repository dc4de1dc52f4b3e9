"""Training, evaluation and resumption on top of Detectron2's engine."""
