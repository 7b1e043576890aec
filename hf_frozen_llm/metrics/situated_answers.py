# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
How answers to questions about scenes are compared, and how their questions are sorted.

Sources: github.com/SilongYong/SQA3D (first-word rule, and the cleaning of LEO, whose refined match this is) and
github.com/YunzeMan/Situation3D (nine classes).
"""

import re
from collections.abc import Sequence

import numpy as np


FIRST_WORDS = ("what", "is", "how", "can", "which")
NINE_CLASSES = ("what", "is", "how", "can", "which", "if", "where", "am")
QUESTION_RULES = ("first_word", "nine_classes")
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
WORDS = {
    "letf": "left",
    "let": "left",
    "tehre": "there",
    "rigth": "right",
    "rght": "right",
    "behine": "behind",
    "tv": "TV",
    "chai": "chair",
    "wasing": "washing",
    "waslked": "walked",
    "oclock": "o'clock",
    "none": "zero",
    "backwards": "backward",
    **{str(number): word for number, word in enumerate(NUMBERS)},
    "23": "twenty-three",
}
WORD = re.compile(rf"\b({'|'.join(WORDS)})\b")


def clean_answer(text: str) -> str:
    """
    Clean an answer as the refined match does: lower case, spaces, punctuation, frequent typing errors, numbers up to
    20 as words, no digit at the end of a word, and no article before a word.
    """
    text = re.sub(" {2,}", " ", text.lower().strip(" "))
    text = re.sub(r"[^a-z0-9,'\s\-:]+", "", text)
    text = WORD.sub(lambda match: WORDS[match[0]], text)
    text = re.sub(r"\bo' +clock\b", "o'clock", text)
    text = re.sub(r"\b([a-zA-Z]+)[0-9]\b", r"\1", text)
    for article in ("a", "an", "the"):
        text = re.sub(rf"\b{article}\b ([a-zA-Z]+)", r"\1", text)
    return text


def match_answer(prediction: str, answers: Sequence[str]) -> tuple[bool, bool]:
    """
    Return whether a cleaned prediction equals an answer, and whether it matches one in the refined sense: one contains
    the other, spaces left out. As published, the first answer that matches decides.
    """
    prediction = clean_answer(prediction)
    for answer in map(clean_answer, answers):
        if prediction == answer:
            return True, True
        one, other = prediction.replace(" ", ""), answer.replace(" ", "")
        if one in other or other in one:
            return False, True
    return False, False


def classify_question(question: str, rule: str = "first_word") -> str:
    """
    Return the type of a question.

    Args:
        question (`str`): the question.
        rule (`str`, *optional*, defaults to `"first_word"`):
            `"first_word"` is that of SQA3D's table: the first word is exactly what, is, how, can or which, or the
            question is of the others. `"nine_classes"` is that of Situation3D, on which the frozen-LLM paper's row is:
            it counts questions with "are" as "is" and splits the others, so its "is" and "other" are not comparable
            with those of the first rule.

    Raises:
        `ValueError`: for another rule.
    """
    if rule == "first_word":
        word = question.split(" ")[0].lower()
        return word if word in FIRST_WORDS else "others"
    if rule == "nine_classes":
        word = (question.lower().split() or [""])[0]
        word = "is" if word == "are" else word
        return word if word in NINE_CLASSES else "other"
    raise ValueError(f"rule is {rule!r}; it must be one of {QUESTION_RULES}.")


def heading(quaternions: np.ndarray) -> np.ndarray:
    """Return the z component of the rotation vectors of quaternions x, y, z, w, `(…, 4)`, in radians."""
    vector, real = quaternions[..., :3], quaternions[..., 3]
    length = np.linalg.norm(vector, axis=-1)
    sign = np.where(real < 0, -1.0, 1.0)
    angle = 2 * np.arctan2(length, np.abs(real))
    return sign * angle * vector[..., 2] / np.where(length == 0, 1.0, length)


def localization_errors(predictions: np.ndarray, pose: np.ndarray) -> tuple[float, float]:
    """
    Return the smallest error of an agent's position, in metres in the plane, and of its heading, in degrees.

    Args:
        predictions (`numpy.ndarray` of shape `(candidates, 7)`): positions and quaternions x, y, z, w.
        pose (`numpy.ndarray` of shape `(7,)`): the true one.
    """
    distances = np.linalg.norm(predictions[:, :2] - pose[:2], axis=-1)
    turns = heading(predictions[:, 3:]) - heading(pose[3:])
    turns = np.abs((turns + np.pi) % (2 * np.pi) - np.pi)
    return float(distances.min()), float(np.degrees(turns).min())
