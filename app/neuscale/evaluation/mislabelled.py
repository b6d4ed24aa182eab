"""Images whose labels are probably wrong, by confident learning.

C. G. Northcutt, L. Jiang, I. L. Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR
70, 2021, equations 1 to 3 and section 3.2: an image is counted for a class if its probability for that class
is at least its mean over the images with that label. (The authors' program is under the AGPL.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Suspect:
    """An image probably of class `suggested`; `margin`: that class's probability minus its label's."""

    sample: int
    suggested: int
    margin: float


def suspects(probabilities: Tensor, labels: Tensor) -> list[Suspect]:
    """The images that are probably mislabelled, by decreasing margin.

    `probabilities` [N, K] must come from a model that was not trained on these labels, since it would fit
    them too well; `labels` [N] are the given ones. The confident joint says how many images of a class belong
    to another; those with the largest margins are chosen ("prune by noise rate"). A class without images is
    never suggested.
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
