# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
from . import answers, classification, motion
from .classification_scores import ClassificationScores
from .drivable_area_compliance import DrivableAreaCompliance
from .metric import Metric
from .retrieval_recall import RetrievalRecall, rank_of_best_match
from .situated_question_answering import LocalizationAccuracy, SituatedAnswerAccuracy
from .top_k_accuracy import TopKAccuracy
from .trajectory_errors import TrajectoryErrors
from .vqa_accuracy import VQAAccuracy
