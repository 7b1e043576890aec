# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Answers of VQAv2: how its official evaluator compares them, and how METER lists and scores them.

Source: github.com/GT-Vision-Lab/VQA (`PythonEvaluationTools/vqaEvaluation/vqaEval.py`), whose peculiarities count;
github.com/zdou0830/METER (`meter/utils/write_vqa.py`).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence


ARTICLES = {"a", "an", "the"}
NUMBERS = dict(zip("none zero one two three four five six seven eight nine ten".split(), map(str, (0, *range(11)))))
# Those of the evaluator's table that lower-cased words can match. It restores one missing apostrophe.
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
RESTORED = {
    word[: mark.start()] + word[mark.end() :]: word for word in CONTRACTIONS for mark in re.finditer("'", word)
} | {"somebody'd": "somebodyd"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
MIN_ANSWERS = 4


def normalize_answer(text: str) -> str:
    """
    Normalise an answer: punctuation, case, number words, articles and contractions.

    A punctuation mark becomes a space; it is deleted if the text has it beside a space, or has a comma between digits.
    Of periods that no digit follows, the first 32 are deleted.
    """
    normal = text
    has_thousands = re.search(r"\d,\d", text) is not None
    for mark in PUNCTUATION:
        is_deleted = has_thousands or f"{mark} " in text or f" {mark}" in text
        normal = normal.replace(mark, "" if is_deleted else " ")
    normal = re.sub(r"\.(?!\d)", "", normal, count=32)
    words = [NUMBERS.get(word, word) for word in normal.lower().split()]
    return " ".join(RESTORED.get(word, word) for word in words if word not in ARTICLES)


def score_answer(prediction: str, answers: Sequence[str]) -> float:
    """
    Return the official accuracy of a predicted answer, from 0 to 1: over the annotators, the mean of how many of the
    others gave the same answer, of which three are enough. Answers are normalised unless all annotators agree.

    Args:
        prediction (`str`): the predicted answer.
        answers (`Sequence[str]`): those of the annotators, ten in VQAv2.

    Raises:
        `ValueError`: for fewer than four answers, of which none could be right.
    """
    if len(answers) < MIN_ANSWERS:
        raise ValueError(
            f"The question has {len(answers)} answers; VQA accuracy compares the answers of at least {MIN_ANSWERS} "
            "annotators. Compare single answers by TopKAccuracy."
        )
    prediction, *answers = (re.sub(r"[\n\t]", " ", text).strip() for text in (prediction, *answers))
    if len(set(answers)) > 1:
        prediction, *answers = (normalize_answer(text) for text in (prediction, *answers))
    matches = [answer == prediction for answer in answers]
    return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)


def list_answers(answers: Iterable[str], min_count: int = 9) -> list[str]:
    """
    Return the answers that a model can give, by METER's rule: the normalised ones that occur at least `min_count`
    times, in the order of their first occurrence.

    Args:
        answers (`Iterable[str]`):
            The answer of each question (`multiple_choice_answer`), those of the training split first. With those of
            VQAv2's training and validation splits the list has 3,129 answers.
        min_count (`int`, *optional*, defaults to 9):
            How often an answer must occur.
    """
    counts = Counter(normalize_answer(answer) for answer in answers)
    return [answer for answer, count in counts.items() if count >= min_count]


def soft_scores(answers: Sequence[str], answer_ids: Mapping[str, int]) -> dict[int, float]:
    """
    Return METER's target of a question: the ids of its listed answers, with 0.3, 0.6, 0.9 or 1 for 1, 2, 3 or more
    annotators. Their answers are looked up as they are, without normalisation.

    Args:
        answers (`Sequence[str]`): the annotators' answers.
        answer_ids (`Mapping[str, int]`): the ids of the listed answers.
    """
    scores = {1: 0.3, 2: 0.6, 3: 0.9}
    counts = Counter(answer for answer in answers if answer in answer_ids)
    return {answer_ids[answer]: scores.get(count, 1.0) for answer, count in counts.items()}
