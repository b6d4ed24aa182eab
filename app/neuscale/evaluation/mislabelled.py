"""Images whose labels are probably wrong, by confident learning.

C. G. Northcutt, L. Jiang, I. L. Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR
70, 2021, equations 1 to 3 and section 3.2: an image counts as of another class where its probability for it
is at least what images that are labelled so have on average. (The authors' program is under the AGPL.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Suspect:
    """An image that is probably of class `suggested`, by `margin` likelier to the model than its label."""

    sample: int
    suggested: int
    margin: float


def suspects(probabilities: Tensor, labels: Tensor) -> list[Suspect]:
    """The images that are probably mislabelled, the surest first.

    `probabilities` [N, K] are a model's that was not trained on these labels, or they fit too well; `labels`
    [N] are those given. How many images of a class are of another follows from the confident joint; which
    they are, from how much likelier that class is ("prune by noise rate"). A class without images is
    suggested to none.
    """
    count, classes = probabilities.shape
    if count == 0:
        return []
    likely = probabilities.double()
    own = likely[torch.arange(count), labels]
    number = torch.bincount(labels, minlength=classes)
    sums = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, own)
    thresholds = torch.where(number > 0, sums / number.clamp(min=1), torch.inf)
    best, confident_in = likely.where(likely >= thresholds, -1.0).max(1)
    is_confident = best >= 0
    joint = torch.zeros(classes, classes, dtype=torch.float64)
    ones = torch.ones(int(is_confident.sum()), dtype=torch.float64)
    joint.index_put_((labels[is_confident], confident_in[is_confident]), ones, accumulate=True)
    expected = (joint / joint.sum(1, keepdim=True).clamp(min=1) * number[:, None]).round().long()
    found: dict[int, Suspect] = {}
    for given, other in torch.nonzero(expected).tolist():
        if given == other:
            continue
        members = torch.nonzero(labels == given)[:, 0]
        margins = likely[members, other] - likely[members, given]
        for place in margins.argsort(descending=True, stable=True)[: int(expected[given, other])].tolist():
            sample, margin = int(members[place]), float(margins[place])
            if margin > 0 and (sample not in found or found[sample].margin < margin):
                found[sample] = Suspect(sample, other, margin)
    return sorted(found.values(), key=lambda suspect: (-suspect.margin, suspect.sample))
