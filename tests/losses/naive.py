"""Reference losses as plain loops over Python floats (float64)."""

from __future__ import annotations

import math

from torch import Tensor


def log_softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    scaled = [value / temperature for value in row]
    largest = max(scaled)
    log_sum = largest + math.log(sum(math.exp(value - largest) for value in scaled))
    return [value - log_sum for value in scaled]


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    return [math.exp(value) for value in log_softmax(row, temperature)]


def pairs(student: Tensor, teacher: Tensor) -> list[tuple[list[float], list[float]]]:
    """Return one pair of rows (student, teacher) for each sample."""
    return list(zip(student.tolist(), teacher.tolist(), strict=True))


def kd(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """T^2 KL(teacher || student), averaged over samples, in nats."""
    total = 0.0
    for s, t in pairs(student, teacher):
        log_q, log_p = log_softmax(s, temperature), log_softmax(t, temperature)
        total += sum(math.exp(p_c) * (p_c - q_c) for p_c, q_c in zip(log_p, log_q, strict=True))
    return temperature**2 * total / len(student)


def kd_gradient(student: Tensor, teacher: Tensor, temperature: float) -> list[list[float]]:
    """T (q - p) / N: Hinton 2015, equation 2, times T^2."""
    return [
        [
            temperature * (q - p) / len(student)
            for q, p in zip(softmax(s, temperature), softmax(t, temperature), strict=True)
        ]
        for s, t in pairs(student, teacher)
    ]


def entropy(logits: Tensor, temperature: float) -> float:
    """Entropy of the softened distributions, averaged over samples, in nats."""
    rows = [log_softmax(row, temperature) for row in logits.tolist()]
    return -sum(math.exp(value) * value for row in rows for value in row) / len(rows)
