"""Every loss once more: the fastest plain torch of its formula, as one would write it into a training loop.

Nothing is checked, nothing upcast, and what has no NaN on ordinary inputs is not guarded. Each form is called with the
loss, whose connectors it takes (m), and with student, teacher and target (s, t, y); other arguments are the loss's
defaults.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

# ---- response


def adversarial(m, s, t, y):
    verdict = m.discriminator(s)
    return F.softplus(-verdict[:, 0]).mean() + F.cross_entropy(verdict[:, 1:], y)


def attentive_ensemble(m, s, t, y):
    (z, features), k = s, t.shape[1]
    pairs = torch.cat((features.unsqueeze(1).expand(-1, k, -1), m.embeddings.expand(len(z), k, -1)), 2)
    a = m.score(torch.tanh(m.hidden(pairs))).softmax(1)
    q = (a.detach() * (t / 4).softmax(2)).sum(1)
    kl = F.kl_div(F.log_softmax(z / 4, 1), q, reduction="batchmean") * 16
    return kl + F.nll_loss((a * t.softmax(2)).sum(1).log(), y)


def kd(m, s, t, y, temperature=4.0):
    s, t = F.log_softmax(s / temperature, 1), F.log_softmax(t / temperature, 1)
    return F.kl_div(s, t, reduction="batchmean", log_target=True) * temperature**2


def agreeing_kd(m, s, t, y):
    rows = F.kl_div(F.log_softmax(s, 1), F.log_softmax(t, 1), reduction="none", log_target=True).sum(1)
    return (rows * (s.argmax(1) == t.argmax(1))).mean()


def one_hot(m, s, t, y):
    return F.cross_entropy(s, s.argmax(1))


def activation(m, s, t, y):
    return -s.abs().mean()


def information_entropy(m, s, t, y):
    p = s.softmax(1).mean(0)
    return (p * p.log10()).sum()


def activation_record(m, s, t, y):
    sizes = [x[0].numel() for x in s]
    pairs = zip(s, y.split(sizes, 1), sizes, strict=True)
    return sum((x.flatten(1).relu() - r.relu()).square().mean() / size for x, r, size in pairs)


def total_variation(m, s, t, y):
    x = s
    moved = x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]
    moved += x[..., 1:, 1:] - x[..., :-1, :-1], x[..., 1:, :-1] - x[..., :-1, 1:]
    return sum(d.flatten(1).norm(dim=1).mean() for d in moved)


def batch_norm_statistics(m, s, t, y):
    features, mean, variance = s
    found, spread = features.mean((0, 2, 3)), features.var((0, 2, 3), correction=0)
    return (found - mean).norm() + (spread - variance).norm()


def logit_l1(m, s, t, y):
    return F.l1_loss(s, t)


def soft_cross_entropy(m, s, t, y):
    return F.cross_entropy(s / 4, (t / 4).softmax(1)) * 16


def kl_mae(m, s, t, y):
    s, t = F.log_softmax(s / 4, 1), F.log_softmax(t / 4, 1)
    return 8 * F.kl_div(s, t, reduction="batchmean", log_target=True) + F.l1_loss(s.exp(), t.exp()) / 2


def logit_standardization(m, s, t, y):
    c = s.shape[1]
    s, t = F.layer_norm(s, (c,), eps=0), F.layer_norm(t, (c,), eps=0)
    temperature = 2 * math.sqrt(c / (c - 1))  # the deviation divides by C - 1
    return kd(m, s, t, y, temperature) * (c - 1) / c


def dkd(m, s, t, y):
    s, t, y = s / 4, t / 4, y.unsqueeze(1)
    p, q = t.softmax(1).gather(1, y), s.softmax(1).gather(1, y)
    binary = F.kl_div(torch.cat([q, 1 - q], 1).log(), torch.cat([p, 1 - p], 1), reduction="batchmean")
    s, t = (F.log_softmax(x.scatter(1, y, -1000.0), 1) for x in (s, t))
    return 16 * (binary + 8 * F.kl_div(s, t, reduction="batchmean", log_target=True))


def dist(m, s, t, y):
    s, t = (s / 4).softmax(1), (t / 4).softmax(1)
    classes = F.cosine_similarity(s - s.mean(1, keepdim=True), t - t.mean(1, keepdim=True), dim=1)
    samples = F.cosine_similarity(s - s.mean(0), t - t.mean(0), dim=0)
    return 16 * (2 - classes.mean() - samples.mean())


def jsd(m, s, t, y):
    s, t = F.log_softmax(s, 1), F.log_softmax(t, 1)
    mixture = torch.logaddexp(s, t) - math.log(2)
    return sum(F.kl_div(mixture, x, reduction="batchmean", log_target=True) for x in (s, t)) / 2


def tf_kd(m, s, t, y):
    others = s.shape[1] - 1
    odds = (0.99 / 0.01 * others) ** (1 / 20)
    other = 1 / (others + odds)  # probability
    entropy = -others * other * math.log(other) - odds * other * math.log(odds * other)
    return (F.cross_entropy(s / 20, y, label_smoothing=(others + 1) * other) - entropy) * 400


def wsld(m, s, t, y):
    weights = 1 - (-F.cross_entropy(s.detach(), y, reduction="none") / F.cross_entropy(t, y, reduction="none")).exp()
    s, t = F.log_softmax(s / 2, 1), F.log_softmax(t / 2, 1)
    return (weights * F.kl_div(s, t, reduction="none", log_target=True).sum(1)).mean() * 4


def ctkd(m, s, t, y):
    temperature = 1 + 20 * (2 * m.theta.detach() - m.theta).sigmoid()
    return kd(m, s, t, y, temperature)


# ---- several teachers


def arithmetic_mean(m, s, t, y):
    return F.kl_div(F.log_softmax(s / 4, 1), (t / 4).softmax(2).mean(1), reduction="batchmean") * 16


def geometric_mean(m, s, t, y):
    return kd(m, s, t.mean(1), y)


def ca_mkd(m, s, t, y):
    p = torch.einsum("nk,nkc->nc", confidences(t, y), (t / 4).softmax(2))
    return F.kl_div(F.log_softmax(s / 4, 1), p, reduction="batchmean") * 16


def ca_mkd_feature(m, s, t, y):
    s = [connector(s) for connector in m.connectors]
    logits = torch.stack([c(x.mean((2, 3))) for c, x in zip(m.classifiers, s, strict=True)], 1)
    errors = torch.stack([F.mse_loss(a, b, reduction="none").mean((1, 2, 3)) for a, b in zip(s, t, strict=True)], 1)
    return (confidences(logits, y) * errors).sum(1).mean()


def confidences(logits, y):
    errors = F.cross_entropy(logits.transpose(1, 2), y.unsqueeze(1).expand(-1, logits.shape[1]), reduction="none")
    return (1 - errors.softmax(1)) / (logits.shape[1] - 1)


# ---- features


def hint(m, s, t, y):
    return F.mse_loss(m.connector(s), t) / 2


def hints(m, s, t, y):
    return sum(hint(each, s, x, y) for each, x in zip(m.losses, t, strict=True)) / 2


def attention_transfer(m, s, t, y):
    s, t = (F.normalize(x.square().mean(1).flatten(1)) for x in (s, t))
    return F.mse_loss(s, t)


def attention_transfers(m, s, t, y):
    return sum(attention_transfer(m, a, b, y) for a, b in zip(s, t, strict=True))


def nst(m, s, t, y):
    s, t = F.normalize(s.flatten(2), dim=2), F.normalize(t.flatten(2), dim=2)
    s, t = s.mT @ s / s.shape[1], t.mT @ t / t.shape[1]
    return F.mse_loss(s, t, reduction="sum") / len(s)


def nst_of_channels(m, s, t, y):
    s, t = F.normalize(s.flatten(2), dim=2), F.normalize(t.flatten(2), dim=2)
    return (s @ s.mT).square().mean() + (t @ t.mT).square().mean() - 2 * (s @ t.mT).square().mean()


def cwd(m, s, t, y):
    s, t = F.log_softmax(m.connector(s).flatten(2) / 4, 2), F.log_softmax(t.flatten(2) / 4, 2)
    return F.kl_div(s, t, reduction="batchmean", log_target=True) * 16 / t.shape[1]


def ab(m, s, t, y):
    s = [connector(x) for connector, x in zip(m.connectors, s, strict=True)]
    hinges = [(1 - torch.where(b > 0, 1.0, -1.0) * a).relu().square().sum() for a, b in zip(s, t, strict=True)]
    return (hinges[0] / 4 + hinges[1] / 2 + hinges[2]) / len(t[0])


def ofd(m, s, t, y):
    s = [connector(x) for connector, x in zip(m.connectors, s, strict=True)]
    errors = [(F.mse_loss(a, b, reduction="none") * ((a > b) | (b > 0))).sum() for a, b in zip(s, t, strict=True)]
    return (errors[0] / 4 + errors[1] / 2 + errors[2]) / len(t[0])


def factor_transfer(m, s, t, y):
    return F.l1_loss(F.normalize(m.translator(s).flatten(1)), F.normalize(t.flatten(1)))


def fsp(m, s, t, y):
    first, second = (
        [F.adaptive_max_pool2d(x[i], x[i + 1].shape[2:]).flatten(2) @ x[i + 1].flatten(2).mT for x in (s, t)]
        for i in (0, 1)
    )
    return F.mse_loss(*first) / s[1][0, 0].numel() ** 2 + F.mse_loss(*second) / s[2][0, 0].numel() ** 2


def mgd(m, s, t, y):
    s = m.align(s)
    masked = s * (torch.rand(*s.shape[:2], 1, 1) >= 0.15)
    return F.mse_loss(m.generator(masked), t, reduction="sum") / len(s)


def vid(m, s, t, y):
    variance = F.softplus(m.rho) + 1e-5
    errors = F.mse_loss(m.regressor(s), t, reduction="none").mean((0, 2, 3))
    return (errors / variance + variance.log()).mean() / 2


def srd(m, s, t, y):
    s, t = m.connector(s.mean((2, 3))), t.mean((2, 3))
    s, t = (F.batch_norm(x, None, None, training=True, eps=1e-4) for x in (s, t))
    return ((s - t).pow(4).sum() + 1e-5).log()


def sad(m, s, t, y):
    t = F.interpolate(t.square().sum(1, keepdim=True), s.shape[2:], mode="bilinear")
    return F.mse_loss(s.square().sum(1).flatten(1).softmax(1), t.flatten(1).softmax(1), reduction="sum") / len(s)


def afd(m, s, t, y):
    queries = torch.stack([query(x.mean((2, 3))) for query, x in zip(m.queries, t, strict=True)], 1)
    keys = torch.stack([key(x.mean((2, 3))) for key, x in zip(m.keys, s, strict=True)], 1).relu()
    keys = m.bilinear(keys.flatten(0, 1)).view(-1, len(s), len(t), 128)
    agreement = torch.einsum("nstd,ntd->nts", keys, queries) + m.teacher_positions @ m.student_positions.T
    s, t = ([x.square().mean(1, keepdim=True) for x in side] for side in (s, t))
    s = [torch.cat([F.adaptive_avg_pool2d(x, to.shape[2:]) for x in s], 1).flatten(2) for to in t]  # (N, S, P)
    errors = [F.normalize(a, dim=2) - F.normalize(b.flatten(2), dim=2) for a, b in zip(s, t, strict=True)]
    errors = torch.stack([x.square().mean(2) for x in errors], 1)
    return ((agreement / math.sqrt(128)).softmax(2) * errors).sum() / len(errors)


def review_kd(m, s, t, y):
    loss, deeper = 0, None
    for fusion, x, to in zip(reversed(m.fusions), s[::-1], t[::-1], strict=True):
        x = fusion.narrow(x)
        if deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:])
            attention = fusion.attention(torch.cat([x, deeper], 1))
            x = x * attention[:, :1] + deeper * attention[:, 1:]
        wide, deeper = fusion.widen(x), x
        pooled = [(wide, to), *([F.adaptive_avg_pool2d(side, size) for side in (wide, to)] for size in (4, 2, 1))]
        loss = loss + sum(F.mse_loss(*sides) / 2**i for i, sides in enumerate(pooled)) / 1.875
    return loss


def semckd(m, s, t, y):
    queries, keys = (
        torch.stack([F.normalize(layer(x @ x.T)) for layer, x in zip(layers, side, strict=True)], 1)
        for layers, side in ((m.queries, [x.flatten(1) for x in s]), (m.keys, [x.flatten(1) for x in t]))
    )
    attention = (queries @ keys.mT).softmax(2)
    loss = 0
    for i, (x, projections) in enumerate(zip(s, m.projections, strict=True)):
        for j, (to, projection) in enumerate(zip(t, projections, strict=True)):
            size = [min(x.shape[2], to.shape[2])] * 2
            a, b = (side if [*side.shape[2:]] == size else F.adaptive_avg_pool2d(side, size) for side in (x, to))
            loss = loss + attention[:, i, j] @ F.mse_loss(projection(a), b, reduction="none").mean((1, 2, 3))
    return loss / attention[:, :, 0].numel()


def parameter_distribution(m, s, t, y):
    s, t = (F.normalize(x.flatten(), dim=0).sort().values * math.sqrt(x.numel()) for x in (s, t))
    return F.mse_loss(s, F.adaptive_avg_pool1d(t.unsqueeze(0), len(s)).squeeze(0))


# ---- relations


def rkd(m, s, t, y):
    n, eye = len(s), torch.eye(len(s))
    s, t = squared_distances(s), squared_distances(t)
    lengths = [(x + eye).sqrt() for x in (s, t)]  # a root of zero has no gradient
    distances = [n * (n - 1) * (x - eye) / (x - eye).sum() for x in lengths]
    cosines = [
        (x.unsqueeze(1) + x.unsqueeze(2) - x) / (2 * length.unsqueeze(1) * length.unsqueeze(2))
        for x, length in zip((s, t), lengths, strict=True)
    ]  # of sides ji, jk and ik
    return 25 * F.smooth_l1_loss(*distances) + 50 * F.smooth_l1_loss(*cosines)


def squared_distances(x):
    products = x @ x.T
    return products.diagonal() + products.diagonal().unsqueeze(1) - 2 * products


def sp(m, s, t, y):
    s, t = s.flatten(1), t.flatten(1)
    return F.mse_loss(F.normalize(s @ s.T), F.normalize(t @ t.T))


def cc(m, s, t, y):
    s, t = (0.8 * x @ x.T for x in (F.normalize(s), F.normalize(t)))
    return F.mse_loss(s + s.square() / 2, t + t.square() / 2) * math.exp(-1.6)


def pkt(m, s, t, y):
    s, t = (1 + x @ x.T for x in (F.normalize(s), F.normalize(t)))
    s, t = s / s.sum(1, keepdim=True), t / t.sum(1, keepdim=True)
    return (t * ((t + 1e-7) / (s + 1e-7)).log()).mean()


def irg(m, s, t, y):
    def edges(x):
        x = squared_distances(x.flatten(1))
        return x / x.max()

    def moved(before, after):
        x = (before - after).square().sum(1)
        return x / x.max()

    loss = 0.1 * F.mse_loss(s[3], t[3])
    loss = loss + 5 / 3 * sum(F.mse_loss(edges(s[i]), edges(t[i])) for i in range(3))
    s, t = ([x.mean((2, 3)) for x in side[:3]] for side in (s, t))
    return loss + 5 / 2 * sum(F.mse_loss(moved(s[i], s[i + 1]), moved(t[i], t[i + 1])) for i in range(2))


def lsp(m, s, t, y):
    source, target = y

    def shares(x):
        likeness = (-(x[source] - x[target]).square().sum(1) / (2 * m.sigma)).exp()
        sums = torch.zeros(len(x), dtype=x.dtype).index_add(0, target, likeness.exp())
        return likeness - sums[target].log()

    mine, theirs = shares(s), shares(t)
    return (mine.exp() * (mine - theirs)).sum() / len(s)


def modality_graph(m, s, t, y):
    (z, h), (zs, *hs) = s, t
    scores = m.logit_score(zs).squeeze(2) + torch.cat(
        [to(x) for to, x in zip(m.representation_scores, hs, strict=True)], 1
    )
    edges = (scores / 8).softmax(1)
    apart = 10 * (1 - F.cosine_similarity(z.unsqueeze(1), zs, dim=2))
    seen = zip(m.connectors, hs, strict=True)
    apart = apart + 1 - torch.stack([F.cosine_similarity(to(h), x, dim=1) for to, x in seen], 1)
    return ((edges + 0.5) * apart).sum(1).mean() + 10 * (edges.mean(0) - 0.5).square().sum()


def locality_preserving(m, s, t, y):
    distances, nearest = (found[:, 1:] for found in torch.cdist(t, t).topk(6, largest=False))  # the first is itself
    weights = (-(distances / 32).square()).exp()
    return (weights * (s.unsqueeze(1) - s[nearest]).square().sum(2)).sum() / (2 * len(s))


def multi_head_graph(m, s, t, y):
    t = [F.normalize(x.mean((2, 3))) for x in t]
    s = [F.normalize(to(x.mean((2, 3)))) for to, x in zip(m.connectors, s, strict=True)]
    s = [F.batch_norm(x, to.mean(0), to.var(0, correction=0)) for x, to in zip(s, t, strict=True)]
    seen, loss = [F.batch_norm(x, None, None, training=True) for x in t], 0
    for i, graph in enumerate(m.graphs):
        shown = heads(graph.query(seen[i + 1])) @ heads(graph.key(seen[i])).mT / math.sqrt(128)
        mine = heads(frozen(graph.query, s[i + 1])) @ heads(frozen(graph.key, s[i])).mT / math.sqrt(128)
        log_p, log_q = shown.detach().tanh().log_softmax(2), mine.tanh().log_softmax(2)
        picked = (shown.softmax(2) @ graph.value(seen[i]).relu()).transpose(0, 1).flatten(1)
        loss = loss + F.kl_div(log_p, log_q, reduction="sum", log_target=True) / log_q[:, :, 0].numel()
        loss = loss + 1 - F.cosine_similarity(graph.join(picked), t[i + 1]).mean()
    return loss


def heads(x):
    return x.unflatten(1, (8, -1)).transpose(0, 1)


def frozen(linear, x):
    return F.linear(x, *(parameter.detach() for parameter in linear.parameters()))


def in_batch_crd(m, s, t, y):
    s, t = F.normalize(m.student_embedding(s)), F.normalize(m.teacher_embedding(t))
    alike = (y == y.unsqueeze(1)).fill_diagonal_(False)
    logits = (s @ t.T / 0.07).masked_fill(alike, -math.inf)
    own = torch.arange(len(s))
    return F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)


def crd(m, s, t, y):
    label, index = y
    s, t = F.normalize(m.student_embedding(s)), F.normalize(m.teacher_embedding(t))
    m.labels[index] = label
    counts = m.labels.bincount(minlength=10)
    own, first = counts[label].unsqueeze(1), (counts.cumsum(0) - counts)[label].unsqueeze(1)
    generator = torch.Generator().manual_seed(int(m.calls))
    draws = torch.randint(2**62, (len(s), m.negatives), generator=generator) % (len(m.labels) - own)
    draws = m.labels.argsort(stable=True)[draws + own * (draws >= first)]
    loss, noise = 0, math.log(m.negatives)
    for x, bank, log_mean in ((s, m.teacher_bank, m.log_means[0]), (t, m.student_bank, m.log_means[1])):
        positive = (x * bank[index]).sum(1) / 0.07 - log_mean
        negative = (x @ bank.clone().T).gather(1, draws) / 0.07 - log_mean  # the bank moves before the backward
        loss = loss + (F.softplus(noise - positive).sum() + F.softplus(negative - noise).sum()) / len(x)
    m.calls += 1
    for x, bank in ((s, m.student_bank), (t, m.teacher_bank)):
        bank[index] = F.normalize(torch.lerp(x.detach(), bank[index], 0.5))
    return loss
