"""A linear probe on what the language model receives of a picture: which facts can be read there at all.

What the probe tells apart and a model's embedding does not, the model is blind to though it sees it: grain blindness.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from elva.data.facts import Fact, Facts, NearMiss, Question


class Probe:
    """Answers questions about pictures by one linear map of each token, pooled by log-sum-exp over the tokens.

    The logit of answer v to question (s, k) at token t is ``(a_s + b_kv + c_skv) · x_t + p_kvt``: the weights of one
    linear map, of which what subjects and values share is learnt together. ``p`` is the token's place, which a language
    model knows. Over tokens, log-sum-exp: one place of the picture is enough for an answer.
    """

    def __init__(self, facts: Sequence[Facts], mean: Tensor, scale: Tensor, tokens: int, seed: int) -> None:
        values: dict[Question, set[str]] = {}
        for known in facts:
            for question, value in known.items():
                values.setdefault(question, set()).add(value)
        self.columns = {
            Fact(question, value): number
            for number, (question, value) in enumerate(
                (q, v) for q in sorted(values) for v in sorted(values[q])
            )
        }
        self.mean, self.scale = mean, scale
        questions = {question: number for number, question in enumerate(sorted(values))}
        subjects = {subject: number for number, subject in enumerate(sorted({q.subject for q in questions}))}
        shared = {pair: n for n, pair in enumerate(sorted({(q.key, v) for q, v in self.columns}))}
        self._question = torch.tensor([questions[q] for q, _ in self.columns])
        self._subject = torch.tensor([subjects[q.subject] for q, _ in self.columns])
        self._shared = torch.tensor([shared[q.key, v] for q, v in self.columns])
        width = len(mean)
        sizes = {"subject": len(subjects), "value": len(shared), "own": len(self.columns)}
        self.weights = {name: torch.zeros(size, width, requires_grad=True) for name, size in sizes.items()}
        self.place = torch.zeros(len(shared), tokens, requires_grad=True)
        self._questions = len(questions)
        self._generator = torch.Generator().manual_seed(seed)

    @classmethod
    def fit(
        cls,
        features: Tensor,
        facts: Sequence[Facts],
        *,
        epochs: int = 20,
        learning_rate: float = 0.01,
        weight_decay: float = 0.01,
        seed: int = 0,
    ) -> Probe:
        """A probe trained on ``features`` [pictures, tokens, H] and what is known of each picture."""
        flat = features.flatten(0, 1).float()
        probe = cls(facts, flat.mean(0), flat.std(0).clamp_min(1e-6), features.shape[1], seed)
        right = torch.zeros(len(facts), len(probe.columns))
        for row, known in enumerate(facts):
            right[row, [probe.columns[Fact(q, v)] for q, v in known.items()]] = 1
        parameters = [*probe.weights.values(), probe.place]
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
        batches = max(1, len(facts) // 256)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * batches)
        for _ in range(epochs):
            for rows in torch.randperm(len(facts), generator=probe._generator).chunk(batches)[:batches]:
                loss = -(right[rows] * probe.log_probabilities(features[rows])).sum() / right[rows].sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return probe

    def log_probabilities(self, features: Tensor) -> Tensor:
        """``[pictures, answers]``: log-probability of every answer among those to its question."""
        x = (features.float() - self.mean) / self.scale
        w = self.weights
        weight = w["subject"][self._subject] + w["value"][self._shared] + w["own"]
        logits = (x @ weight.T + self.place[self._shared].T).logsumexp(-2)
        top = logits.detach().amax(-1, keepdim=True)
        sums = logits.new_zeros(len(logits), self._questions).index_add(
            -1, self._question, (logits - top).exp()
        )
        return logits - top - sums.clamp_min(1e-30).log()[:, self._question]

    @torch.no_grad()
    def right(self, features: Tensor, pairs: Sequence[NearMiss]) -> list[bool]:
        """For every near miss: does the query's picture answer what is asked better than the near miss does?"""
        scores = torch.cat([self.log_probabilities(part) for part in features.split(512)])
        found = []
        for pair in pairs:
            columns = [self.columns[fact] for fact in pair.asked]
            found.append(bool(scores[pair.right, columns].sum() > scores[pair.wrong, columns].sum()))
        return found
