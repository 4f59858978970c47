"""The two halves of the gradient of E[R], on a policy whose expectation can be enumerated."""

import itertools

import torch

from elva.losses import GRPOLoss, group_advantage
from elva.training.objective import pathwise_loss

VOCABULARY, LENGTH, GENERATIONS = 3, 2, 2


def toy():
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(LENGTH, VOCABULARY, generator=generator, dtype=torch.float64).requires_grad_()
    table = torch.randn(VOCABULARY, 4, generator=generator, dtype=torch.float64)
    target = torch.randn(4, generator=generator, dtype=torch.float64)
    completions = list(itertools.product(range(VOCABULARY), repeat=LENGTH))
    return theta, table, target, completions


def reward_of(tokens, theta, table, target):
    """A reward that depends on the parameters through the tokens and through their embedding."""
    embedding = sum(table[token] * theta[place, token].sigmoid() for place, token in enumerate(tokens))
    return torch.cosine_similarity(embedding + 0.1 * theta.sum(), target, dim=0)


def log_probability(tokens, theta):
    return torch.stack([theta.log_softmax(-1)[place, token] for place, token in enumerate(tokens)])


def expected_gradients():
    theta, table, target, completions = toy()
    probability = [log_probability(tokens, theta).sum().exp() for tokens in completions]
    rewards = [reward_of(tokens, theta, table, target) for tokens in completions]
    expectation = sum(p * r for p, r in zip(probability, rewards, strict=True))
    (truth,) = torch.autograd.grad(expectation, theta, retain_graph=True)
    criterion = GRPOLoss(beta=0.0, scale_rewards="none", max_completion_length=LENGTH)
    score = torch.zeros_like(theta)
    pathwise = torch.zeros_like(theta)
    for group in itertools.product(range(len(completions)), repeat=GENERATIONS):
        weight = torch.stack([probability[index] for index in group]).prod().detach()
        logps = torch.stack([log_probability(completions[index], theta) for index in group])
        reward = torch.stack([rewards[index] for index in group]).unsqueeze(0)
        advantages = group_advantage(reward.detach(), scale_rewards="none").flatten()
        loss = criterion(logps, advantages, torch.ones_like(logps, dtype=torch.bool))
        score -= weight * torch.autograd.grad(loss, theta, retain_graph=True)[0]
        loss = pathwise_loss(reward, "none", LENGTH)
        pathwise -= weight * torch.autograd.grad(loss, theta, retain_graph=True)[0]
    return truth * (1 - 1 / GENERATIONS) / LENGTH, score, pathwise


def test_score_and_pathwise_add_up_to_the_gradient_of_the_expected_reward():
    truth, score, pathwise = expected_gradients()
    torch.testing.assert_close(score + pathwise, truth, atol=1e-12, rtol=1e-9)
    # neither half alone is the gradient, so the equality above is not vacuous
    assert (score - truth).norm() > 0.05 * truth.norm()
    assert (pathwise - truth).norm() > 0.05 * truth.norm()


def test_scaled_rewards_divide_both_terms_alike():
    reward = torch.tensor([[0.1, 0.4, 0.3]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(pathwise_loss(reward, "group", 5), reward)
    scale = reward.detach().std() + 1e-4
    torch.testing.assert_close(gradient, torch.full_like(reward, -1 / 3 * (2 / 3) / 5) / scale)
    single = torch.tensor([[0.3]], requires_grad=True)
    (gradient,) = torch.autograd.grad(pathwise_loss(single, "group", 5), single)
    assert gradient.item() == 0
